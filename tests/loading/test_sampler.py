from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.loading import Draw, IdentityBatchSampler, SamplerError

COVERAGES = ["identities", "images"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Labels in any order, with gaps, 1 to 9 images each; P divisible by 4; K 1 to 5."""
    per_batch = draw(st.sampled_from([4, 8]))
    images = draw(st.lists(st.integers(1, 9), min_size=per_batch, max_size=per_batch + 13))
    names = draw(st.lists(st.integers(-5, 1000), min_size=len(images), max_size=len(images), unique=True))
    labels = np.repeat(names, images)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels), per_batch, draw(st.integers(1, 5))


def rows(batch: list[Draw]) -> np.ndarray:
    return np.array([draw.index for draw in batch])


@given(case=cases(), epoch=st.sampled_from(COVERAGES), number=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_batch_is_p_identities_of_k_images(case: tuple[np.ndarray, int, int], epoch: str, number: int) -> None:
    labels, per_batch, images = case
    sampler = IdentityBatchSampler(labels, per_batch, images, epoch=epoch)
    sampler.set_epoch(number)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    size = Counter(labels.tolist())
    for batch in batches:
        groups = rows(batch).reshape(per_batch, images)
        identities = labels[groups]
        assert (identities == identities[:, :1]).all()
        assert len(set(identities[:, 0])) == per_batch
        for group, identity in zip(groups, identities[:, 0]):
            # Distinct where there are enough; otherwise every image of the identity is there.
            assert len(set(group)) == min(images, size[identity])
    assert [draw.position for batch in batches for draw in batch] == list(range(len(batches) * per_batch * images))
    assert {draw.epoch for batch in batches for draw in batch} == {number}


@given(case=cases(), epoch=st.sampled_from(COVERAGES), number=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_ranks_side_by_side_are_the_single_process_batch(
    case: tuple[np.ndarray, int, int], epoch: str, number: int
) -> None:
    labels, per_batch, images = case
    single = IdentityBatchSampler(labels, per_batch, images, epoch=epoch, seed=5)
    single.set_epoch(number)
    expected = list(single)
    for world_size in (1, 2, 4):
        ranks = []
        for rank in range(world_size):
            sampler = IdentityBatchSampler(
                labels, per_batch, images, epoch=epoch, seed=5, rank=rank, world_size=world_size
            )
            sampler.set_epoch(number)
            assert len(sampler) == len(single)
            ranks.append(list(sampler))
        assert [list(chain.from_iterable(parts)) for parts in zip(*ranks)] == expected


@given(case=cases(), number=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_epoch_of_identities_draws_each_at_most_once(case: tuple[np.ndarray, int, int], number: int) -> None:
    labels, per_batch, images = case
    sampler = IdentityBatchSampler(labels, per_batch, images)
    identities = labels[sampler.batches(number)][:, :, 0].reshape(-1)
    total = len(set(labels.tolist()))
    assert len(set(identities)) == len(identities) == total - total % per_batch


@given(case=cases(), number=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_epoch_of_images_draws_every_image_in_the_least_number_of_batches(
    case: tuple[np.ndarray, int, int], number: int
) -> None:
    labels, per_batch, images = case
    sampler = IdentityBatchSampler(labels, per_batch, images, epoch="images")
    batches = sampler.batches(number)
    assert set(batches.reshape(-1)) == set(range(len(labels)))
    groups = [-(-count // images) for count in Counter(labels.tolist()).values()]
    assert len(batches) == max(-(-sum(groups) // per_batch), max(groups))


def test_the_papers_schedule_on_market1501_has_23_batches() -> None:
    labels = np.repeat(np.arange(751), 17)
    sampler = IdentityBatchSampler(labels)
    assert len(sampler) == len(list(sampler)) == 23
    assert {len(batch) for batch in sampler} == {128}


def test_covering_images_without_fill_draws_each_exactly_once() -> None:
    labels = np.repeat(np.arange(8), 6)
    batches = IdentityBatchSampler(labels, 4, 2, epoch="images").batches(0)
    assert sorted(batches.reshape(-1)) == list(range(48))


def test_one_identity_with_most_of_the_images_is_covered_too() -> None:
    labels = np.array([0] * 50 + [1, 2, 2, 3])
    batches = IdentityBatchSampler(labels, 2, 4, epoch="images").batches(0)
    assert batches.shape == (13, 2, 4)
    assert set(batches.reshape(-1)) == set(range(54))


@pytest.mark.parametrize("epoch", COVERAGES)
def test_order_is_a_function_of_seed_and_epoch(epoch: str) -> None:
    labels = np.repeat(np.arange(12), 5)

    def order(seed: int, number: int) -> list[list[Draw]]:
        sampler = IdentityBatchSampler(labels, 4, 2, epoch=epoch, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert order(1, 3) == order(1, 3)
    different = [[rows(batch).tolist() for batch in order(*key)] for key in ((1, 3), (1, 4), (2, 3), (3, 1))]
    assert all(a != b for place, a in enumerate(different) for b in different[place + 1 :])
    sampler = IdentityBatchSampler(labels, 4, 2, epoch=epoch, seed=1)
    list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == order(1, 3)  # earlier epochs leave no trace


def test_every_image_has_the_same_chance() -> None:
    labels = np.repeat(np.arange(4), 5)
    sampler = IdentityBatchSampler(labels, 4, 2)
    counts = np.bincount(np.concatenate([sampler.batches(epoch).reshape(-1) for epoch in range(1000)]), minlength=20)
    assert (np.abs(counts - 400) < 5 * np.sqrt(400 * 0.6)).all()


def test_it_is_its_own_sampler_and_starts_at_any_batch() -> None:
    sampler = IdentityBatchSampler(np.repeat(np.arange(9), 2), 2, 2)
    assert sampler.sampler is sampler
    everything = list(sampler)
    sampler.first_batch = 3
    assert list(sampler) == everything[3:]


@pytest.mark.parametrize("epoch", ["identities", "images"])
def test_any_number_of_ranks_resumes_with_the_same_batches(epoch: str) -> None:
    def rest(rank: int, size: int) -> list[list[Draw]]:
        labels = np.repeat(np.arange(12), 5)
        sampler = IdentityBatchSampler(labels, 4, 2, epoch=epoch, seed=3, rank=rank, world_size=size)
        sampler.set_epoch(2)
        sampler.first_batch = 1  # as the checkpoint says, whoever wrote it
        return list(sampler)

    alone = rest(0, 1)
    assert len(alone) > 1
    for size in (2, 4):
        shares = zip(*(rest(rank, size) for rank in range(size)))
        assert [list(chain.from_iterable(parts)) for parts in shares] == alone


def test_batch_size_is_split_into_identities() -> None:
    sampler = IdentityBatchSampler.from_batch_size(
        np.repeat(np.arange(9), 2), 6, 2, epoch="images", rank=1, world_size=3
    )
    assert (sampler.identities_per_batch, sampler.images_per_identity) == (3, 2)
    assert [draw.position for draw in next(iter(sampler))] == [2, 3]


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([], {}, "0 identities; metric learning needs at least two"),
        ([7, 7, 7], {}, "1 identities; metric learning needs at least two"),
        ([0, 1, 2], {"identities_per_batch": 4}, "needs 4 identities .* has 3: set sampler.batch_size to at most 12"),
        ([0, 1, 2], {"identities_per_batch": 1}, "raise sampler.batch_size"),
        ([0, 1, 2], {"identities_per_batch": 2, "images_per_identity": 0}, "sampler.images_per_identity is 0"),
        (range(6), {"identities_per_batch": 6, "world_size": 4}, "can't be divided among 4 ranks: .* multiple of 16"),
        (
            range(6),
            {"identities_per_batch": 2, "world_size": 4},
            r"2 identities .* for 4 processes, .*: raise sampler.batch_size to 16, or use at most 2 \(trainer.devices",
        ),
        (range(6), {"identities_per_batch": 6, "world_size": 8}, "6 identities .* for 8 processes, .*: use at most 6"),
        (range(6), {"identities_per_batch": 6, "rank": 2, "world_size": 2}, "rank 2 does not exist among 2"),
        (range(6), {"identities_per_batch": 6, "epoch": "steps"}, "sampler.epoch is 'steps': choose"),
    ],
)
def test_settings_that_do_not_fit_are_refused(labels: list[int], settings: dict[str, int], message: str) -> None:
    with pytest.raises(SamplerError, match=message):
        IdentityBatchSampler(np.array(list(labels)), **settings)


@pytest.mark.parametrize(("batch_size", "images"), [(10, 4), (0, 4), (8, 0)])
def test_batch_size_that_k_does_not_divide_names_both_keys(batch_size: int, images: int) -> None:
    with pytest.raises(
        SamplerError, match=rf"sampler\.batch_size={batch_size} .*sampler\.images_per_identity={images}"
    ):
        IdentityBatchSampler.from_batch_size(np.arange(20), batch_size, images)
