from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import Matches, positive_ranks, recall_at_k, reid_metrics, retrieval_metrics
from bdbnet.retrieval import ranks as ranks_module
from bdbnet.retrieval.matches import label_array

TINY_CHUNK = 1e-3  # MiB: a few queries at a time


@st.composite
def reid_cases(draw):
    """Whole-numbered embeddings in few dimensions, so that distances are exact and often equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images, dimensions = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 5))
    identities, cameras, spread = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))

    def side(count):
        rows = rng.integers(-spread, spread + 1, (count, dimensions)).astype(dtype)
        return rows, rng.integers(0, identities, count), rng.integers(0, cameras, count)

    (q, ql, qc), (g, gl, gc) = side(queries), side(images)
    gl[rng.random(images) < draw(st.sampled_from([0.0, 0.3]))] = -5  # distractors
    return q, g, ql, gl, qc, gc


def shuffled_case(seed=0, queries=23, images=61, dimensions=7, dtype=np.float64):
    rng = np.random.default_rng(seed)
    q, g = (rng.standard_normal((n, dimensions)).astype(dtype) for n in (queries, images))
    ql, gl = rng.integers(0, 8, queries), rng.integers(0, 9, images)
    return q, g, ql, gl, rng.integers(0, 3, queries), rng.integers(0, 3, images)


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.sampled_from([None, TINY_CHUNK]), st.sampled_from([None, 1, 4]))
def test_reid_equals_the_definition(naive, case, chunk, ap_at):
    expected = naive.reid(*case, ranks=(1, 3, 5), ap_at=ap_at)
    if expected is None:
        with pytest.raises(ValueError, match="no query has a match"):
            reid_metrics(*case, ranks=(1, 3, 5), ap_at=ap_at, chunk_memory_mb=chunk)
    else:
        found = reid_metrics(*case, ranks=(1, 3, 5), ap_at=ap_at, chunk_memory_mb=chunk)
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(reid_cases(), st.integers(1, 5))
def test_ranking_on_several_threads_changes_nothing(naive, case, rows):
    expected = naive.reid(*case)
    if expected is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks_module, "_ROWS", rows)
            patch.setattr(torch, "get_num_threads", lambda: 3)
            assert reid_metrics(*case) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.booleans())
def test_counting_as_on_a_gpu_gives_the_same_ranks(case, nearest_only):
    q, g, ql, gl, qc, gc = case
    matches = Matches(ql, label_array(gl, len(g), "labels"), qc, gc)
    distances = ((q[:, None] - g) ** 2).sum(2)
    here = positive_ranks([(0, distances.copy())], matches, nearest_only=nearest_only)
    there = positive_ranks([(0, torch.from_numpy(distances))], matches, nearest_only=nearest_only)
    assert there.ranks.tolist() == here.ranks.tolist()
    assert there.offsets.tolist() == here.offsets.tolist()


def test_long_rows_with_many_equal_distances():
    rng = np.random.default_rng(0)
    g = rng.integers(-400, 400, (40_000, 1)).astype(np.float32)
    gl = np.zeros(len(g), int)
    gl[rng.permutation(len(g))[:90]] = 1
    found = positive_ranks([(0, np.abs(g.T - 3))], Matches(np.array([1]), gl))
    assert found.ranks.tolist() == [
        place for place, j in enumerate(np.argsort(np.abs(g[:, 0] - 3), kind="stable"), 1) if gl[j]
    ]


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.booleans(), st.sampled_from([None, TINY_CHUNK]))
def test_recall_equals_the_definition(naive, case, separate, chunk):
    q, g, ql, gl, _, _ = case
    options = {"gallery": g, "gallery_labels": gl} if separate else {}
    expected = naive.recall(q, ql, (1, 2, 4), **options)
    if expected is None:
        with pytest.raises(ValueError, match="no query has a match"):
            recall_at_k(q, ql, (1, 2, 4), chunk_memory_mb=chunk, **options)
    else:
        found = recall_at_k(q, ql, (1, 2, 4), chunk_memory_mb=chunk, **options)
        assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.booleans(), st.sampled_from([None, TINY_CHUNK]))
def test_retrieval_metrics_equal_the_definition(naive, case, separate, chunk):
    q, g, ql, gl, _, _ = case
    options = {"gallery": g, "gallery_labels": gl} if separate else {}
    expected = naive.precision(q, ql, **options)
    if expected is None:
        with pytest.raises(ValueError, match="no query has a match"):
            retrieval_metrics(q, ql, chunk_memory_mb=chunk, **options)
    else:
        found = retrieval_metrics(q, ql, (1, 3), chunk_memory_mb=chunk, **options)
        assert {name: found[name] for name in ("map@r", "r_precision")} == pytest.approx(expected, abs=1e-12)
        recall = recall_at_k(q, ql, (1, 3), **options)
        assert {name: found[name] for name in recall} == recall


@settings(max_examples=60, deadline=None)
@given(reid_cases())
def test_cosine_equals_euclidean_between_unit_vectors(case):
    q, g, *rest = case
    rng = np.random.default_rng(0)
    q, g = (x + rng.normal(0, 0.3, x.shape) for x in (q, g))  # no zeros, no ties that rounding could break
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g)]
    if q.shape[1] == 1:  # directions tie: all are +1 or -1
        return
    try:
        expected = reid_metrics(*unit, *rest)
    except ValueError:
        return
    assert reid_metrics(q, g, *rest, distance="cosine") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("block", range(4))
def test_hundreds_of_small_cases_equal_the_definition(naive, block):
    for seed in range(150 * block, 150 * (block + 1)):
        rng = np.random.default_rng(seed)
        queries, images, dimensions, identities, cameras = rng.integers(1, [10, 41, 6, 7, 5])
        rows = [
            rng.integers(-2, 3, (n, dimensions)).astype((np.float32, np.float64)[seed % 2]) for n in (queries, images)
        ]
        labels = [rng.integers(0, identities, n) for n in (queries, images)]
        labels[1][rng.random(images) < 0.2] = -5  # distractors
        case = (*rows, *labels, *(rng.integers(0, cameras, n) for n in (queries, images)))
        measured: list[tuple[dict | None, Callable[[], dict]]] = [
            (naive.reid(*case), lambda case=case: reid_metrics(*case)),
            (
                naive.precision(case[1], case[3]),
                lambda case=case: retrieval_metrics(case[1], case[3]),
            ),
        ]
        for expected, measure in measured:
            if expected is None:
                with pytest.raises(ValueError, match="no query has a match"):
                    measure()
            else:
                found = measure()
                assert all(abs(found[name] - value) < 1e-12 for name, value in expected.items()), seed


def test_order_of_queries_does_not_matter():
    q, g, ql, gl, qc, gc = shuffled_case()
    order = np.random.default_rng(1).permutation(len(q))
    shuffled = reid_metrics(q[order], g, ql[order], gl, qc[order], gc)
    assert shuffled == pytest.approx(reid_metrics(q, g, ql, gl, qc, gc), abs=1e-12)


@pytest.mark.parametrize("chunk", [0.0006, 0.003, 0.01, 1, 1000])
def test_size_of_chunks_does_not_matter(chunk):
    case = shuffled_case(queries=150)
    assert reid_metrics(*case, chunk_memory_mb=chunk) == pytest.approx(reid_metrics(*case), abs=1e-12)


def test_single_precision_agrees_with_double():
    case = shuffled_case(queries=50, images=200)
    single = reid_metrics(case[0].astype(np.float32), case[1].astype(np.float32), *case[2:])
    assert single == pytest.approx(reid_metrics(*case), abs=1e-3)


def test_average_precision_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    q, g, ql, gl, qc, gc = shuffled_case(seed=3)
    expected = []
    for row, label, camera in zip(q, ql, qc, strict=True):
        kept = ~((gl == label) & (gc == camera))
        if (gl[kept] == label).any():
            scores = -np.linalg.norm(g[kept] - row, axis=1)
            expected.append(sklearn.average_precision_score(gl[kept] == label, scores))
    assert reid_metrics(q, g, ql, gl, qc, gc)["mAP"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_cut_average_precision_still_divides_by_all_matches():
    gallery = np.arange(60.0)[:, None]
    labels = np.full(60, 2)
    labels[[0, 55]] = 1
    case = (np.zeros((1, 1)), gallery, [1], labels, [0], np.ones(60, int))
    assert reid_metrics(*case, ap_at=50)["mAP"] == pytest.approx(0.5)
    assert reid_metrics(*case)["mAP"] == pytest.approx((1 + 2 / 56) / 2)


@pytest.mark.parametrize("dimensions", [33, 257])
def test_repeated_embeddings_are_ranked_in_gallery_order(dimensions):
    # A plain matrix product rounds equal columns differently here and would break the ties at random.
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((1, dimensions), dtype=np.float32), 501, axis=0)
    labels = np.zeros(501, int)
    labels[[100, 499]] = 1
    query = rng.standard_normal((7, dimensions), dtype=np.float32)
    found = reid_metrics(query, gallery, np.ones(7, int), labels, None, None, ranks=(100, 101))
    assert found["rank100"] == 0
    assert found["rank101"] == 1
    assert found["mINP"] == pytest.approx(2 / 500)


def test_all_zero_embeddings_are_ranked_in_gallery_order():
    found = recall_at_k(np.zeros((4, 8), np.float32), [0, 1, 1, 0], ks=(1, 2, 3))
    assert found == {"recall@1": 0.25, "recall@2": 0.75, "recall@3": 1.0, "valid_queries": 4}


def strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((len(x), 2 * x.shape[1]), x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


LAYOUTS = {
    "column-major": np.asfortranarray,
    "strided": strided,
    "slice of columns": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "big-endian": lambda x: x.astype(">f8"),
    "torch": torch.from_numpy,
    "torch transposed": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).T,
    "torch with gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_the_inputs_does_not_matter(layout):
    q, g, *rest = shuffled_case()
    form = LAYOUTS[layout]
    labels = [torch.from_numpy(x) if layout.startswith("torch") else x.astype(np.int32) for x in rest]
    assert reid_metrics(form(q), form(g), *labels) == pytest.approx(reid_metrics(q, g, *rest), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    q, g, *rest = shuffled_case()
    halves = [torch.from_numpy(x).to(dtype) for x in (q, g)]
    assert reid_metrics(*halves, *rest) == reid_metrics(*(x.float() for x in halves), *rest)


def test_a_set_searched_in_itself_leaves_out_each_query():
    _, g, _, gl, _, _ = shuffled_case()
    found = reid_metrics(g, g, gl, gl, None, None, ranks=(1, 2, 4))
    assert [found[f"rank{k}"] for k in (1, 2, 4)] == list(recall_at_k(g, gl, ks=(1, 2, 4)).values())[:3]


def test_a_class_with_one_image_is_no_valid_query():
    assert recall_at_k(np.array([[0.0], [1.0], [5.0]]), [4, 4, 9])["valid_queries"] == 2


def test_inputs_stay_as_they_were():
    case = shuffled_case()
    copies = [x.copy() for x in case]
    reid_metrics(*case)
    assert all(np.array_equal(x, y) for x, y in zip(case, copies, strict=True))


def changed(**changes):
    q, g, ql, gl, qc, gc = shuffled_case()
    return {
        "query": q,
        "gallery": g,
        "query_labels": ql,
        "gallery_labels": gl,
        "query_cameras": qc,
        "gallery_cameras": gc,
        **changes,
    }


def with_value(x: np.ndarray, row: int, value: float) -> np.ndarray:
    x = x.copy()
    x[row, 2] = value
    return x


Q, G, *_ = shuffled_case()
BAD = {
    "query embedding 5 contains NaN": {"query": with_value(Q, 5, np.nan)},
    "gallery embedding 60 contains NaN": {"gallery": with_value(G, 60, -np.inf)},
    "query embedding 3 has a norm too large for float32": {
        "query": with_value(Q, 3, 1e20).astype(np.float32),
        "gallery": G.astype(np.float32),
    },
    "query embeddings have 6 dimensions, gallery embeddings 7": {"query": Q[:, :6]},
    "there are no gallery embeddings": {"gallery": G[:0]},
    "there are no query embeddings": {"query": Q[:0]},
    "query embeddings have no dimensions": {"query": Q[:, :0]},
    r"query embeddings must have shape \(images": {"query": Q[0]},
    "must be floating point, got int64": {"gallery": G.astype(np.int64)},
    r"query labels must have shape \(23,\)": {"query_labels": np.zeros(22, int)},
    r"gallery cameras must have shape \(61,\)": {"gallery_cameras": np.zeros((61, 1), int)},
    "gallery labels must be integers": {"gallery_labels": np.zeros(61)},
    "give both or none": {"query_cameras": None},
    "no query has a match": {"query_labels": np.full(23, 99)},
    "ranks must be": {"ranks": (0, 1)},
    "ap_at must be": {"ap_at": 0},
    "chunk_memory_mb must be": {"chunk_memory_mb": 0},
    "chunk_memory_mb=0.0005 is too small: one query against 61 gallery images": {"chunk_memory_mb": 5e-4},
    "distance must be one of euclidean, cosine": {"distance": "manhattan"},
    "query embedding 4 is all zeros": {"query": np.where(np.arange(23)[:, None] == 4, 0, Q), "distance": "cosine"},
    "gallery embedding 0 is all zeros": {"gallery": np.where(np.arange(61)[:, None] < 2, 0, G), "distance": "cosine"},
    "rerank has no setting k3": {"rerank": {"k3": 1}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        reid_metrics(**changed(**BAD[message]))


def test_labels_are_checked_before_anything_is_re_ranked(monkeypatch):
    monkeypatch.setattr("bdbnet.retrieval.rerank.nearest_neighbours", lambda *_, **__: pytest.fail("re-ranked"))
    with pytest.raises(ValueError, match=r"query labels must have shape \(23,\)"):
        reid_metrics(**changed(query_labels=np.zeros(22, int), rerank=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gallery": G}, "needs both"),
        ({"labels": np.arange(23)}, "no class has a second image"),
        ({"labels": np.zeros(5, int)}, r"labels must have shape \(23,\)"),
        ({"ks": ()}, "ks must be"),
    ],
)
def test_bad_input_to_recall_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(**{"embeddings": Q, "labels": np.zeros(23, int), **options})
