"""The card of a model: what a network is, what it was trained on under which terms, what was measured, what it is for and not."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdbnet.datasets.catalogue import FACTS
from bdbnet.results import Protocol, headline_metrics, metric_names, metric_of
from bdbnet.wording import protocol_line

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

#: Data that bdbnet renders itself: what they show.
_RENDERED = {
    "synthetic_reid": "rendered figures of people, seen by several cameras (synthetic_reid)",
    "synthetic_retrieval": "rendered objects (synthetic_retrieval)",
}


def model_card(embedder: "Embedder", threshold: str) -> str:
    """A card in Markdown, with the header that model hubs read; `threshold` says what is known of one."""
    parts = [
        _header(embedder),
        _what(embedder, threshold),
        _training(embedder),
        _measured(embedder),
        _use(embedder),
        _LIMITS,
        _licence(embedder),
    ]
    return "\n".join(
        [
            *parts,
            f"## Fingerprint\n\n`{embedder.fingerprint}`: embeddings of two models may be compared if it is equal.\n",
        ]
    )


def _header(embedder: "Embedder") -> str:
    dataset = _dataset(embedder)
    lines = ["---", "library_name: bdbnet", "license: other", "pipeline_tag: image-feature-extraction", "tags:"]
    lines += [f"- {tag}" for tag in ("image-retrieval", "metric-learning", "person-re-identification")]
    if dataset is not None:
        lines += ["datasets:", f"- {dataset}"]
    return "\n".join([*lines, "---", ""])


def _provenance(embedder: "Embedder") -> Mapping[str, Any]:
    return embedder.origin.provenance or {}


def _dataset(embedder: "Embedder") -> str | None:
    """Key of the data set that the network was trained on."""
    trained = (embedder.origin.trained_with or {}).get("dataset") or {}
    name = trained.get("name") or _provenance(embedder).get("trained_on")
    return str(name) if name else None


def _what(embedder: "Embedder", threshold: str) -> str:
    preprocessing = embedder.preprocessing
    size = " x ".join(map(str, preprocessing.image_size))
    padded = "padded to a square and " if preprocessing.pad_to_square else ""
    settings = embedder.settings
    scaled = {"none": "not normalised", "joint": "of unit length", "per_branch": "each branch of unit length"}
    branches = " + ".join(map(str, embedder.network.branch_dims))
    dims = f"{embedder.dimensions}" + (f" ({branches})" if len(embedder.network.branch_dims) > 1 else "")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return "\n".join(
        [
            f"# {Path(embedder.origin.source).name or 'An embedding network'}",
            "",
            f"Maps an image to {embedder.dimensions} numbers; images of the same identity or class lie near each other.",
            "",
            "| | |",
            "|---|---|",
            f"| network | {type(embedder.network).__name__} on {type(embedder.network.backbone).__name__} |",
            f"| parameters | {sum(p.numel() for p in embedder.network.parameters()) / 1e6:.2f} M |",
            f"| input | {preprocessing.channel_order.upper()}, {padded}resized to {size} pixels (height x width), "
            f"{preprocessing.interpolation}; mean {mean}, deviation {std} |",
            f"| embedding | {dims} numbers, {scaled[settings.normalize]}"
            + (", mean with the mirror image" if settings.flip else "")
            + (
                f", mean of the scales {', '.join(f'{scale:g}' for scale in settings.scales)}"
                if settings.scales != (1.0,)
                else ""
            )
            + " |",
            f"| distance | {embedder.distance_name} |",
            f"| threshold for the same identity | {threshold} |",
            "",
        ]
    )


def _training(embedder: "Embedder") -> str:
    trained, dataset, provenance = embedder.origin.trained_with, _dataset(embedder), _provenance(embedder)
    lines = ["## Training", ""]
    if trained is None:
        program = provenance.get("program")
        by = (
            f"The weights come from a file of {program}; "
            if program
            else "Of the weights nothing is known but their shapes: "
        )
        lines.append(f"{by}bdbnet did not train them.")
    lines.append(_data(dataset))
    if assumed := provenance.get("assumed"):
        lines += ["", "Assumed, because the file does not say it:", "", *(f"- {sentence}" for sentence in assumed)]
    if trained is None:
        return "\n".join([*lines, ""])
    trainer, loss = trained.get("trainer") or {}, trained.get("loss") or {}
    sampler, start = trained.get("sampler") or {}, (trained.get("backbone") or {}).get("weights")
    planned, done = trainer.get("max_epochs"), provenance.get("epochs")
    said = {
        "Epochs": planned if done in (None, planned) else f"{done} of {planned}", "images a batch": sampler.get("batch_size"),
        "metric loss": loss.get("name"), "starting weights": "random" if start in (None, "none") else Path(str(start)).name,
        "seed": trained.get("seed"),
    }  # fmt: skip
    lines += [
        "",
        ", ".join(f"{name}: {value}" for name, value in said.items() if value is not None) + ".",
        "",
    ]
    return "\n".join(lines)


def _data(dataset: str | None) -> str:
    """What the network was trained on, and under which terms."""
    if dataset is None:
        return "Data: not known, and so are its terms. Ask who gave you the file before you pass it on."
    if dataset in _RENDERED:
        terms = "none but those of bdbnet, which renders them; they show no real people"
        return f"Data: {_RENDERED[dataset]}.\nTerms of the data: {terms}."
    facts = FACTS.get(dataset)
    if facts is None:
        return f"Data: {dataset}. Its terms are those of its owner."
    terms = f"\nTerms of the data: {facts.obtain}." if facts.obtain else ""
    return f"Data: {facts.title}." + (f" {facts.paper}." if facts.paper else "") + terms


def _measured(embedder: "Embedder") -> str:
    metrics, protocol = embedder.origin.metrics, embedder.origin.protocol
    lines = ["## What was measured", ""]
    if not metrics or not protocol:
        if published := _provenance(embedder).get("published"):
            values = ", ".join(f"{metric_of(name).title} {value:g}" for name, value in published.items())
            lines += [f"Published by its authors on {_dataset(embedder)}, not measured by bdbnet: {values}.", ""]
        said = (
            "Nothing is recorded with this model: evaluate it with `python -m bdbnet.evaluate checkpoint=this/folder`, then "
            "write the numbers into a card with `python -m bdbnet.convert checkpoint=this/folder output=new result=<result.json>`."
        )
        return "\n".join([*lines, said, ""])
    names = headline_metrics(metrics) + [
        name for name in metric_names(metrics) if name not in headline_metrics(metrics)
    ]
    lines += ["| metric | value |", "|---|---|"]
    lines += [f"| {metric_of(name).title} | {metric_of(name).text(metrics[name])} |" for name in names]
    note = f" ({protocol['note']})" if protocol.get("note") else ""
    known = Protocol(**{field.name: protocol[field.name] for field in fields(Protocol) if field.name in protocol})
    return "\n".join([*lines, "", f"{protocol_line(known)}{note}.", ""])


def _use(embedder: "Embedder") -> str:
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "import bdbnet",
            "",
            'embedder = bdbnet.load("this/folder")',
            'a, b = embedder.embed(["a.jpg", "b.jpg"])',
            f"embedder.distance(a, b)  # {embedder.distance_name}; smaller: more alike",
            "```",
            "",
            "Meant for research and for finding images in a collection that you may search: crops of one person or object each, as",
            "a detector gives them.",
            "",
        ]
    )


_LIMITS = """\
## Limits

- A small distance is a likeness of appearance, mostly of clothing, not proof of identity: it must not decide alone on anything
  that concerns a person.
- Numbers measured on one data set do not carry over to other cameras, seasons, places and people; error rates differ between groups
  of people and were not measured for them here unless stated above.
- Re-identification of people without their consent, or without another legal ground, may be unlawful where you are.
"""


def _licence(embedder: "Embedder") -> str:
    lines = ["## Licence", ""]
    if terms := _provenance(embedder).get("terms"):
        lines += [f"Terms of the weights: {terms}.", ""]
    lines += [
        "The terms of the data that the network was trained on, and of its starting weights, apply to its weights. bdbnet itself",
        "is under the MIT licence.",
        "",
    ]
    return "\n".join(lines)
