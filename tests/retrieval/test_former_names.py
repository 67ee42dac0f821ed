"""`measure=`, the former name of `distance=`."""

import numpy as np
import pytest

from bdbnet.retrieval import (
    QueryExpansion,
    ReIDMetrics,
    RetrievalRecall,
    distance_blocks,
    expand_queries,
    recall_at_k,
    reid_metrics,
    retrieval_metrics,
    single_shot_cmc,
)

RNG = np.random.default_rng(0)
X, LABELS, CAMERAS = RNG.standard_normal((30, 4)), RNG.integers(0, 5, 30), RNG.integers(0, 2, 30)
SIDES = (X[:10], X[10:], LABELS[:10], LABELS[10:], CAMERAS[:10], CAMERAS[10:])
CALLS = {
    "reid_metrics": lambda **given: reid_metrics(*SIDES, **given),
    "recall_at_k": lambda **given: recall_at_k(X, LABELS, **given),
    "retrieval_metrics": lambda **given: retrieval_metrics(X, LABELS, **given),
    "single_shot_cmc": lambda **given: single_shot_cmc(*SIDES, repeats=3, **given),
    "distance_blocks": lambda **given: np.concatenate([block for _, block in distance_blocks(X, X, **given)]).tolist(),
    "expand_queries": lambda **given: expand_queries(X[:10], X[10:], QueryExpansion(2), **given).tolist(),
    "ReIDMetrics": lambda **given: ReIDMetrics(**given).search,
    "RetrievalRecall": lambda **given: RetrievalRecall(**given).search,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_former_keyword_works_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match="measure= is now called distance="):
        found = CALLS[name](measure="cosine")
    assert found == CALLS[name](distance="cosine")
    assert found != CALLS[name]()
