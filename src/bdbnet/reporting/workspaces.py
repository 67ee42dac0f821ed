"""Saved views of a W&B project, as specifications of wandb-workspaces: a run, the height ratio, and the paper's tables."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bdbnet.config import ConfigError

RUN, RATIO, PAPER = "Run", "Height ratio", "Paper tables"
#: What a sweep of the height ratio varies, as W&B's columns have it.
_RATIO = "dropping.height_ratio"
#: Runs that differ in their seed alone have this setting in common.
_SAME = "settings"


class Library:
    """wandb-workspaces, an optional package.

    Raises:
        ConfigError: it is not installed, or can't be imported.
    """

    def __init__(self) -> None:
        try:
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
        except Exception as error:
            raise ConfigError(
                f'the views need wandb-workspaces ({type(error).__name__}: {error}): pip install "bdbnet[dashboard]"'
            ) from error
        self.reports: Any = reports
        self.workspaces: Any = workspaces


def run_view(library: Library, entity: str, project: str) -> Any:
    """One run, or a few beside one another: losses, rate and speed, metrics, worst queries, maps beside ranking lists, system."""
    wr, ws = library.reports, library.workspaces

    def line(title: str, *names: str, pattern: str | None = None) -> Any:
        return wr.LinePlot(title=title, x="epoch", y=list(names), metric_regex=pattern)

    def pictures(title: str, *keys: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=2, layout=wr.Layout(w=12, h=10))

    sections = [
        ws.Section(
            name="Result",
            panels=[
                wr.ScalarChart(title=title, metric=wr.SummaryMetric(name))
                for title, name in (
                    ("Rank-1, last epoch", "final/rank1"),
                    ("mAP, last epoch", "final/mAP"),
                    ("Rank-1, best epoch (selected on the test set)", "best/rank1"),
                )
            ],
            is_open=True,
        ),
        ws.Section(name="Losses", panels=[line("Losses, mean of the epoch", pattern="train/loss/.*")], is_open=True),
        ws.Section(
            name="Rate and speed",
            panels=[line("Learning rate", "train/lr"), line("Training images per second", "train/images_per_second")],
            is_open=True,
        ),
        ws.Section(
            name="Metrics",
            panels=[line("Rank-1", "test/rank1"), line("mAP", "test/mAP"), line("All metrics", pattern="test/.*")],
            is_open=True,
        ),
        ws.Section(name="Worst queries", panels=[_table(wr, "test/worst_queries")], is_open=True),
        ws.Section(
            name="Activation maps beside ranking lists",
            panels=[
                pictures("Activation maps", "test/activation_maps"),
                pictures("Ranking lists", "test/ranking_lists"),
                pictures("Drop masks", "train/drop_masks"),
            ],
            is_open=True,
        ),
        ws.Section(name="Distances of pairs", panels=[pictures("ROC and histogram", "test/roc", "test/distances")]),
        ws.Section(
            name="System",
            panels=[
                wr.LinePlot(title=title, x="RelativeTime(Wall)", y=[name])
                for title, name in (
                    ("GPU utilisation, %", "system/gpu.0.gpu"),
                    ("GPU memory, %", "system/gpu.0.memoryAllocated"),
                    ("CPU, %", "system/cpu"),
                    ("Memory of the process, MB", "system/proc.memory.rssMB"),
                )
            ],
        ),
    ]
    return _workspace(ws, entity, project, RUN, sections, ws.RunsetSettings())


def ratio_view(library: Library, entity: str, project: str) -> Any:
    """Figure 7 (a): the height ratio against final mAP and Rank-1, parallel coordinates, and mean and deviation over the seeds."""
    wr, ws = library.reports, library.workspaces
    metrics = (("Rank-1", "final/rank1"), ("mAP", "final/mAP"))
    scatter = [
        wr.ScatterPlot(
            title=f"{title} by erased height ratio", x=wr.Config(_RATIO), y=wr.SummaryMetric(name), running_ymean=True,
            layout=wr.Layout(w=12, h=10),
        )
        for title, name in metrics
    ]  # fmt: skip
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric, display_name=title)
        for title, metric in (
            ("erased height ratio", wr.Config(_RATIO)),
            ("loss", wr.Config("loss.name")),
            ("learning rate", wr.Config("optimizer.lr")),
            *((title, wr.SummaryMetric(name)) for title, name in metrics),
        )
    ]
    spread = [
        wr.BarPlot(
            title=f"{title}: mean and standard deviation over the seeds", metrics=[wr.SummaryMetric(name)],
            groupby=wr.Config(_RATIO), groupby_aggfunc="mean", groupby_rangefunc="stddev",
        )
        for title, name in metrics
    ]  # fmt: skip
    sections = [
        ws.Section(name="Figure 7 (a)", panels=scatter, is_open=True),
        ws.Section(
            name="Settings",
            panels=[wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=24, h=10))],
            is_open=True,
        ),
        ws.Section(name="Seeds", panels=spread, is_open=True),
    ]
    runs = ws.RunsetSettings(
        filters=[ws.Metric("JobType") != "evaluate"],
        groupby=[ws.Config(_SAME)],
        order=[ws.Ordering(ws.Summary("final/mAP"), ascending=False)],
        pinned_columns=[f"config:{_backend(_RATIO)}", *(f"summary:{name}" for _, name in metrics)],
    )
    return _workspace(ws, entity, project, RATIO, sections, runs)


def paper_report(
    library: Library, entity: str, project: str, tables: Sequence[tuple[str, str]], *, offline: bool = False
) -> Any:
    """The paper's tables beside ours, per protocol.

    Args:
        tables: heading of a table, which is the group of its runs too, and the table in Markdown with the paper's numbers and ours.
        offline: W&B is not asked for the project's number, which the specification lacks then.
    """
    wr = library.reports
    blocks = [
        wr.P(
            "The paper's numbers are those that it prints; ours come from bdbnet.reproduce. Below each table are its runs, grouped "
            "by settings without the seed and by protocol: numbers under different protocols are not comparable."
        ),
        wr.TableOfContents(),
    ]
    for heading, text in tables:
        runs = wr.Runset(
            entity="" if offline else entity,
            project="" if offline else project,
            name=heading,
            filters=f"Tags() in ['{heading}']",  # a training may stand in several tables
            groupby=["config.protocol_dataset", "config.protocol_task", f"config.{_SAME}"],
        )
        panels = [
            wr.BarPlot(
                title=f"{title}, last epoch: mean and standard deviation over the seeds", metrics=[wr.SummaryMetric(name)],
                groupby=wr.Config(_SAME), groupby_aggfunc="mean", groupby_rangefunc="stddev",
                layout=wr.Layout(x=12 * number, w=12, h=8),
            )
            for number, (title, name) in enumerate((("Rank-1", "final/rank1"), ("mAP", "final/mAP")))
        ]  # fmt: skip
        blocks += [wr.H2(heading), wr.MarkdownBlock(text), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity, project=project, title=PAPER, blocks=blocks, width="fluid",
        description="Batch DropBlock Network (ICCV 2019): paper beside ours",
    )  # fmt: skip


def specification(view: Any) -> dict[str, Any]:
    """What a view sends to W&B, as plain data; without what is drawn at random at every call."""
    return dict(_numbered(json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))))


def default_entity(*, offline: bool) -> str:
    """The team or user to whom projects belong unless they say so.

    Raises:
        ConfigError: without a key of W&B.
    """
    named = os.environ.get("WANDB_ENTITY", "")
    if named or offline:
        return named
    return str(_asked(lambda: _api().default_entity) or "")


def save(view: Any) -> str:
    """Save a view in W&B; its address.

    Raises:
        ConfigError: without a key, for a project that can't be written, or where W&B doesn't answer.
    """
    _asked(_api)
    _asked(view.save)
    return str(view.url)


def _api() -> Any:
    import wandb

    return wandb.Api()


def _asked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        advice = (
            "run `wandb login`, or set WANDB_API_KEY"
            if "log in" in text.lower()
            or "login" in text.lower()
            or "api key" in text.lower()
            or "api_key" in text.lower()
            else "check project= and entity=, and that you may write there"
        )
        raise ConfigError(
            f"W&B does not save the view ({text}): {advice}. dry_run=true writes it as JSON instead"
        ) from error


def _workspace(ws: Any, entity: str, project: str, name: str, sections: Sequence[Any], runs: Any) -> Any:
    settings = ws.WorkspaceSettings(x_axis="epoch", group_by_prefix="first")
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=list(sections), settings=settings, runset_settings=runs
    )


def _table(wr: Any, key: str) -> Any:
    return wr.WeavePanelSummaryTable(table_name=key, layout=wr.Layout(w=24, h=14))


def _backend(key: str) -> str:
    """A key of the configuration as a column: ``dropping.value.height_ratio``."""
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _numbered(node: Any) -> Any:
    """The same with random ids replaced by a fixed text, so that two calls can be compared."""
    if isinstance(node, Mapping):
        return {
            key: ""
            if key in ("id", "__id__", "createdAt", "updatedAt", "created_at", "updated_at")
            else _numbered(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_numbered(item) for item in node]
    if isinstance(node, str) and node[:1] in "{[" and re.search(r'"\w+":', node):
        try:
            return _numbered(json.loads(node))
        except ValueError:
            return node
    return node
