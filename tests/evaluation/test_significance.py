import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bdbnet.evaluation import significance
from bdbnet.evaluation.significance import bootstrap_interval, paired_difference


def grouped(seed: int, identities: int = 30, spread: float = 1.0):
    """Values that identities share in part, one to six queries each."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(identities), rng.integers(1, 7, identities))
    return spread * rng.standard_normal(identities)[owner] + 0.3 * rng.standard_normal(len(owner)), owner


def naive_means(values, owner, repeats, seed):
    """Means of the bootstrap by listing every drawn query."""
    names = sorted(set(owner.tolist()))
    drawn = np.random.default_rng(seed).integers(0, len(names), (repeats, len(names)), np.int32)
    return [np.mean(np.concatenate([values[owner == names[place]] for place in row])) for row in drawn]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.integers(100, 120), st.sampled_from([2**22, 1]))
def test_the_interval_is_that_of_drawing_whole_identities(seed, identities, at_once):
    values, owner = grouped(seed, identities)
    means = naive_means(values, owner, 40, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "_DRAWS_AT_ONCE", at_once)
        found = bootstrap_interval(values, owner, repeats=40, level=0.8, seed=seed)
    assert found == pytest.approx(np.quantile(means, [0.1, 0.9]))


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("identities", [2, 10, 99])
def test_of_fewer_than_100_identities_with_a_query_each_it_is_the_t_interval(identities, level):
    values = np.random.default_rng(identities).random(identities)
    expected = stats.t.interval(level, identities - 1, values.mean(), stats.sem(values))
    assert bootstrap_interval(values, np.arange(identities), level=level) == pytest.approx(expected)
    assert bootstrap_interval(values, np.arange(identities), seed=1) == bootstrap_interval(
        values, np.arange(identities), seed=2
    )


def test_queries_of_one_identity_count_as_one_observation_of_the_t_interval():
    """The jackknife written out: means with each identity left out; copies of every query change nothing."""
    values, owner = grouped(2, 12)
    without = [np.mean(values[owner != identity]) for identity in range(12)]
    error = (11 / 12 * sum((mean - np.mean(without)) ** 2 for mean in without)) ** 0.5
    reach = stats.t.ppf(0.975, 11) * error
    found = bootstrap_interval(values, owner)
    assert found == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert bootstrap_interval(np.repeat(values, 3), np.repeat(owner, 3)) == pytest.approx(found)


def test_the_t_interval_ends_where_the_metric_does():
    values = np.array([1.0, 1.0, 0.0])
    low, high = bootstrap_interval(values, np.arange(3), limits=(0, 1))
    assert (low, high) == (0, 1)
    assert bootstrap_interval(values, np.arange(3))[1] > 1
    assert paired_difference(values, 1 - values, np.arange(3), limits=(-1, 1)).interval == (-1, 1)


@pytest.mark.parametrize("identities", [5, 10, 30])
def test_the_interval_of_few_identities_covers_the_truth_as_often_as_it_says(identities):
    inside = 0
    for seed in range(1000):
        low, high = bootstrap_interval(*grouped(seed, identities))
        inside += low <= 0 <= high
    assert 0.92 <= inside / 1000 <= 0.975


def test_names_and_order_of_identities_do_not_matter_beyond_the_draws():
    values, owner = grouped(3)
    order = np.random.default_rng(0).permutation(len(values))
    assert bootstrap_interval(values[order], owner[order]) == pytest.approx(bootstrap_interval(values, owner))
    assert bootstrap_interval(values, 7 * owner - 20) == bootstrap_interval(values, owner)


def test_queries_without_a_value_are_left_out():
    values, owner = grouped(4)
    more = np.append(values, [np.nan, np.nan]), np.append(owner, [0, 99])
    assert bootstrap_interval(*more) == bootstrap_interval(values, owner)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        low, high = bootstrap_interval(*grouped(seed, 100), repeats=300, seed=seed)
        inside += low <= 0 <= high
    assert 0.89 <= inside / 200 <= 0.985


def test_drawing_queries_instead_of_identities_would_be_too_sure():
    values, owner = grouped(1, 40)
    low, high = bootstrap_interval(values, owner)
    low_single, high_single = bootstrap_interval(values, np.arange(len(values)))
    assert high - low > 1.3 * (high_single - low_single)


def test_the_p_value_is_near_that_of_all_signs():
    values, owner = grouped(8, 9)
    other = values - 0.6
    other[owner % 3 == 0] += 1.1
    found = paired_difference(values, other, owner, repeats=20_000)
    sums = np.array([(values - other)[owner == identity].sum() for identity in range(9)])
    totals = np.array([np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=9)])
    exact = np.mean(np.abs(totals) >= abs(sums.sum()) - 1e-9)
    assert 0.01 < exact < 0.9
    assert found.p_value == pytest.approx(exact, abs=0.015)
    assert found.difference == pytest.approx(np.mean(values - other))
    assert found.identities == 9
    assert found.queries == len(values)


def test_equals_differ_by_chance_about_as_often_as_the_p_value_says():
    small = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, owner = grouped(seed)
        a, b = rng.standard_normal((2, len(owner)))
        small += paired_difference(a, b, owner, repeats=200, seed=seed).p_value <= 0.1
    assert 0.05 <= small / 200 <= 0.16


def test_swapping_sides_changes_the_sign_alone():
    a, owner = grouped(2)
    b = a + np.random.default_rng(0).standard_normal(len(a))
    here, there = (paired_difference(x, y, owner, repeats=500) for x, y in ((a, b), (b, a)))
    assert there.difference == pytest.approx(-here.difference)
    assert there.interval == pytest.approx((-here.interval.high, -here.interval.low))
    assert there.p_value == here.p_value


def test_a_clear_difference_and_none_at_all():
    a, owner = grouped(2)
    clear = paired_difference(a + 1, a, owner, repeats=999)
    assert clear.p_value == 1 / 1000
    assert clear.interval.low > 0.99
    same = paired_difference(a, a, owner, repeats=100)
    assert (same.difference, same.p_value) == (0, 1)


def test_queries_that_count_on_one_side_only_are_left_out():
    a, owner = grouped(5)
    b = a - 0.2
    missing = a.copy()
    missing[owner == 3] = np.nan
    found = paired_difference(missing, b, owner, repeats=100)
    kept = owner != 3
    assert found == paired_difference(a[kept], b[kept], owner[kept], repeats=100)


@pytest.mark.parametrize(
    ("values", "identities", "settings", "message"),
    [
        ([0.5, 1.0], [4, 4], {}, "needs at least two of them, got 1 whose queries count"),
        ([np.nan, 1.0], [4, 5], {}, "got 1 whose queries count"),
        ([0.5, 1.0], [4], {}, r"one entry per query, got shapes \(2,\) and \(1,\)"),
        ([0.5, 1.0], [4, 5], {"repeats": 0}, "repeats must be at least 1, got 0"),
        ([0.5, 1.0], [4, 5], {"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
    ],
)
def test_errors_say_what_is_wrong(values, identities, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array(values), np.array(identities), **settings)
    with pytest.raises(ValueError, match=message):
        paired_difference(np.array(values), np.zeros(len(values)), np.array(identities), **settings)


def test_two_measurements_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"the same queries, got shapes \(2,\) and \(3,\)"):
        paired_difference(np.zeros(2), np.zeros(3), np.zeros(2, int))
