import numpy as np
import pytest
import torch

from bdbnet.retrieval import ReIDMetrics, RetrievalRecall, recall_at_k, reid_metrics


def some_images(seed: int = 0, images: int = 80) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 9, (images,), generator=generator)
    cameras = torch.randint(0, 3, (images,), generator=generator)
    is_query = torch.arange(images) < 25
    return embeddings, labels, cameras, is_query, torch.arange(images)


def expected_reid(embeddings, labels, cameras, is_query):
    return reid_metrics(
        embeddings[is_query],
        embeddings[~is_query],
        labels[is_query],
        labels[~is_query],
        cameras[is_query],
        cameras[~is_query],
    )


def rank_indices(images: int, world_size: int) -> list[torch.Tensor]:
    """What a distributed sampler gives each rank: strided rows, padded from the start to equal lengths."""
    padded = torch.arange(-(-images // world_size) * world_size) % images
    return [padded[rank::world_size] for rank in range(world_size)]


def filled(metric, data, rows, *, roles=True):
    for part in rows.split(7):
        embeddings, labels, cameras, is_query, index = (x[part] for x in data)
        metric.update(embeddings, labels, cameras, is_query if roles else None, index)
    return metric


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_reid_does_not_depend_on_ranks_and_padding(world_size):
    data = some_images()
    parts = [filled(ReIDMetrics(), data, rows) for rows in rank_indices(80, world_size)]
    for other in parts[1:]:
        parts[0].merge_state(other)
    assert parts[0].compute() == expected_reid(*data[:4])


@pytest.mark.parametrize("roles", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_recall_does_not_depend_on_ranks_and_padding(world_size, roles):
    data = some_images()
    embeddings, labels, _, is_query, _ = data
    parts = [filled(RetrievalRecall(), data, rows, roles=roles) for rows in rank_indices(80, world_size)]
    for other in parts[1:]:
        parts[0].merge_state(other)
    if roles:
        separate = {"gallery": embeddings[~is_query], "gallery_labels": labels[~is_query]}
        expected = recall_at_k(embeddings[is_query], labels[is_query], **separate)
    else:
        expected = recall_at_k(embeddings, labels)
    assert parts[0].compute() == expected


def test_states_pass_through_the_sync_of_torchmetrics():
    data = some_images()
    mine, theirs = rank_indices(80, 2)
    other = filled(ReIDMetrics(), data, theirs)
    their_states = iter([torch.cat(getattr(other, name)) for name in other._reductions])
    metric = ReIDMetrics(
        dist_sync_fn=lambda tensor, group: [tensor, next(their_states)], distributed_available_fn=lambda: True
    )
    assert filled(metric, data, mine).compute() == expected_reid(*data[:4])


def test_collected_images_come_once_and_in_row_order():
    data = some_images()
    parts = [filled(ReIDMetrics(), data, rows) for rows in rank_indices(80, 3)]
    for other in parts[1:]:
        parts[0].merge_state(other)
    gallery_first = torch.cat([torch.arange(25, 80), torch.arange(25)])
    for found, given in zip(parts[0].collected(), data[:4], strict=True):
        assert torch.equal(found, given[gallery_first])
    assert filled(RetrievalRecall(), data, torch.arange(80), roles=False).collected()[3] is None


def test_order_of_batches_does_not_break_ties():
    embeddings, labels, cameras, is_query, index = some_images()
    data = (torch.zeros_like(embeddings), labels, cameras, is_query, index)
    shuffled = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    assert filled(ReIDMetrics(), data, shuffled).compute() == expected_reid(*data[:4])


def test_queries_and_gallery_may_be_numbered_separately():
    embeddings, labels, cameras, is_query, _ = some_images()
    index = torch.cat([torch.arange(25), torch.arange(55)])
    found = filled(ReIDMetrics(), (embeddings, labels, cameras, is_query, index), torch.arange(80)).compute()
    assert found == expected_reid(embeddings, labels, cameras, is_query)


def test_without_roles_every_image_is_searched_among_the_others():
    data = some_images()
    embeddings, labels, cameras = data[:3]
    found = filled(ReIDMetrics(), data, torch.arange(80), roles=False).compute()
    assert found == reid_metrics(embeddings, embeddings, labels, labels, cameras, cameras)


def test_without_cameras_nothing_is_left_out():
    embeddings, labels, _, is_query, index = some_images()
    metric = ReIDMetrics(ranks=(1,))
    metric.update(embeddings, labels, None, is_query, index)
    sides = (embeddings[is_query], embeddings[~is_query], labels[is_query], labels[~is_query])
    assert metric.compute() == reid_metrics(*sides, None, None, ranks=(1,))


def test_options_reach_the_metrics():
    data = some_images()
    found = filled(ReIDMetrics(ranks=(3,), ap_at=2), data, torch.arange(80)).compute()
    assert list(found) == ["rank3", "mAP", "mINP", "valid_queries"]
    assert found["mAP"] < expected_reid(*data[:4])["mAP"]
    assert list(filled(RetrievalRecall(ks=(10,)), data, torch.arange(80)).compute()) == ["recall@10", "valid_queries"]


def test_half_precision_is_stored_as_float32():
    metric = RetrievalRecall()
    metric.update(torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int32), None, None, torch.arange(2))
    assert metric.embeddings[0].dtype == torch.float32
    assert metric.compute()["recall@1"] == 1


def test_reset_forgets_the_last_epoch():
    data = some_images()
    metric = filled(ReIDMetrics(), some_images(seed=5), torch.arange(80))
    metric.reset()
    assert filled(metric, data, torch.arange(80)).compute() == expected_reid(*data[:4])


def test_one_row_with_two_labels_is_an_error():
    embeddings, labels, cameras, is_query, index = some_images()
    metric = ReIDMetrics()
    metric.update(embeddings, labels, cameras, is_query, index)
    metric.update(embeddings[:2], labels[:2] + torch.tensor([0, 1]), cameras[:2], is_query[:2], index[:2])
    with pytest.raises(ValueError, match="row 1 was given twice"):
        metric.compute()


def test_mixing_roles_and_none_is_an_error():
    data = some_images()
    metric = filled(RetrievalRecall(), data, torch.arange(40))
    filled(metric, data, torch.arange(40, 80), roles=False)
    with pytest.raises(ValueError, match="None for others"):
        metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_computing_without_images_is_an_error():
    with pytest.raises(ValueError, match="no images were given"):
        ReIDMetrics().compute()


@pytest.mark.parametrize("name", ["labels", "cameras", "is_query", "index"])
def test_wrong_lengths_are_named(name):
    batch = dict(zip(("embeddings", "labels", "cameras", "is_query", "index"), some_images(), strict=True))
    with pytest.raises(ValueError, match=rf"{name} must have shape \(80,\), got \(3,\)"):
        ReIDMetrics().update(**{**batch, name: batch[name][:3]})


def test_a_nan_embedding_stops_the_evaluation():
    embeddings, *rest = some_images()
    embeddings[30, 2] = np.nan
    with pytest.raises(ValueError, match="gallery embedding 5 contains NaN"):
        filled(ReIDMetrics(), (embeddings, *rest), torch.arange(80)).compute()
