"""What a page is about: network, backbone, loss and dataset of a run, its main numbers, its date."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bdbnet.datasets import FACTS
from bdbnet.results import Result, headline_metrics, metric_of
from bdbnet.wording import date_text

_LOSSES = {
    "triplet": "batch-hard triplet", "histogram": "histogram loss", "lifted": "lifted structure", "margin": "margin loss",
    "npairs": "N-pair loss", "quadruplet": "quadruplet loss", "contrastive": "contrastive loss", "none": "softmax alone",
}  # fmt: skip
_DROP_LAYERS = {
    "BatchDropBlock": "", "Identity": " without dropping", "BatchDropout": " with Batch Dropout", "DropBlock": " with DropBlock",
    "Dropout": " with Dropout", "SpatialDropout": " with SpatialDropout",
}  # fmt: skip


def run_title(result: Result) -> str:
    """What was trained or evaluated, in one line.

    >>> from bdbnet.results import Protocol
    >>> model = {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"]}
    >>> config = {"model": model, "backbone": {"_target_": "bdbnet.models.ResNetBackbone", "name": "resnet50"}}
    >>> config["loss"] = {"name": "triplet"}
    >>> run_title(Result("train", {}, Protocol("reid", "market1501", (384, 128)), "last", {}, config, seed=1))
    'BDB, ResNet-50, batch-hard triplet on Market-1501'
    """
    return title_of([result])


def title_of(results: Sequence[Result]) -> str:
    """The same of several runs: what they have in common."""
    parts = [same for values in zip(*map(_parts, results)) if (same := _common(values))]
    data = _common([_dataset(result.protocol.dataset) for result in results])
    what = ", ".join(parts) or (Path(results[0].checkpoint).name if len(results) == 1 else "")
    return " on ".join(filter(None, [what, data])) or "several networks on several datasets"


def headline(result: Result) -> list[tuple[str, str]]:
    """The metrics that stand for all: title and value."""
    return [
        (metric_of(name).title, metric_of(name).text(result.metrics[name])) for name in headline_metrics(result.metrics)
    ]


def date_of(results: Sequence[Result]) -> str:
    """When the last of the runs ended.

    >>> from bdbnet.results import Protocol
    >>> protocol = Protocol("reid", "market1501", (384, 128))
    >>> date_of([Result("train", {}, protocol, "last", {}, {}, seed=1, created="2026-11-26T21:08:20+00:00")])
    '2026-11-26 21:08 UTC'
    """
    created = max(result.created for result in results)
    try:
        return date_text(datetime.fromisoformat(created))
    except (ValueError, OverflowError):  # a year that no calendar has
        return created


def _parts(result: Result) -> tuple[str, str, str]:
    """Network, backbone and loss in words; "" for what the record does not say."""
    trained = result.config.get("trained_with")
    config = trained if isinstance(trained, Mapping) else result.config
    loss = str(_node(config, "loss").get("name") or "")
    return _network(config), _backbone(_node(config, "backbone")), _LOSSES.get(loss, loss)


def _network(config: Mapping[str, Any]) -> str:
    model = _node(config, "model")
    name = _class_name(model)
    if name == "PCBNetwork":
        return "PCB + RPP" if model.get("refined") else "PCB"
    if name != "BDBNetwork":
        return {"MGNNetwork": "MGN"}.get(name, name)
    if model.get("branches") == ["global"]:
        return "Baseline"
    layer = _class_name(_node(config, "dropping"))
    network = "dropping branch alone" if model.get("branches") == ["dropping"] else "BDB"
    return network + _DROP_LAYERS.get(layer, f" with {layer}" if layer else "")


def _backbone(backbone: Mapping[str, Any]) -> str:
    name = _class_name(backbone)
    if name.startswith("OSNet") and "width" in backbone:
        return f"OSNet x{backbone['width']}"
    named = str(backbone.get("name") or name)
    return f"ResNet-{named.removeprefix('resnet')}" if name.startswith("ResNet") else named


def _node(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    node = config.get(key)
    return node if isinstance(node, Mapping) else {}


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_") or "").rpartition(".")[2]


def _dataset(name: str) -> str:
    return FACTS[name].title if name in FACTS else name


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""
