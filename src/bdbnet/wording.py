"""Numbers, protocols and settings in words: plain text, not yet escaped."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bdbnet.results import Protocol, Result, metric_names, metric_of

#: Of every number that belongs to the best checkpoint.
BEST_CHECKPOINT = "selected on the test set; optimistically biased"

#: Of embeddings that were read from a file.
UNKNOWN_PREPROCESSING = "embeddings read from a file, their preprocessing is unknown"


def protocol_line(protocol: Protocol) -> str:
    """How the numbers were measured, in words.

    >>> protocol_line(Protocol("retrieval", "cub200", (256, 256)))
    'Image retrieval, Recall@K, on cub200; images of 256 x 256 pixels; precision 32-true; Euclidean distance between \
raw embeddings; no flip; no re-ranking'
    """
    tasks = {
        "reid": "Person re-identification, single query, matches from other cameras only,",
        "reid_multi_query": "Person re-identification, multi-query, matches from other cameras only,",
        "reid_single_shot": "Person re-identification, one gallery image per identity, drawn at random,",
        "reid_reassociation": "Person re-identification among everybody in the next frame that is used,",
        "retrieval": "Image retrieval, Recall@K,",
    }
    scaling = {"none": "raw", "joint": "L2-normalised", "per_branch": "branch by branch L2-normalised"}
    distances = {"euclidean": "Euclidean distance", "cosine": "cosine distance"}
    parts = [
        f"{tasks.get(protocol.task, protocol.task)} on {protocol.dataset}",
        *([] if protocol.from_features else [f"images of {size_text(protocol)}", f"precision {protocol.precision}"]),
        f"{distances.get(protocol.measure, protocol.measure)} between "
        f"{scaling.get(protocol.normalize, protocol.normalize)} embeddings",
        *([] if protocol.flip or protocol.from_features else ["no flip"]),
        *([] if protocol.rerank else ["no re-ranking"]),
        *extras(protocol),
    ]
    if protocol.decode_margin != 2:
        parts.append(
            "JPEGs decoded in full" if protocol.decode_margin is None else f"decode margin {protocol.decode_margin:g}"
        )
    return "; ".join(parts)


def size_text(protocol: Protocol) -> str:
    """Size of the network's input in words; "" where it is unknown."""
    if protocol.image_size is None:
        return ""
    height, width = protocol.image_size
    return f"{height} x {width} pixels" + (", padded to a square first" if protocol.pad_to_square else "")


def extras(protocol: Protocol) -> list[str]:
    """What was done beyond the plain protocol, in words.

    >>> extras(Protocol("reid", "market1501", (384, 128), flip=True, rerank={"k1": 20, "k2": 6, "lambda": 0.3}))
    ['averaged with the mirror image', 're-ranked (k1 20, k2 6, lambda 0.3)']
    """
    rerank, expansion = protocol.rerank, protocol.query_expansion
    parts = {
        "averaged with the mirror image": protocol.flip,
        f"averaged over sizes ({', '.join(f'{scale:g}' for scale in protocol.scales)})": protocol.scales,
        f"{protocol.query_pooling} over the embeddings of a query's images": protocol.query_pooling,
        f"{'queries and gallery' if (expansion or {}).get('gallery') else 'queries'} expanded ({numbers(expansion)})": expansion,
        f"re-ranked ({numbers(rerank)})": rerank,
        f"mean over {protocol.single_shot} random galleries": protocol.single_shot,
        f"average precision cut at rank {protocol.ap_at}": protocol.ap_at,
        UNKNOWN_PREPROCESSING: protocol.from_features,
        f"images prepared as the network needs them ({preprocessing_text(protocol)})": protocol.preprocessing
        and not protocol.from_features,
    }
    return [words for words, given in parts.items() if given]


def trained_on_lines(data: Mapping[str, Any]) -> list[str]:
    """What a union of data sets consists of, as one line; none for a single set.

    >>> trained_on_lines({"trained_on": [{"name": n, "identities": 3, "images": 1200} for n in "ab"]})
    ['Trained on a (3 identities, 1,200 images) and b (3 identities, 1,200 images).']
    """
    sets = [
        f"{each['name']} ({counted(each['identities'], 'identity', 'identities')}, {counted(each['images'], 'image')})"
        for each in data.get("trained_on") or ()
    ]
    return [f"Trained on {' and '.join(sets)}."] if sets else []


def further_lines(result: Result) -> list[str]:
    """What a union was trained on, and the metrics on further data sets, a line for each."""
    return trained_on_lines(result.data) + [
        f"On {name}: {', '.join(f'{metric_of(key).title} {metric_of(key).text(metrics[key])}' for key in metric_names(metrics))}."
        for name, metrics in (result.further or {}).items()
    ]


def numbers(settings: Mapping[str, float] | None) -> str:
    """Settings of a step as text, "" where there are none.

    >>> numbers({"k": 5, "alpha": 0.5})
    'k 5, alpha 0.5'
    >>> numbers({"k": 5, "gallery": True})
    'k 5, gallery'
    """
    return ", ".join(key if value is True else f"{key} {value:g}" for key, value in (settings or {}).items())


def preprocessing_text(protocol: Protocol) -> str:
    """How images are prepared otherwise than for a network of bdbnet, "" where they are not.

    >>> preprocessing_text(Protocol("reid", "market1501", (256, 128), preprocessing={"channel_order": "bgr", "mean": [0.5] * 3}))
    'channel order bgr, mean 0.5 0.5 0.5'
    """
    if protocol.preprocessing is None or isinstance(protocol.preprocessing, str):
        return protocol.preprocessing or ""
    found = protocol.preprocessing.items()
    return ", ".join(
        f"{name.replace('_', ' ')} {' '.join(f'{v:g}' for v in value) if isinstance(value, list) else value}"
        for name, value in found
    )


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(1200, "image"), counted(0, "identity", "identities")
    ('1 image', '1,200 images', '0 identities')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


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


def date_text(moment: datetime) -> str:
    """When something was, to the minute.

    >>> date_text(datetime.fromisoformat("2026-11-26T21:08:20+00:00"))
    '2026-11-26 21:08 UTC'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
