"""How the page words numbers, protocols and settings: plain text, not yet escaped."""

from bdbnet.results import Protocol


def protocol_line(protocol: Protocol) -> str:
    """How the numbers were measured, in words.

    >>> protocol_line(Protocol("retrieval", "cub200", (256, 256)))
    'Image retrieval, Recall@K, on cub200; images of 256 x 256 pixels; precision 32-true; Euclidean distance between \
raw embeddings; no flip; no re-ranking'
    """
    tasks = {
        "reid": "Person re-identification, single query, matches from other cameras only,",
        "reid_multi_query": "Person re-identification, multi-query, matches from other cameras only,",
        "retrieval": "Image retrieval, Recall@K,",
    }
    scaling = {"none": "raw", "joint": "L2-normalised", "per_branch": "branch by branch L2-normalised"}
    height, width = protocol.image_size
    rerank = protocol.rerank
    parts = [
        f"{tasks.get(protocol.task, protocol.task)} on {protocol.dataset}",
        f"images of {height} x {width} pixels" + (", padded to a square first" if protocol.pad_to_square else ""),
        f"precision {protocol.precision}",
        f"Euclidean distance between {scaling.get(protocol.normalize, protocol.normalize)} embeddings",
        "averaged with the mirror image" if protocol.flip else "no flip",
        f"re-ranked ({', '.join(f'{k} {v:g}' for k, v in rerank.items())})" if rerank else "no re-ranking",
    ]
    if protocol.decode_margin != 2:
        parts.append(
            "JPEGs decoded in full" if protocol.decode_margin is None else f"decode margin {protocol.decode_margin:g}"
        )
    if protocol.query_pooling is not None:
        parts.append(f"{protocol.query_pooling} over the embeddings of a query's images")
    if protocol.ap_at is not None:
        parts.append(f"average precision cut at rank {protocol.ap_at}")
    return "; ".join(parts)


def percent(fraction: float | None) -> str:
    """A fraction in percent with one decimal; a dash for None.

    >>> percent(0.9121), percent(None)
    ('91.2 %', '-')
    """
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def distance(value: float) -> str:
    """Three significant digits.

    >>> distance(4.7), distance(0.3118), distance(212.0)
    ('4.70', '0.312', '212')
    """
    return f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.25), duration(187), duration(7500)
    ('4.2 s', '3 min 7 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
