"""Threshold, rates, intervals and curve against loops over all pairs."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from bdbnet.checked import UnfitError
from bdbnet.evaluation.calibrating import CalibrationError, Comparison, calibrate, clopper_pearson
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.isotonic import falling_fit


def compared(identities, seed=0, spread=0.6):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), 4)
    cameras = np.tile([0, 0, 1, 2], identities)
    centres = rng.normal(size=(identities, 8))
    embeddings = (centres[labels] + spread * rng.normal(size=(len(labels), 8))).astype(np.float32)
    return Comparison(embeddings, embeddings, labels, labels, cameras, cameras, "drawn")


def pairs_by_loops(of):
    same, other = [], []
    for i, a in enumerate(of.query.astype(float)):
        for j, b in enumerate(of.gallery.astype(float)):
            away = np.sqrt(((a - b) ** 2).sum())
            if of.query_labels[i] != of.gallery_labels[j]:
                other.append(away)
            elif of.query_cameras[i] != of.gallery_cameras[j]:
                same.append(away)
    return np.array(same), np.array(other)


def test_threshold_and_rates_are_those_of_a_loop_over_all_pairs():
    first, second = compared(48).halves(seed=3)
    assert not {*first.query_labels} & {*second.query_labels}
    found = calibrate(first, second, fmr=0.01)
    _, other = pairs_by_loops(first)
    wanted = np.sort(other)[int(np.floor(0.01 * len(other)))]  # the first pair that is one too many
    assert found.threshold == pytest.approx(wanted, rel=2**-10)
    assert (other < found.threshold).mean() <= 0.01
    same, other = pairs_by_loops(second)
    assert found.reached.value == pytest.approx((other < found.threshold).mean(), abs=2 / len(other))
    assert found.true_positive_rate.value == pytest.approx((same < found.threshold).mean(), abs=2 / len(same))
    assert (found.held_out.positives, found.held_out.negatives) == (len(same), len(other))
    low, high = found.reached.interval
    assert low <= found.reached.value <= high
    assert Calibration.from_json(found.record()) == found


def test_an_interval_over_identities_is_wider_than_one_over_pairs():
    found = calibrate(*compared(60).halves(seed=1), fmr=0.01)
    pairs = found.held_out.negatives
    low, high = clopper_pearson(round(found.reached.value * pairs), pairs)
    assert found.reached.interval[1] - found.reached.interval[0] > high - low


def test_probabilities_fall_and_marks_follow_them():
    found = calibrate(*compared(48).halves(seed=3), fmr=0.01)
    away = np.linspace(0, 10, 200)
    assert (np.diff(found.probability(away)) <= 0).all()
    marks = found.marks(away)
    assert ((marks == "same") == (away < found.threshold)).all()
    assert (found.probability(away[marks == "not same"]) <= 0.05).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_falling_fit_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 5, 40) / 4, rng.uniform(0.1, 2, 40)
    own = IsotonicRegression(increasing=False).fit(np.arange(40), values, sample_weight=weights)
    assert falling_fit(values, weights) == pytest.approx(own.predict(np.arange(40)))


@pytest.mark.parametrize(
    ("identities", "message"), [(38, "^drawn: 19 identities on one side .*20 are needed"), (4, "2 identities")]
)
def test_fewer_than_20_identities_are_refused(identities, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(*compared(identities).halves(seed=0), fmr=0.1)


def test_rates_that_no_threshold_has_are_refused():
    halves = compared(48).halves(seed=0)
    with pytest.raises(CalibrationError, match="no threshold for fmr=1e-09"):
        calibrate(*halves, fmr=1e-9)
    labels = np.repeat(np.arange(50), 2)
    equal = np.zeros((100, 3), np.float32)
    alike = Comparison(equal, equal, labels, labels, None, None, "alike")
    with pytest.raises(CalibrationError, match="smallest distance"):
        calibrate(*alike.halves(seed=0), fmr=0.1)


def test_a_damaged_record_is_refused():
    record = calibrate(*compared(48).halves(seed=3), fmr=0.01).record()
    with pytest.raises(UnfitError, match="same length"):
        Calibration.from_json({**record, "distances": record["distances"][:-1]})


def test_another_distance_is_named():
    found = calibrate(*compared(48).halves(seed=3), fmr=0.01, made_for={"normalize": "none"})
    assert found.differences({"distance": "euclidean", "normalize": "none"}) == []
    assert found.differences({"distance": "cosine", "normalize": "none"}) == ["distance euclidean, not cosine"]


def test_identities_without_a_pair_make_no_interval_narrower():
    """Of 40 held-out identities three were seen twice, each near: three trials, not forty."""
    first = compared(60)
    rng = np.random.default_rng(9)
    queries = 50 * rng.normal(size=(40, 8)).astype(np.float32)
    gallery = np.concatenate([queries[:3] + 0.001, 50 * rng.normal(size=(40, 8)).astype(np.float32)])
    labels = np.concatenate([np.arange(100, 103), np.arange(200, 240)])
    second = Comparison(queries, gallery, np.arange(100, 140), labels, None, None, "few")
    found = calibrate(first, second, fmr=0.01)
    assert found.held_out.positives == 3
    assert found.true_positive_rate.value == 1
    assert found.true_positive_rate.interval == clopper_pearson(3, 3)


def test_distractors_weigh_in_the_interval_as_by_a_loop_over_draws():
    of = compared(25, seed=4)
    rng = np.random.default_rng(2)
    extra = rng.normal(size=(30, 8)).astype(np.float32)
    gallery, labels = np.concatenate([of.gallery, extra]), np.concatenate([of.gallery_labels, 1000 + np.arange(30)])
    more = Comparison(of.query, gallery, of.query_labels, labels, None, None, "more")
    found = calibrate(compared(30, seed=7), more, fmr=0.05, seed=3)
    away = np.sqrt(((more.query[:, None].astype(float) - gallery[None].astype(float)) ** 2).sum(2))
    other = more.query_labels[:, None] != labels[None]
    near = (away < found.threshold) & other
    draws = np.random.default_rng(3)
    people = draws.multinomial(25, np.full(25, 1 / 25), 1000)
    strangers = draws.multinomial(30, np.full(30, 1 / 30), 50)
    rates = []
    for one, two in zip(people[:50], strangers, strict=True):
        weights = one[more.query_labels][:, None] * np.concatenate([one[of.gallery_labels], two])[None]
        rates.append((weights * near).sum() / (weights * other).sum())
    low, high = found.reached.interval
    assert low - 0.02 < np.quantile(rates, 0.025)
    assert np.quantile(rates, 0.975) < high + 0.02
    assert found.reached.value == pytest.approx(near.sum() / other.sum(), abs=2 / other.sum())
