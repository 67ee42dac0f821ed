"""Saved views of a W&B project: their specifications, and what may be missing."""

import json
import sys

import pytest
import wandb

from bdbnet.config import ConfigError
from bdbnet.dashboard import main
from bdbnet.reporting.workspaces import Library, run_view, save


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dashboard", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call


def texts(node) -> set[str]:
    """Every text in plain data."""
    if isinstance(node, dict):
        return {text for key, value in node.items() for text in {key} | texts(value)}
    if isinstance(node, list):
        return {text for value in node for text in texts(value)}
    return {node} if isinstance(node, str) else set()


def panels(view: dict) -> list[tuple[str, str, str]]:
    """Section, kind and title of every panel."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [
        (section["name"], panel["viewType"], panel["config"].get("chartTitle") or panel["config"].get("title") or "")
        for section in sections
        for panel in section["panels"]
    ]


def test_a_dry_run_writes_the_specification_of_all_three_views(run, tmp_path):
    said = run("project=team/bdbnet", "dry_run=true", "table=3", "budget=smoke")
    assert said == (0, "specification: outputs/dashboard.json\n")
    found = json.loads((tmp_path / "outputs" / "dashboard.json").read_text())
    assert set(found) == {"run", "height_ratio", "paper"}
    of_run = panels(found["run"])
    assert list(dict.fromkeys(section for section, _, _ in of_run)) == [
        "Result", "Losses", "Rate and speed", "Metrics", "Worst queries", "Activation maps beside ranking lists",
        "Distances of pairs", "System",
    ]  # fmt: skip
    logged = texts(found["run"])
    assert {
        "train/lr",
        "train/images_per_second",
        "test/ranking_lists",
        "test/activation_maps",
        "train/drop_masks",
    } <= logged
    assert any("test/worst_queries" in text for text in logged)
    kinds = [kind for _, kind, _ in panels(found["height_ratio"])]
    assert kinds == ["Scatter Plot", "Scatter Plot", "Parallel Coordinates Plot", "Bar Chart", "Bar Chart"]
    ratio = json.dumps(found["height_ratio"])
    assert all(name in ratio for name in ("height_ratio", "final/mAP", "final/rank1", "stddev", '"settings'))
    report = json.dumps(found["paper"])
    assert "Table 3: Comparison with other dropout methods" in report
    assert "72.8" in report  # the paper's Rank-1 of Batch DropBlock
    assert "protocol_task" in report


def test_one_view_alone(run, tmp_path):
    file = tmp_path / "views" / "one.json"
    written = []
    for _ in range(2):
        assert run("project=p", "views=[run]", "dry_run=true", "output=views/one.json")[0] == 0
        written.append(file.read_bytes())
    assert set(json.loads(written[0])) == {"run"}
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "project= is missing: give a project of W&B, such as project=bdbnet or project=team/bdbnet"),
        (["project=p", "views=[all]"], "give a list of views: run, height_ratio, paper"),
        (["project=p", "dry_run=true", "table=12"], "table=12: the paper has none of that name"),
    ],
)
def test_wrong_arguments(arguments, said, run):
    status, error = run(*arguments)
    assert status == 1
    assert said in error


def test_without_the_library_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    status, error = run("project=p", "dry_run=true")
    assert status == 1
    assert 'pip install "bdbnet[dashboard]"' in error


def test_without_a_key_and_for_a_project_that_can_t_be_written(monkeypatch, tmp_path):
    view = run_view(Library(), "team", "p")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="run `wandb login`, or set WANDB_API_KEY"):
        save(view)

    def refused():
        raise wandb.errors.CommError("permission denied")

    monkeypatch.setattr("bdbnet.reporting.workspaces._api", lambda: None)
    object.__setattr__(view, "save", refused)
    with pytest.raises(ConfigError, match=r"permission denied.*check project= and entity="):
        save(view)
