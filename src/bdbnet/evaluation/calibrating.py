"""Choice of a threshold on some identities and its test on others: rates with intervals, curve, reliability."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import betaincinv

from bdbnet.datasets import Manifest
from bdbnet.evaluation.calibration import Calibration, Measured, Pairs, Reliable
from bdbnet.evaluation.isotonic import falling_fit
from bdbnet.evaluation.verification import PairCounts, at_false_positive_rate, pair_distances
from bdbnet.results import Result
from bdbnet.retrieval import Evaluated, Matches, distance_blocks

#: Identities on either side below which nothing is calibrated.
LEAST_IDENTITIES = 20
_BINS = 10  # of the reliability
_KNOTS = 200  # of the curve
_LEVEL = 0.95
_AT_ONCE = 50  # draws of a bootstrap


class CalibrationError(ValueError):
    """Embeddings that no threshold can be chosen on, or one that does not fit; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Images whose pairs are counted: each of the queries with each of the gallery.

    Attributes:
        query, gallery: (Q, D) and (G, D); one object where a set is compared with itself.
        query_labels, gallery_labels: int64 (Q,) and (G,). A gallery image whose label no query has is a distractor: somebody else.
        query_cameras, gallery_cameras: int64, or None for both: pairs of one identity under one camera are left out.
        data, fingerprint, split: what they are of.
    """

    query: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    query_cameras: np.ndarray | None
    gallery_cameras: np.ndarray | None
    data: str = ""
    fingerprint: str = ""
    split: str = ""

    @property
    def one_set(self) -> bool:
        """Whether queries and gallery are one list of images."""
        return self.query is self.gallery

    @property
    def identities(self) -> int:
        """How many the queries show."""
        return len(np.unique(self.query_labels))

    def matches(self) -> Matches:
        """Which pairs show one identity, and which do not count."""
        return Matches(
            self.query_labels, self.gallery_labels, self.query_cameras, self.gallery_cameras, same_set=self.one_set
        )

    def halves(self, seed: int) -> tuple["Comparison", "Comparison"]:
        """The pairs within one random half of the identities, and within the other; distractors are divided one by one."""
        rng = np.random.default_rng(seed)
        identities = np.unique(self.query_labels)
        first = rng.permutation(identities)[: (len(identities) + 1) // 2]
        queries = np.isin(self.query_labels, first)
        gallery = np.isin(self.gallery_labels, first)
        distractor = ~np.isin(self.gallery_labels, identities)
        gallery[distractor] = rng.permutation(np.arange(distractor.sum()) % 2 == 0)
        return self._of(queries, gallery), self._of(~queries, ~gallery)

    def _of(self, queries: np.ndarray, gallery: np.ndarray) -> "Comparison":
        query = self.query[queries]
        cameras = self.query_cameras, self.gallery_cameras
        return Comparison(
            query,
            query if self.one_set else self.gallery[gallery],
            self.query_labels[queries],
            self.gallery_labels[gallery],
            None if cameras[0] is None else cameras[0][queries],
            None if cameras[1] is None else cameras[1][gallery],
            self.data,
            self.fingerprint,
            self.split,
        )


def calibrate(
    chosen_on: Comparison,
    held_out: Comparison,
    *,
    fmr: float = 1e-3,
    distance: str = "euclidean",
    prior: float = 0.5,
    made_for: Mapping[str, Any] | None = None,
    seed: int = 0,
    repeats: int = 1000,
) -> Calibration:
    """Choose the largest threshold whose false match rate on one set of identities is at most `fmr`; measure it on another.

    A false match is a pair of two identities nearer than the threshold. The intervals are percentile bootstraps over identities:
    of each draw an identity counts as often as it was drawn, as query and as gallery image, for pairs that share an image or a
    person are no independent observations (a binomial interval over pairs would be many times too narrow). Where no pair, or
    every pair, lies below the threshold, a bootstrap can't say anything: the interval is Clopper's and Pearson's over as many
    trials as there are independent pairs: half of the identities for two people, each identity for one.

    The curve is an isotonic regression of "same" on the distance over all pairs, pairs of one identity weighted so that they are
    the share `prior` of all.

    Raises:
        CalibrationError: fewer than 20 identities on either side, too few pairs of two identities for `fmr`, none of one.
    """
    for of in (chosen_on, held_out):
        require_identities(of.identities, of.data or "the data", of.split)
    if not (0 < fmr < 1 and 0 < prior < 1):
        raise CalibrationError(f"fmr={fmr:g} and prior={prior:g}: give numbers between 0 and 1")
    counts = _counted(chosen_on, distance)
    try:
        point = at_false_positive_rate(counts, fmr)
    except ValueError as error:
        raise CalibrationError(
            f"{chosen_on.data or 'the data'}: no threshold for fmr={fmr:g}: {error}. Give a larger fmr, or more images"
        ) from error
    other = _counted(held_out, distance)
    reached, true_rate = _rates(held_out, distance, point.threshold, seed, repeats)
    distances, probabilities = curve(counts, prior)
    return Calibration(
        threshold=point.threshold,
        made_for=dict(made_for or {}) | {"distance": distance},
        fmr=fmr,
        chosen_fmr=point.false_positive_rate,
        reached=reached,
        true_positive_rate=true_rate,
        chosen_on=_pairs(chosen_on, counts),
        held_out=_pairs(held_out, other),
        prior=prior,
        distances=distances.tolist(),
        probabilities=probabilities.tolist(),
        reliability=reliability(other, distances, probabilities, prior),
        seed=seed,
    )


def identities_of(table: pd.DataFrame) -> int:
    """How many identities the queries among some images show: all images where none is a query."""
    queries = table["split"].isin(("query", "test"))
    return int(table.loc[queries if queries.any() else slice(None), "label"].nunique())


def require_identities(count: int, data: str, of: str) -> None:
    """Raise CalibrationError where so many identities on one side are too few, which is known before anything is embedded."""
    if count < LEAST_IDENTITIES:
        raise CalibrationError(
            f"{data}{of and f' {of}'}: {count} identities on one side of the calibration; {LEAST_IDENTITIES} are needed to "
            "choose a threshold on, and as many others to test it on. Give images of more people"
        )


def calibrate_evaluated(
    evaluated: Evaluated, result: Result, *, fmr: float, made_for: Mapping[str, Any]
) -> Calibration:
    """Calibrate on one half of the identities of an evaluation, and test on the other; by the distance of its search.

    Distances are between the embeddings, neither re-ranked nor expanded.

    Args:
        result: of the evaluation: says the data, and the seed of halves and draws.
        made_for: settings of the embedding; the distance is filled in.
    """
    matches = evaluated.matches
    query = evaluated.query.numpy()
    whole = Comparison(
        query,
        query if evaluated.gallery is evaluated.query else evaluated.gallery.numpy(),
        matches.query_labels,
        matches.gallery_labels,
        matches.query_cameras,
        matches.gallery_cameras,
        str(result.data["name"]),
        str(result.data["fingerprint"]),
        "test",
    )
    distance = evaluated.search.distance
    return calibrate(*whole.halves(result.seed), fmr=fmr, distance=distance, made_for=made_for, seed=result.seed)


def _blocks(of: Comparison, distance: str) -> Iterator[tuple[int, np.ndarray]]:
    return distance_blocks(of.query, of.gallery, distance=distance, absolute=True, chunk_memory_mb=64)


def _counted(of: Comparison, distance: str) -> PairCounts:
    counts = pair_distances(_blocks(of, distance), of.matches()).everything
    if not counts.positives.any():
        raise CalibrationError(
            f"{of.data or 'the data'}: no two images of one identity{'' if of.query_cameras is None else ' under two cameras'}: "
            "give images of people who were seen twice"
        )
    return counts


def _pairs(of: Comparison, counts: PairCounts) -> Pairs:
    return Pairs(
        of.data, of.fingerprint, of.split, of.identities, int(counts.positives.sum()), int(counts.negatives.sum())
    )


def comparison_of(embeddings: np.ndarray, table: pd.DataFrame, manifest: Manifest, split: str) -> Comparison:
    """The pairs of a part of a data set, of embeddings (N, D): of the test images each query with each gallery image, else all with
    all."""
    is_query = table["split"].isin(("query",)).to_numpy()
    query = gallery = np.arange(len(table))
    if is_query.any():
        query, gallery = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    labels, cameras = table["label"].to_numpy(), table["camera"].to_numpy() if manifest.has_cameras else None
    own = embeddings if query is gallery else embeddings[query]
    return Comparison(
        own,
        own if query is gallery else embeddings[gallery],
        labels[query],
        labels[gallery],
        None if cameras is None else cameras[query],
        None if cameras is None else cameras[gallery],
        manifest.name,
        manifest.fingerprint,
        split,
    )


# Rates with intervals


def _rates(of: Comparison, distance: str, threshold: float, seed: int, repeats: int) -> tuple[Measured, Measured]:
    """False match rate and true positive rate."""
    identities, query_group = np.unique(of.query_labels, return_inverse=True)
    place = np.minimum(np.searchsorted(identities, of.gallery_labels), len(identities) - 1)
    distractor = identities[place] != of.gallery_labels
    gallery_group = place.copy()
    gallery_group[distractor] = len(identities) + np.arange(distractor.sum())  # each is somebody else
    groups = len(identities) + int(distractor.sum())
    same_near, same_all = np.zeros(len(identities)), np.zeros(len(identities))
    found: list[tuple[np.ndarray, np.ndarray]] = []  # pairs that are near, by group; few of all there are
    matches = of.matches()
    for begin, block in _blocks(of, distance):
        hits = block < np.float32(threshold)
        for row, query in enumerate(range(begin, begin + len(block))):
            group = query_group[query]
            right, _ = matches.of(query)
            same_near[group] += np.count_nonzero(hits[row, right])
            same_all[group] += len(right)
            others = gallery_group[hits[row]]
            others = others[others != group]  # pairs of one identity
            found.append((np.full(len(others), group), others))
    rows, columns = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    near = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(identities), groups))
    false = _bootstrapped(near, np.bincount(query_group), np.bincount(gallery_group, minlength=groups), seed, repeats)
    weights = np.concatenate([*_draws(len(identities), 0, seed, repeats)])
    total = (weights @ same_all).clip(1e-300)
    true = _measured(same_near.sum(), same_all.sum(), (weights @ same_near) / total, int(np.count_nonzero(same_all)))
    return false, true


def _bootstrapped(near: csr_array, queries: np.ndarray, gallery: np.ndarray, seed: int, repeats: int) -> Measured:
    """The false match rate, whose draws weigh an identity's rows and columns alike, and distractors as columns of their own.

    Args:
        near: (identities, groups) pairs of two people that count as one.
        queries, gallery: images of each identity, and of each group.
    """
    identities, groups = near.shape
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    own = queries * gallery[:identities]  # pairs of one identity
    draws = []
    for weights in _draws(identities, groups - identities, seed, repeats):
        rows = weights[:, :identities]
        counted = ((near.T @ rows.T).T * weights).sum(1)
        total = (rows @ queries) * (weights @ gallery) - (rows * rows) @ own
        draws.append(counted / total.clip(1e-300))
    pairs = queries.sum() * gallery.sum() - own.sum()
    return _measured(near.sum(), pairs, np.concatenate(draws), identities // 2)


def _draws(identities: int, distractors: int, seed: int, repeats: int) -> Iterator[np.ndarray]:
    """How often each identity, and each distractor, is in each draw: (some draws, identities + distractors).

    Of half a million distractors all draws at once would fill gigabytes.
    """
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(identities, np.full(identities, 1 / identities), repeats).astype(np.float64)
    for begin in range(0, repeats, _AT_ONCE):
        part = rows[begin : begin + _AT_ONCE]
        if distractors:
            others = rng.multinomial(distractors, np.full(distractors, 1 / distractors), len(part))
            part = np.concatenate([part, others], axis=1)
        yield part


def _measured(hits: float, pairs: float, draws: np.ndarray, independent: int) -> Measured:
    value = float(hits / pairs)
    if 0 < hits < pairs:
        low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Measured(value, (float(low), float(high)), "bootstrap")
    low, high = clopper_pearson(0 if hits == 0 else independent, independent)
    return Measured(value, (low, high), "clopper-pearson")


def clopper_pearson(hits: int, trials: int, level: float = _LEVEL) -> tuple[float, float]:
    """Exact confidence interval of a binomial share (Clopper and Pearson 1934).

    >>> [round(end, 4) for end in clopper_pearson(0, 100)]
    [0.0, 0.0362]
    """
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, trials - hits + 1, tail))
    high = 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, 1 - tail))
    return low, high


# Probabilities


def curve(counts: PairCounts, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances and probabilities of the same identity (K,) by isotonic regression over all pairs.

    Args:
        counts: of the pairs.
        prior: share of pairs of one identity that the probabilities are for.
    """
    same = prior * counts.positives / max(1, counts.positives.sum())
    other = (1 - prior) * counts.negatives / max(1, counts.negatives.sum())
    weights = same + other
    fitted = falling_fit(same / weights, weights)
    # Both ends of every step; between steps the line is straight.
    change = np.flatnonzero(np.diff(fitted) != 0)
    ends = np.unique(np.concatenate([[0], change, change + 1, [len(fitted) - 1]]))
    if len(ends) > _KNOTS:  # evenly spread over distances and over probabilities
        x, y = counts.thresholds[ends], fitted[ends]
        wanted = [np.searchsorted(x, np.linspace(x[0], x[-1], _KNOTS // 2))]
        wanted.append(np.searchsorted(-y, np.linspace(-y[0], -y[-1], _KNOTS // 2)))
        kept = np.unique(np.concatenate([[0], *wanted, [len(ends) - 1]]))
        ends = ends[kept[kept < len(ends)]]
    return counts.thresholds[ends], fitted[ends]


def reliability(counts: PairCounts, distances: np.ndarray, probabilities: np.ndarray, prior: float) -> list[Reliable]:
    """Pairs by their predicted probability, in ten bins of equal width; weighted as for the curve, which goes through
    `probabilities` (n,) at `distances` (n,)."""
    predicted = np.interp(counts.thresholds, distances, probabilities)
    same = prior * counts.positives / max(1, counts.positives.sum())
    other = (1 - prior) * counts.negatives / max(1, counts.negatives.sum())
    place = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
    found = []
    for number in range(_BINS):
        of = place == number
        weight = float((same + other)[of].sum())
        if weight > 0:
            mean = float((predicted * (same + other))[of].sum() / weight)
            pairs = int((counts.positives + counts.negatives)[of].sum())
            found.append(Reliable(min(1.0, mean), min(1.0, float(same[of].sum()) / weight), pairs))
    return found
