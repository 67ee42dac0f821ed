import numpy as np
import pytest
import torch

from bdbnet.retrieval import QueryExpansion, ReIDMetrics, RetrievalRecall, recall_at_k, reid_metrics, rerank


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


@pytest.mark.parametrize(
    "metric",
    [ReIDMetrics((1, 3)), ReIDMetrics((5,), single_shot=2), RetrievalRecall((2, 4)), RetrievalRecall(precision=True)],
)
def test_the_names_of_metrics_are_known_before_they_are_computed(metric):
    names = metric.names
    assert [*filled(metric, some_images(), torch.arange(80)).compute()] == [*names, "valid_queries"]


def test_states_pass_through_the_sync_of_torchmetrics():
    data = some_images()
    mine, theirs = rank_indices(80, 2)
    other = filled(ReIDMetrics(), data, theirs)
    their_states = iter([torch.cat(getattr(other, name)) for name in other._reductions])
    metric = ReIDMetrics(
        dist_sync_fn=lambda tensor, group: [tensor, next(their_states)], distributed_available_fn=lambda: True
    )
    assert filled(metric, data, mine).compute() == expected_reid(*data[:4])


def test_evaluated_images_come_once_and_in_row_order():
    embeddings, _, cameras, is_query, index = data = some_images()
    parts = [filled(ReIDMetrics(), data, rows) for rows in rank_indices(80, 3)]
    for other in parts[1:]:
        parts[0].merge_state(other)
    found = parts[0].evaluate(top_k=2)
    gallery_first = torch.cat([torch.arange(25, 80), torch.arange(25)])
    assert torch.equal(found.embeddings, embeddings[gallery_first])
    assert torch.equal(found.is_query, is_query[gallery_first])
    assert torch.equal(found.query, embeddings[is_query])
    assert torch.equal(found.gallery, embeddings[~is_query])
    assert found.query_rows.tolist() == index[is_query].tolist()
    assert found.gallery_rows.tolist() == index[~is_query].tolist()
    np.testing.assert_array_equal(found.matches.query_cameras, cameras[is_query])
    assert found.top_k.indices.shape == (25, 2)
    assert (found.facts, found.camera_pairs, found.per_query) == (None, None, {})


def test_images_without_roles_are_one_set():
    data = some_images()
    found = filled(RetrievalRecall(), data, torch.arange(80), roles=False).evaluate(facts=True)
    assert found.is_query is None
    assert found.query is found.gallery
    assert found.camera_pairs is None
    assert (found.facts.match != np.arange(80)).all()


METRICS = {
    "re-ID": lambda **options: ReIDMetrics(**options),
    "cut": lambda **options: ReIDMetrics(ap_at=3, **options),
    "multi-query": lambda **options: ReIDMetrics(query_pooling="mean", **options),
    "retrieval": lambda **options: RetrievalRecall(precision=True, **options),
    "recall": lambda **options: RetrievalRecall(**options),
}
RERANK = {"rerank": {"k1": 5, "k2": 2}}


@pytest.mark.parametrize("options", [{}, RERANK, {"query_expansion": QueryExpansion(2)}], ids=["plain", "rerank", "qe"])
@pytest.mark.parametrize("name", METRICS)
def test_an_evaluation_gives_the_metrics_and_values_per_query_whose_means_they_are(name, options):
    metric = filled(METRICS[name](**options), some_images(), torch.arange(80))
    found = metric.evaluate(top_k=3, facts=True)
    assert found.metrics == metric.compute()
    assert found.plain_metrics == metric.compute_plain()
    assert (found.plain_metrics is None) is (options == {})
    for of, values in found.per_query.items():
        if of in found.metrics:
            assert values[~np.isnan(values)].mean() == pytest.approx(found.metrics[of], abs=1e-15)
    assert set(found.metrics) - {"valid_queries"} <= set(found.per_query)
    assert (found.camera_pairs is not None) is isinstance(metric, ReIDMetrics)


def test_a_pooled_query_stands_under_its_first_image():
    embeddings, labels, cameras, is_query, index = data = some_images()
    found = filled(ReIDMetrics(query_pooling="max"), data, torch.arange(80)).evaluate(top_k=1, facts=True)
    groups: dict[tuple[int, int], list[int]] = {}
    for row in index[is_query].tolist():
        groups.setdefault((int(labels[row]), int(cameras[row])), []).append(row)
    assert found.query_rows.tolist() == [rows[0] for rows in groups.values()]
    assert torch.equal(found.query, torch.stack([embeddings[rows].amax(0) for rows in groups.values()]))
    assert found.matches.query_labels.tolist() == [label for label, _ in groups]
    assert len(found.facts.ap) == len(found.top_k.indices) == len(groups) < 25


def test_one_image_per_identity_is_drawn_for_the_metrics_alone():
    data = some_images()
    metric = filled(ReIDMetrics(single_shot=5), data, torch.arange(80))
    found = metric.evaluate(top_k=60, facts=True)
    assert found.metrics == metric.compute()
    assert set(found.metrics) == {"rank1", "rank5", "rank10", "valid_queries"}
    assert found.per_query["mAP"].mean() == pytest.approx(expected_reid(*data[:4])["mAP"])
    assert (found.top_k.indices >= 0).sum(1).max() > len(torch.unique(data[1]))


def test_in_the_next_camera_alone():
    """By hand: a query of camera c is ranked among the gallery images of camera c + 1, and counts if its label is there."""
    embeddings, labels, cameras, is_query, rows = some_images()
    cameras = torch.randint(0, 6, (80,), generator=torch.Generator().manual_seed(1))
    found = filled(ReIDMetrics((1, 2), next_camera=True), (embeddings, labels, cameras, is_query, rows), rows)
    gallery = torch.arange(25, 80)
    hits, precisions, lists = [], [], []
    for query in range(25):
        there = gallery[cameras[gallery] == cameras[query] + 1]
        there = there[(embeddings[there] - embeddings[query]).norm(dim=1).argsort()]
        right = labels[there] == labels[query]
        lists.append((there - 25).tolist()[:3] + [-1] * (3 - min(3, len(there))))
        if right.any():
            hits.append([right[:1].any(), right[:2].any()])
            places = 1 + right.nonzero()[:, 0]
            precisions.append((torch.arange(1, len(places) + 1) / places.double()).mean().item())
    metrics = found.compute()
    assert 0 < metrics["valid_queries"] == len(hits) < 25
    assert [metrics["rank1"], metrics["rank2"]] == np.mean(hits, axis=0).tolist()
    assert metrics["mAP"] == pytest.approx(np.mean(precisions), abs=1e-12)
    evaluated = found.evaluate(top_k=3, facts=True)
    assert evaluated.top_k.indices.tolist() == lists
    assert evaluated.camera_pairs is None


def test_re_ranking_runs_once_for_metrics_lists_and_facts(monkeypatch):
    calls = []
    encode = rerank._encoded
    monkeypatch.setattr(rerank, "_encoded", lambda *given: calls.append(len(given[0])) or encode(*given))
    filled(ReIDMetrics(**RERANK), some_images(), torch.arange(80)).evaluate(top_k=3, facts=True)
    assert calls == [80]


def test_an_evaluation_passes_through_the_sync_of_torchmetrics():
    data = some_images()
    mine, theirs = rank_indices(80, 2)
    other = filled(ReIDMetrics(), data, theirs)
    their_states = iter([torch.cat(getattr(other, name)) for name in other._reductions])
    metric = ReIDMetrics(
        dist_sync_fn=lambda tensor, group: [tensor, next(their_states)], distributed_available_fn=lambda: True
    )
    found = filled(metric, data, mine).evaluate(facts=True)
    assert found.metrics == expected_reid(*data[:4])
    assert len(found.embeddings) == 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReIDMetrics(ranks=(0,)), "ranks must be"),
        (lambda: ReIDMetrics(ap_at=0), "ap_at must be"),
        (lambda: RetrievalRecall(ks=()), "ks must be"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
