"""Trainings that fill tables: each once, going on where they stopped, whatever happens to the others."""

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock

import wandb_files
from bdbnet.files import LOCK
from bdbnet.reproduction import running
from bdbnet.reproduction.cells import FAILURE, State
from bdbnet.reproduction.measured import jobs_of, measure
from bdbnet.reproduction.running import IncompleteError, check_complete, run_missing
from bdbnet.results import LAST, RESULT
from bdbnet.stopping import Stopped
from bdbnet.training.callbacks import History
from forked_commands import Command
from toy_tables import BUDGET, TABLE


@pytest.fixture
def jobs(tmp_path, table, toy_budget):
    """``jobs("key=value", ...)``: the jobs of the table under the budget with these overrides, for seed 1."""
    return lambda *overrides, seeds=(1,): jobs_of(
        [measure(table, toy_budget(*overrides), tmp_path / "runs", seeds)], seeds
    )


@pytest.fixture
def trained(monkeypatch):
    """Folders in which a training began, in order."""
    folders, real = [], running.train

    def train(config, folder):
        folders.append(folder)
        return real(config, folder)

    monkeypatch.setattr(running, "train", train)
    return folders


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def first_done(jobs, tmp_path, kept):
    """The first job, done: trained once for the tests of one process, and copied for each."""
    if kept.exists():
        shutil.copytree(kept, tmp_path / "runs")
    (run,) = run_missing(jobs()[:1])
    if not kept.exists():
        shutil.copytree(tmp_path / "runs", kept)
    return run


def test_every_cell_is_trained_once_and_recorded(jobs, trained, capsys):
    runs = run_missing(jobs())
    assert [run.state for run in runs] == [State.DONE] * 2
    assert [run.result.seed for run in runs] == [1, 1]
    assert len(trained) == 2
    assert "Table" not in capsys.readouterr().out
    again = run_missing(jobs())
    assert [run.result for run in again] == [run.result for run in runs]
    assert len(trained) == 2
    record = json.loads((runs[0].folder.parent / "cell.json").read_text())
    assert record["settings"]["model.branches"] == ["global"]


class Killed(BaseException):
    """What a killed process is to its own code: the end."""


def test_a_killed_training_goes_on(jobs, trained, monkeypatch):
    def die(self, trainer, module, real=History.on_train_epoch_start):
        if trainer.current_epoch == 1:
            raise Killed
        real(self, trainer, module)

    each_epoch = "callbacks.checkpoint_every_seconds=0"
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", die)
        with pytest.raises(Killed):
            run_missing(jobs(each_epoch)[:1])
    stopped = jobs(each_epoch)[0].cell.inspect(1)
    assert stopped.state is State.STARTED
    done = run_missing(jobs(each_epoch)[:1])[0]
    assert done.state is State.DONE
    assert len((done.folder / "history.csv").read_text().splitlines()) == 3
    assert trained == [done.folder] * 2


def test_sigterm_stops_all_trainings_and_the_same_call_resumes(jobs, trained, monkeypatch):
    def terminate(self, trainer, module, real=History.on_train_epoch_start):
        real(self, trainer, module)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", terminate)
        with pytest.raises(Stopped):
            run_missing(jobs())
    assert len(trained) == 1
    assert [job.cell.inspect(1).state for job in jobs()] == [State.STARTED, State.OPEN]
    runs = run_missing(jobs())
    assert [run.state for run in runs] == [State.DONE] * 2
    check_complete(runs, "weights")


def test_trainings_log_where_reproduce_is_told(jobs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (done,) = run_missing(jobs()[:1], loggers=["wandb", "tensorboard"])
    (run,) = wandb_files.runs(done.folder)
    table, _, place = jobs()[0].places[0].partition(":")
    assert (run.job_type, run.group, run.exit_code) == ("reproduce", table, 0)
    assert run.name == f"{table}:{place}, seed 1"
    assert table in run.tags
    assert run.summary["final/mAP"] == done.result.metrics["mAP"]
    assert list((done.folder / "tensorboard").glob("events.out.tfevents.*"))


def test_trainings_without_a_result_are_counted_with_their_reasons(jobs, first_done):
    absent = jobs("backbone.weights=weights/w.pth")[0]
    wrong = jobs("loss.metric.margin=-1")[1]
    with pytest.raises(IncompleteError) as stop:
        check_complete(run_missing([absent, wrong]), "weights")
    said = str(stop.value)
    assert said.startswith("2 of 2 trainings have no result:\n  1 x data absent: weights/w.pth: no such file\n  1 x ")
    assert "margin: expected" in said
    assert "give weights_root=<their folder>" in said
    check_complete(run_missing(jobs(), seconds=-1), "weights")  # said, and wanted


def test_a_full_disk_ends_all_trainings(jobs, trained, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bdbnet.training.checkpoint_files.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        run_missing(jobs())
    assert len(trained) == 1


def test_a_training_cut_short_by_a_limit_is_not_done(jobs, first_done):
    run = first_done
    record = json.loads((run.folder / RESULT).read_text())
    (run.folder / RESULT).write_text(json.dumps(record | {"epochs": 1}))
    assert jobs()[0].cell.inspect(1).remark == "stopped after epoch 1 of 2"
    assert run_missing(jobs()[:1])[0].state is State.DONE


@pytest.mark.parametrize("name", [RESULT, LAST])
def test_what_a_killed_process_wrote_by_half_is_written_again(jobs, first_done, name, capsys):
    done = first_done
    content = (done.folder / name).read_bytes()
    (done.folder / name).write_bytes(content[: len(content) // 2])
    if name == LAST:
        (done.folder / RESULT).unlink()
    again = run_missing(jobs()[:1])[0]
    assert again.state is State.DONE
    assert again.result.metrics == done.result.metrics
    if name == LAST:
        assert "the training starts from the first epoch" in capsys.readouterr().out


def test_a_training_that_diverges_is_recorded_and_the_others_go_on(jobs, trained):
    second = jobs()[1]
    diverging = jobs("optimizer.lr=1e30")[0]
    runs = run_missing([diverging, second])
    assert [run.state for run in runs] == [State.FAILED, State.DONE]
    assert "loss" in runs[0].remark or "evaluated" in runs[0].remark
    assert json.loads((runs[0].folder / FAILURE).read_text())["reason"] == runs[0].remark
    assert run_missing([diverging])[0].state is State.FAILED
    assert len(trained) == 2
    assert run_missing([diverging], retry=True)[0].state is State.FAILED
    assert len(trained) == 3


def test_absent_data_and_wrong_arguments_stop_only_their_own_cell(jobs, capsys):
    absent = jobs("backbone.weights=/nowhere/w.pth")[0]
    wrong = jobs("loss.metric.margin=-1")[1]
    runs = run_missing([absent, wrong, jobs()[0]])
    assert [run.state for run in runs] == [State.ABSENT, State.OPEN, State.DONE]
    said = capsys.readouterr().out
    assert "/nowhere/w.pth: no such file" in said
    assert re.search(r"not run: bdbnet\.losses\.BatchHardTripletLoss: margin: expected .* got -1", said)


@pytest.mark.parametrize("override", ["trainer.devices=2", "trainer.devices=[0,1]", "trainer.num_nodes=2"])
def test_a_training_on_several_devices_is_refused_instead_of_waiting_for_itself(jobs, override, capsys):
    assert run_missing(jobs(override)[:1])[0].state is State.OPEN
    assert "a training of reproduce has one device" in capsys.readouterr().out


def test_the_line_of_a_training_names_the_other_tables_that_show_it(jobs, capsys):
    job = jobs()[0]._replace(
        places=("Table 2: BDB on a", "Table 2: BDB on b", "Table 3: Block on a", "Table 4: BDB on a")
    )
    run_missing([job], seconds=-1)
    assert "[1/1] Table 2: BDB on a (also Table 3, Table 4), seed 1: not started" in capsys.readouterr().out


def test_what_another_process_trains_is_left_to_it(jobs, trained):
    first, second = jobs()
    folder = first.cell.folder / "seed=1"
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        assert [run.state for run in run_missing([first, second])] == [State.RUNNING, State.DONE]
    assert trained == [second.cell.folder / "seed=1"]
    assert run_missing([first])[0].state is State.DONE


def test_no_training_begins_after_the_time_is_over(jobs, trained):
    assert [run.state for run in run_missing(jobs(), seconds=-1)] == [State.OPEN] * 2
    assert not trained


def test_checkpoints_can_be_left_out(jobs):
    run = run_missing(jobs()[:1], keep_checkpoints=False)[0]
    assert run.state is State.DONE
    assert not list(run.folder.glob("*.ckpt"))


def test_one_training_serves_every_table_in_which_it_stands(table, toy_budget, tmp_path):
    measured = measure(table, toy_budget(), tmp_path / "runs", [1, 2])
    found = jobs_of([measured, measured], [1, 2])
    assert [(job.seed, job.cell.settings["model.branches"]) for job in found] == [
        (1, ["global"]), (1, ["global", "dropping"]), (2, ["global"]), (2, ["global", "dropping"]),
    ]  # fmt: skip


@pytest.mark.end_to_end
def test_two_processes_share_the_cells_between_them(tmp_path, toy_data):
    (tmp_path / "two.yaml").write_text(TABLE)
    (tmp_path / "toy.yaml").write_text(BUDGET)
    arguments = [
        f"table={tmp_path / 'two.yaml'}", f"budget={tmp_path / 'toy.yaml'}", "seeds=[1,2]", f"data_root={toy_data}",
        f"output_root={tmp_path / 'out'}",
    ]  # fmt: skip
    processes = [Command("reproduce", *arguments, folder=tmp_path, log=tmp_path / f"{number}") for number in range(2)]
    said = [process.ended() for process in processes]
    begun = [line.split("run folder: ")[1] for text in said for line in text.splitlines() if "run folder: " in line]
    results = sorted(Path(tmp_path / "out").rglob(RESULT))
    assert len(begun) == len(set(begun)) == len(results) == 4
