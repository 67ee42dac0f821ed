"""The protocol of an evaluation: the metric that it asks for, and its stamp in `result.json`."""

from dataclasses import asdict
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from bdbnet.config import ConfigError
from bdbnet.loading import ReIDDataModule
from bdbnet.loading.from_config import is_reid
from bdbnet.results import Protocol
from bdbnet.retrieval import KReciprocal, QueryExpansion, ReIDMetrics, RetrievalRecall, as_reranking


def query_pooling(config: DictConfig) -> str | None:
    """How the images of one query are pooled; None for single queries."""
    return str(config.evaluation.query_pooling) if config.dataset.protocol == "reid_multi_query" else None


def single_shot(config: DictConfig) -> int | None:
    """How many random galleries show each identity by one image; None where all images are searched."""
    return int(config.evaluation.single_shot) if config.dataset.protocol == "reid_single_shot" else None


def reranking(config: DictConfig) -> KReciprocal | None:
    """Settings of k-reciprocal re-ranking.  Raises ConfigError that names the key."""
    value = _plain(config.evaluation.rerank)
    try:
        return as_reranking(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"evaluation.rerank={value}: {error}. true is {{k1: 20, k2: 6, lambda: 0.3}}") from error


def query_expansion(config: DictConfig) -> QueryExpansion | None:
    """Settings of query expansion.  Raises ConfigError that names the key."""
    value = _plain(config.evaluation.query_expansion)
    if value is None or value is False:
        return None
    try:
        return QueryExpansion() if value is True else QueryExpansion(**value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluation.query_expansion={value}: {error}. Give some of {{k: 5, alpha: 0, gallery: false}}"
        ) from error


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def build_metric(config: DictConfig, *, progress: bool = False) -> ReIDMetrics | RetrievalRecall:
    """What the dataset's protocol is evaluated by; with ``progress`` re-ranking shows a bar.  Raises ConfigError for
    settings that the metric refuses."""
    evaluation = config.evaluation
    try:
        search: dict[str, Any] = {
            "distance": evaluation.distance,
            "query_expansion": query_expansion(config),
            "rerank": reranking(config),
            "chunk_memory_mb": evaluation.chunk_memory_mb,
            "progress": progress and cast(Any, rank_zero_only).rank == 0,
        }
        if is_reid(config):
            return ReIDMetrics(
                tuple(evaluation.ranks),
                ap_at=evaluation.ap_at,
                query_pooling=query_pooling(config),
                single_shot=single_shot(config),
                leave_out_drawn=True,
                next_camera=config.dataset.protocol == "reid_reassociation",
                **search,
            )
        return RetrievalRecall(tuple(evaluation.recall_at), precision=True, **search)
    except ValueError as error:
        raise ConfigError(f"evaluation: {error}") from error


def main_metric(config: DictConfig) -> str:
    """The number by which the best checkpoint is chosen: Rank-1 or Recall@1."""
    if is_reid(config):
        return f"rank{min(config.evaluation.ranks)}"
    return f"recall@{min(config.evaluation.recall_at)}"


def build_protocol(config: DictConfig, data: ReIDDataModule) -> Protocol:
    """What has to be equal before two numbers may be compared."""
    return Protocol(
        task=config.dataset.protocol,
        dataset=data.manifest.name,
        image_size=data.test_transform.image_size,
        precision=config.evaluation.precision,
        normalize=config.evaluation.normalize,
        ap_at=config.evaluation.ap_at if is_reid(config) and single_shot(config) is None else None,
        pad_to_square=data.test_transform.pad_to_square,
        decode_margin=data.reading.decode_margin,
        query_pooling=query_pooling(config),
        measure=config.evaluation.distance,
        flip=bool(config.evaluation.flip),
        scales=tuple(config.evaluation.scales or ()),
        query_expansion=expansion_record(query_expansion(config)),
        rerank=rerank_record(reranking(config)),
        single_shot=single_shot(config),
    )


def rerank_record(settings: KReciprocal | None) -> dict[str, float] | None:
    """Settings of re-ranking as results hold them."""
    return None if settings is None else {"k1": settings.k1, "k2": settings.k2, "lambda": settings.lambda_value}


def expansion_record(settings: QueryExpansion | None) -> dict[str, float] | None:
    """Settings of query expansion as results hold them; `gallery` is there where it is true."""
    if settings is None:
        return None
    record = asdict(settings)
    return record if settings.gallery else {name: value for name, value in record.items() if name != "gallery"}
