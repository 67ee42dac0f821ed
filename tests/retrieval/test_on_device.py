"""The path of a GPU's embeddings, run by tensors on the CPU that are kept from NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bdbnet.retrieval import (
    KReciprocal,
    Matches,
    Search,
    device_knn,
    device_ranks,
    k_reciprocal_rerank,
    matrices,
    positive_ranks,
    rank_queries,
    recall_at_k,
    reid_metrics,
    retrieval_metrics,
    single_shot_cmc,
)
from bdbnet.retrieval.device_knn import smallest_columns
from bdbnet.retrieval.knn import nearest_neighbours

FACTS = ("matches", "first_rank", "last_rank", "match", "negative")


@pytest.fixture
def on_device(monkeypatch):
    """Calls a function with tensors in place of arrays, which stay tensors as those on a GPU do."""

    def call(function, *arrays, **options):
        with monkeypatch.context() as patch:
            patch.setattr(matrices, "_NUMPY_DEVICES", ())
            tensors = {id(array): torch.from_numpy(array) for array in arrays}
            return function(*(tensors[id(array)] for array in arrays), **options)

    return call


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images, people = draw(st.integers(1, 7)), draw(st.integers(1, 300)), draw(st.integers(1, 5))
    q, g = (rng.integers(-2, 3, (n, draw(st.integers(3, 3)))).astype(np.float32) for n in (queries, images))
    labels = [rng.integers(0, people, n) for n in (queries, images)]
    cameras = [rng.integers(0, 3, n) for n in (queries, images)]
    return q, g, labels, cameras


def quick(function):
    return settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        function
    )


@quick
@given(cases(), st.sampled_from(["euclidean", "cosine"]), st.sampled_from([None, 0.02]), st.sampled_from([64, 0]))
def test_metrics_are_those_of_the_cpu(on_device, case, distance, chunk, sorted_from):
    q, g, (ql, gl), (qc, gc) = case
    if distance == "cosine":  # of distinct directions: of equal ones rounding decides
        rng = np.random.default_rng(len(g))
        q, g = (rng.standard_normal((len(side), 6)) for side in (q, g))
    tags = {"query_labels": ql, "gallery_labels": gl, "query_cameras": qc, "gallery_cameras": gc}
    ways = [
        (reid_metrics, (q, g), tags | {"ranks": (1, 3)}),
        (
            reid_metrics,
            (g, g),
            {"query_labels": gl, "gallery_labels": gl, "query_cameras": None, "gallery_cameras": None},
        ),
        (recall_at_k, (g,), {"labels": gl, "ks": (1, 4)}),
        (retrieval_metrics, (g,), {"labels": gl, "ks": (1, 4)}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_ranks, "_SORTED_FROM", sorted_from)
        for function, sets, options in ways:
            options = options | {"distance": distance, "chunk_memory_mb": chunk}
            try:
                expected = function(*sets, **options)
            except ValueError:
                with pytest.raises(ValueError, match="has a match"):
                    on_device(function, *sets, **options)
            else:
                assert on_device(function, *sets, **options) == pytest.approx(expected, abs=1e-12)


@quick
@given(cases(), st.integers(1, 40), st.booleans(), st.sampled_from([None, 0.02]))
def test_lists_facts_and_camera_pairs_are_those_of_the_cpu(on_device, case, k, same_set, chunk):
    q, g, (ql, gl), (qc, gc) = case
    if same_set:
        q, ql, qc = g, gl, gc
    matches = Matches(ql, gl, qc, gc, same_set=same_set)
    search = Search(chunk_memory_mb=chunk)
    options = {"matches": matches, "search": search, "top_k": k, "facts": True, "camera_pairs": True}
    here, there = rank_queries(q, g, **options), on_device(rank_queries, q, g, **options)
    np.testing.assert_array_equal(there.ranks.ranks, here.ranks.ranks)
    np.testing.assert_array_equal(there.ranks.offsets, here.ranks.offsets)
    np.testing.assert_array_equal(there.top_k.indices, here.top_k.indices)
    np.testing.assert_allclose(there.top_k.distances, here.top_k.distances, rtol=1e-6)
    assert there.top_k.distances.dtype == here.top_k.distances.dtype
    for name, ours, theirs in zip(here.facts._fields, there.facts, here.facts, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=name)
    for ours, theirs in zip(there.camera_pairs, here.camera_pairs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@quick
@given(cases(), st.integers(1, 40), st.sampled_from([None, 0.02]))
def test_the_next_camera_alone_and_single_shots_are_those_of_the_cpu(on_device, case, k, chunk):
    q, g, (ql, gl), (qc, gc) = case
    options = {"search": Search(chunk_memory_mb=chunk), "top_k": k, "facts": True}
    options["matches"] = Matches(ql, gl, qc, gc, next_camera=True)
    here, there = rank_queries(q, g, **options), on_device(rank_queries, q, g, **options)
    np.testing.assert_array_equal(there.ranks.ranks, here.ranks.ranks)
    np.testing.assert_array_equal(there.top_k.indices, here.top_k.indices)
    for name, ours, theirs in zip(here.facts._fields, there.facts, here.facts, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=name)
    labels = np.repeat(np.arange(1 + len(g) // 2), 2)[: len(g) - len(g) % 2]
    if len(labels):
        own = np.ascontiguousarray(g[: len(labels)])
        options = {"query_labels": labels, "gallery_labels": labels, "query_cameras": None, "gallery_cameras": None}
        options |= {"leave_out_drawn": True, "repeats": 3, "chunk_memory_mb": chunk}
        assert on_device(single_shot_cmc, own, own, **options) == single_shot_cmc(own, own, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("nearest_only", [False, True])
def test_ranks_of_many_equal_distances_in_several_parts(monkeypatch, dtype, nearest_only):
    rng = np.random.default_rng(0)
    distances = rng.integers(-3, 4, (40, 1000)).astype(dtype)
    matches = Matches(
        rng.integers(0, 9, 40), rng.integers(0, 9, 1000), rng.integers(0, 2, 40), rng.integers(0, 2, 1000)
    )
    monkeypatch.setattr(device_ranks, "_WORK_MB", 1)
    expected = positive_ranks([(0, distances.copy())], matches, nearest_only=nearest_only)
    blocks = [(begin, torch.from_numpy(distances[begin : begin + 13].copy())) for begin in range(0, 40, 13)]
    found = positive_ranks(blocks, matches, nearest_only=nearest_only)
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 30), st.booleans())
def test_smallest_columns_equal_a_full_sort(seed, count, k, infinite):
    rng = np.random.default_rng(seed)
    k = min(k, count)
    values = torch.from_numpy(rng.integers(0, 5, (5, count)).astype(np.float32))
    if infinite:
        values[:, torch.from_numpy(rng.random(count) < 0.9)] = torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_knn, "_GROUP", 16)
        patch.setattr(device_knn, "_SMALL_GROUP", 3)
        patch.setattr(device_knn, "_KEPT_MB", 0)
        found = smallest_columns(values, k)
    assert torch.equal(found, values.sort(dim=1, stable=True).indices[:, :k])


def test_neighbours_with_copies_are_those_of_the_cpu(on_device):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.integers(-4, 5, (150, 3)), np.ones((30, 3)), rng.integers(-4, 5, (7, 3))])
    points = points.astype(np.float32)
    here = nearest_neighbours(points, 40)
    there = on_device(nearest_neighbours, points, k=40, chunk_memory_mb=0.02)
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_embeddings_far_from_the_origin_are_moved(on_device):
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((300, 6)) + 3000).astype(np.float32)
    here, there = nearest_neighbours(points, 9), on_device(nearest_neighbours, points, k=9)
    np.testing.assert_array_equal(there.indices, here.indices)
    np.testing.assert_allclose(there.squared, here.squared, atol=1e-5)


@pytest.mark.parametrize("settings", [(20, 6, 0.3), (7, 1, 0.0), (1, 2, 1.0), (30, 9, 0.5)])
@pytest.mark.parametrize("same_set", [False, True])
def test_re_ranked_distances_are_those_of_the_cpu(on_device, monkeypatch, settings, same_set):
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((12, 8))
    q, g = (centres[rng.integers(0, 12, n)] + 0.5 * rng.standard_normal((n, 8)) for n in (31, 140))
    g[40:60] = g[20:40]
    q = g if same_set else q
    k1, k2, weight = settings
    options = {"k1": k1, "k2": k2, "lambda_value": weight}
    expected = k_reciprocal_rerank(q, g, **options)
    found = on_device(k_reciprocal_rerank, q, g, chunk_memory_mb=0.02, **options)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ranks_of_re_ranked_queries_are_those_of_the_cpu(on_device):
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((20, 16)).astype(np.float32)
    labels = [rng.integers(0, 20, n) for n in (30, 200)]
    q, g = (centres[which] + 0.7 * rng.standard_normal((len(which), 16)).astype(np.float32) for which in labels)
    matches = Matches(*labels, rng.integers(0, 3, 30), rng.integers(0, 3, 200))
    options = {"matches": matches, "search": Search(rerank=KReciprocal(10, 4)), "facts": True, "top_k": 5}
    here, there = rank_queries(q, g, **options), on_device(rank_queries, q, g, **options)
    np.testing.assert_array_equal(there.ranks.ranks, here.ranks.ranks)
    np.testing.assert_array_equal(there.top_k.indices, here.top_k.indices)
    np.testing.assert_allclose(there.facts.match_distance, here.facts.match_distance, rtol=1e-5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (np.nan, "gallery embedding 3 contains NaN or infinity \\(2 such rows of 9\\)"),
        (-np.inf, "gallery embedding 3 contains NaN or infinity"),
        (3e19, "gallery embedding 3 has a norm too large for float32"),
    ],
)
def test_bad_embeddings_are_named_by_row(on_device, fault, message):
    q, g = np.ones((2, 4), np.float32), np.ones((9, 4), np.float32)
    g[3, 1] = g[7, 0] = fault
    with pytest.raises(ValueError, match=message):
        on_device(recall_at_k, q, labels=[0, 1], gallery=torch.from_numpy(g), gallery_labels=np.zeros(9, int))


def test_zeros_are_refused_for_the_cosine_distance(on_device):
    q, g = np.ones((2, 4), np.float32), np.ones((9, 4), np.float32)
    g[4] = 0
    with pytest.raises(ValueError, match="gallery embedding 4 is all zeros"):
        on_device(
            recall_at_k,
            q,
            labels=[0, 1],
            gallery=torch.from_numpy(g),
            gallery_labels=np.zeros(9, int),
            distance="cosine",
        )


class Counted(TorchDispatchMode):
    """Counts operations, the bytes that they read and write, and what a host would wait for: sizes that follow from values."""

    def __init__(self):
        super().__init__()
        self.operations, self.waits, self.moved = 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("detach", "lift_fresh", "_unsafe_view"):
            self.operations += 1
            masks = args[1] if name.startswith(("index", "_index")) and isinstance(args[1], list | tuple) else ()
            if name == "nonzero" or any(mask is not None and mask.dtype == torch.bool for mask in masks):
                self.waits.append(name)
            if "mm" not in name:
                self.moved += sum(moved(value) for value in (*args, result) if isinstance(value, torch.Tensor))
        return result


def moved(tensor):
    """Bytes of a tensor, each element of which is read once however often it is repeated."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(np.prod(sizes)) * tensor.element_size()


class Fetched(TorchFunctionMode):
    """Notes where values come to the host."""

    NAMES = ("cpu", "tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names += [func.__name__] * (getattr(func, "__name__", "") in self.NAMES)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [reid_metrics, recall_at_k])
def test_the_host_waits_for_what_it_looks_through_and_for_the_ranks_alone(on_device, function):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 8)).astype(np.float32) for n in (256, 4000))
    ql, gl = (rng.integers(0, 200, n) for n in (256, 4000))
    qc, gc = (rng.integers(0, 6, n) for n in (256, 4000))
    options = {"labels": ql, "gallery": torch.from_numpy(g), "gallery_labels": gl}
    if function is reid_metrics:
        names = ("query_labels", "gallery_labels", "query_cameras", "gallery_cameras")
        options = dict(zip(names, (ql, gl, qc, gc), strict=True)) | {"gallery": torch.from_numpy(g)}
    seen = []
    for chunk in (None, 2):
        with Counted() as operations, Fetched() as fetched:
            on_device(function, q, chunk_memory_mb=chunk, **options)
        # Of each set whether it can be compared, and how many rows are repeated; then the ranks.
        assert operations.waits == ["nonzero", "nonzero"]
        assert fetched.names == ["tolist", "tolist", "cpu", "numpy"]
        seen.append(operations)
    assert seen[0].operations < 150
    # 4 bytes are read and 8 written for each place, which are read once more; the rest is for ties and the few matches.
    assert seen[0].moved / (256 * 4000) < 80
