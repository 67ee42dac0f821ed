"""Multi-query: pooling against a loop, and the whole metric against pooling by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import ReIDMetrics, pool_queries, reid_metrics


def by_loop(embeddings, labels, cameras, pooling):
    groups = {}
    for row, key in enumerate(zip(labels.tolist(), cameras.tolist())):
        groups.setdefault(key, []).append(row)
    join = {"mean": np.mean, "max": np.max}[pooling]
    pooled = np.stack([join(embeddings.numpy()[rows], axis=0) for rows in groups.values()])
    return pooled, list(groups), [rows[0] for rows in groups.values()]


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), min_size=1, max_size=30), seed=st.integers(0, 99)
)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_equals_the_loop(pooling, pairs, seed):
    embeddings = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels, cameras = torch.tensor(pairs).unbind(1)
    expected, keys, first = by_loop(embeddings, labels, cameras, pooling)
    result = pool_queries(embeddings, labels, cameras, pooling)
    np.testing.assert_allclose(result.embeddings, expected, atol=1e-12)
    assert list(zip(result.labels.tolist(), result.cameras.tolist())) == keys
    assert result.first.tolist() == first


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="one of mean, max, got 'sum'"):
        pool_queries(torch.ones(1, 2), torch.ones(1), torch.ones(1), "sum")


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_metric_pools_the_queries_of_an_identity_and_camera(pooling, naive):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (90,), generator=generator)
    cameras = torch.randint(0, 3, (90,), generator=generator)
    is_query = torch.arange(90) % 3 == 0
    metric = ReIDMetrics(query_pooling=pooling)
    for part in torch.randperm(90, generator=generator).split(11):
        metric.update(embeddings[part], labels[part], cameras[part], is_query[part], part)
    pooled, keys, _ = by_loop(embeddings[is_query], labels[is_query], cameras[is_query], pooling)
    query_labels, query_cameras = np.array(keys).T
    gallery = [values[~is_query].numpy() for values in (embeddings, labels, cameras)]
    expected = naive.reid(pooled, gallery[0], query_labels, gallery[1], query_cameras, gallery[2])
    assert metric.compute() == pytest.approx(expected)
    assert metric.compute()["valid_queries"] < int(is_query.sum())


def test_one_image_for_each_query_changes_nothing():
    embeddings, labels = torch.eye(6), torch.tensor([1, 2, 3, 1, 2, 3])
    cameras, is_query = torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6) < 3
    metric = ReIDMetrics(query_pooling="mean")
    metric.update(embeddings, labels, cameras, is_query, torch.arange(6))
    assert metric.compute() == reid_metrics(
        embeddings[:3], embeddings[3:], labels[:3], labels[3:], cameras[:3], cameras[3:]
    )


def test_multi_query_needs_roles_and_cameras():
    metric = ReIDMetrics(query_pooling="mean")
    metric.update(torch.eye(4), torch.tensor([1, 1, 2, 2]), None, torch.tensor([True, False] * 2), torch.arange(4))
    with pytest.raises(ValueError, match="multi-query needs queries and gallery apart, and cameras"):
        metric.compute()
