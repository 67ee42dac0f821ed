import numpy as np
import pytest

from bdbnet.retrieval import single_shot_cmc


def case(seed=0, queries=12, images=60, identities=7, spread=3):
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(-spread, spread + 1, (n, 3)).astype(float) for n in (queries, images))
    ql, gl = rng.integers(0, identities, queries), rng.integers(0, identities + 1, images)
    return q, g, ql, gl, rng.integers(0, 2, queries), rng.integers(0, 2, images)


def expected_cmc(q, g, ql, gl, qc, gc, k):
    """The exact mean over all random galleries: other identities' images are nearer independently of one another."""
    values = []
    for i, row in enumerate(q):
        positives = [j for j in range(len(g)) if gl[j] == ql[i] and gc[j] != qc[i]]
        if not positives:
            continue
        distances = [float(((row - x) ** 2).sum()) for x in g]
        total = 0.0
        for own in positives:
            chances = np.array([1.0])  # of 0, 1, 2, ... identities before
            for label in set(gl.tolist()) - {ql[i]}:
                images = [j for j in range(len(g)) if gl[j] == label]
                share = np.mean([(distances[j], j) < (distances[own], own) for j in images])
                chances = np.convolve(chances, [1 - share, share])
            total += chances[:k].sum()
        values.append(total / len(positives))
    return np.mean(values), len(values)


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_over_galleries_is_the_expectation(seed):
    data = case(seed)
    found = single_shot_cmc(*data, ranks=(1, 3), repeats=4000)
    for k in (1, 3):
        value, valid = expected_cmc(*data, k)
        assert found[f"rank{k}"] == pytest.approx(value, abs=0.02)  # four standard errors or more
        assert found["valid_queries"] == valid


def test_one_image_per_identity_leaves_nothing_to_chance(naive):
    rng = np.random.default_rng(5)
    q, g = rng.standard_normal((9, 4)), rng.standard_normal((20, 4))
    data = q, g, rng.integers(0, 20, 9), rng.permutation(20), np.zeros(9, int), np.ones(20, int)
    found = single_shot_cmc(*data, ranks=(1, 5), repeats=3)
    assert found == pytest.approx(
        {k: v for k, v in naive.reid(*data).items() if k in ("rank1", "rank5", "valid_queries")}
    )


def test_draws_depend_on_the_seed_alone():
    data = case(queries=40)
    one = single_shot_cmc(*data, repeats=5, seed=3)
    order = np.random.default_rng(1).permutation(40)
    q, g, ql, gl, qc, gc = data
    again = single_shot_cmc(q[order], g, ql[order], gl, qc[order], gc, repeats=5, seed=3, chunk_memory_mb=0.002)
    assert again == pytest.approx(one, abs=1e-12)
    assert single_shot_cmc(*data, repeats=5, seed=4) != one


@pytest.mark.parametrize(
    ("options", "message"), [({"repeats": 0}, "repeats must be"), ({"ranks": (0,)}, "ranks must be")]
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        single_shot_cmc(*case(), **options)


def test_no_query_with_a_match_is_an_error():
    q, g, ql, gl, qc, gc = case()
    with pytest.raises(ValueError, match="no query has a match"):
        single_shot_cmc(q, g, ql + 100, gl, qc, gc)


def naive_rounds(x, labels, k, seed, repeats):
    """VehicleID's protocol by hand: in each round a random image of each identity is the gallery, all others are queries."""
    rounds = []
    for repeat in range(repeats):
        numbers = np.random.default_rng([seed, repeat]).permutation(len(x))
        drawn = [
            min(np.flatnonzero(labels == label), key=lambda i: numbers[i]) for label in sorted(set(labels.tolist()))
        ]
        hits = []
        for i in set(range(len(x))) - set(drawn):
            ranked = sorted(drawn, key=lambda j: (((x[i] - x[j]) ** 2).sum(), j))
            hits.append(labels[i] in labels[ranked[:k]])
        rounds.append(np.mean(hits))
    return np.mean(rounds)


@pytest.mark.parametrize("chunk", [None, 0.001])
def test_the_images_that_are_not_drawn_are_the_queries(chunk):
    rng = np.random.default_rng(2)
    x, labels = rng.integers(-4, 5, (60, 3)).astype(float), np.concatenate([np.arange(12), rng.integers(0, 12, 48)])
    labels = np.unique(labels, return_inverse=True)[1]
    labels = np.where(np.bincount(labels)[labels] == 1, 0, labels)
    options = {"ranks": (1, 5), "repeats": 7, "seed": 3, "leave_out_drawn": True, "chunk_memory_mb": chunk}
    found = single_shot_cmc(x, x, labels, labels, None, None, **options)
    assert found["valid_queries"] == 60 - len(set(labels.tolist()))
    for k in (1, 5):
        assert found[f"rank{k}"] == pytest.approx(naive_rounds(x, labels, k, 3, 7), abs=1e-12)
    assert 0 < found["rank1"] < found["rank5"] < 1


def test_an_identity_with_one_image_is_named():
    x, labels = np.eye(5), np.array([4, 4, 7, 9, 9])
    with pytest.raises(ValueError, match=r"1 identities have one image, the first is 7: .* Leave these identities out"):
        single_shot_cmc(x, x, labels, labels, None, None, leave_out_drawn=True)
