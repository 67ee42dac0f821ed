"""bdbnet: train, evaluate and deploy image embeddings for person re-identification and image retrieval.

>>> import bdbnet
>>> embedder = bdbnet.load("outputs/train/dataset=market1501/last.ckpt")    # doctest: +SKIP
>>> embedder.embed(["a.jpg", "b.jpg"]).shape                                 # doctest: +SKIP
(2, 1536)
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings
    from bdbnet.evaluation.load import load
    from bdbnet.loading import Preprocessing
    from bdbnet.models.zoo import zoo
    from bdbnet.retrieval import (
        ReIDMetrics,
        RetrievalRecall,
        k_reciprocal_rerank,
        recall_at_k,
        reid_metrics,
        retrieval_metrics,
    )

try:
    __version__ = version("bdbnet")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# Imported when first used: importing bdbnet alone must not take the seconds that torch takes.
_HOMES = {
    "bdbnet.evaluation.embedder": ("Embedder", "EmbeddingSettings"),
    "bdbnet.evaluation.load": ("load",),
    "bdbnet.loading": ("Preprocessing",),
    "bdbnet.models.zoo": ("zoo",),
    "bdbnet.retrieval": (
        "ReIDMetrics",
        "RetrievalRecall",
        "k_reciprocal_rerank",
        "recall_at_k",
        "reid_metrics",
        "retrieval_metrics",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Embedder",
    "EmbeddingSettings",
    "Preprocessing",
    "ReIDMetrics",
    "RetrievalRecall",
    "__version__",
    "k_reciprocal_rerank",
    "load",
    "recall_at_k",
    "reid_metrics",
    "retrieval_metrics",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bdbnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
