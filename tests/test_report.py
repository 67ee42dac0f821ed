import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bdbnet.report import main
from bdbnet.results import Protocol, Result
from browser import chromium
from forked_commands import run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset=drawn,loss=none"
    metrics = {"rank1": 0.9121, "mAP": 0.5, "valid_queries": 3.0}
    protocol = Protocol("reid", "drawn", (32, 16))
    Result("evaluate", metrics, protocol, "last", {"fingerprint": "0"}, {"seed": 1}, 1).write(folder / "result.json")
    return folder


def config(**keys: object):
    return OmegaConf.create({"run": None, "queries": 8, "top": 10, "seed": 0} | keys)


def test_prints_the_table_and_the_path(run_folder, capsys):
    main(config(run=str(run_folder)))
    printed = capsys.readouterr().out
    assert "91.2" in printed
    assert f"report: {run_folder / 'report.html'}" in printed
    assert (run_folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "run= is missing"),
        ({"run": "no/such/folder"}, "run=no/such/folder: no such folder"),
        ({"run": "."}, "not a run folder"),
        ({"run": ".", "top": "many"}, "top=many: give a whole number"),
        ({"run": ".", "queries": -1}, "queries=-1: give a whole number of at least 0"),
    ],
)
def test_errors_name_the_key(keys, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(config(**keys))
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_a_sweep_prints_its_table_and_the_paths(run_folder, capsys):
    main(config(run=str(run_folder.parent)))
    printed = capsys.readouterr().out
    assert "91.2" in printed
    assert f"report: {run_folder.parent / 'report.html'}" in printed
    assert all((run_folder.parent / name).is_file() for name in ("report.html", "sweep.csv", "sweep.md", "sweep.tex"))
    assert not (run_folder / "report.html").exists()


def test_a_sweep_without_a_result_is_refused(tmp_path, capsys):
    (tmp_path / "seed=1" / ".hydra").mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(config(run=str(tmp_path)))
    assert "none of the 1 runs of this sweep has a result:\n  seed=1: no epoch finished" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["seed=1"]


def test_half_written_result(run_folder, capsys):
    path = run_folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()))[:50])
    with pytest.raises(SystemExit):
        main(config(run=str(run_folder)))
    assert "result.json: not a complete result" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_command_takes_a_run_folder_as_it_is_named_and_writes_nothing_else(run_folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "report"
    done = run("report", f"run={run_folder.name}", "top=3", folder=run_folder.parent, log=log)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in run_folder.parent.iterdir()] == [run_folder.name]
    assert sorted(path.name for path in run_folder.iterdir()) == ["report.html", "result.json"]
    assert done.stderr == ""


def test_a_page_is_printed_by_a_browser_or_it_is_said_what_to_do(run_folder, capsys, monkeypatch):
    with monkeypatch.context() as without:
        without.setenv("PATH", "")
        with pytest.raises(SystemExit):
            main(config(run=str(run_folder), pdf=True))
        assert "pdf=true needs a browser" in capsys.readouterr().err
    page = run_folder / "report.html"
    assert page.is_file()
    with pytest.raises(SystemExit):
        main(config(run=str(page)))
    assert "a page already; add pdf=true" in capsys.readouterr().err
    if chromium() is None:
        pytest.skip("no Chromium here")
    main(config(run=str(page), pdf=True))
    assert (run_folder / "report.pdf").read_bytes().startswith(b"%PDF-")
