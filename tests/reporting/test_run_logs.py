"""Runs in W&B and TensorBoard, read back from the files that they wrote."""

import http.server
import json
import math
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import wandb_files
from bdbnet.config import ConfigError
from bdbnet.evaluate import main as evaluate_main
from bdbnet.evaluation.run_log import Picture, RunFacts, logged
from bdbnet.reporting import tensorboard_logger, wandb_logger
from bdbnet.reporting.wandb import _mode
from bdbnet.results import read_result
from bdbnet.stopping import Stopped
from bdbnet.train import main as train_main
from bdbnet.training.module import TrainingModule

TINY = [
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}",
    "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3",
    "trainer.accelerator=cpu", "callbacks.progress=false",
]  # fmt: skip
QUIET = [
    f"logger.logger.{key}"
    for key in (
        "ranking_lists=0",
        "worst_queries=0",
        "distances=false",
        "masks=false",
        "activation_maps=0",
        "model=false",
    )
]
EVALUATE = [
    "run_name=e", "logger=wandb", "logger.logger.ranking_lists=0", "logger.logger.activation_maps=0",
    "loading.num_workers=0", "trainer.accelerator=cpu",
    "analysis=true",
]  # fmt: skip
VARIABLES = (
    "PROJECT",
    "ENTITY",
    "NAME",
    "NOTES",
    "RUN_GROUP",
    "JOB_TYPE",
    "RUN_ID",
    "TAGS",
    "DIR",
    "DATA_DIR",
    "API_KEY",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


class Runs(SimpleNamespace):
    """Folders of runs and what they printed."""

    folder: Path
    said: str

    @property
    def training(self) -> Path:
        return self.folder / "outputs" / "train" / "a"


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_data):
    """A training that fails in its second epoch, the same resumed, and an evaluation of it; each with `logger=wandb`."""
    folder = tmp_path_factory.mktemp("wandb")
    shared = [*TINY, f"data_root={tiny_data}"]
    step = TrainingModule.training_step

    def failing(self, batch, index):
        if self.current_epoch == 1:
            raise RuntimeError("broken on purpose")
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        lines = io_of(patch)
        fewer = [
            f"{place}.logger.{key}"
            for place in ("logger", "loggers.tensorboard")
            for key in ("ranking_lists=2", "worst_queries=3")
        ]
        own = ["run_name=a", "logger=[wandb,tensorboard]", *fewer, "trainer.max_epochs=2", "evaluation.every_n_epochs=1",
               "callbacks.checkpoint_every_seconds=0", "logger.logger.tags=[mine]", "logger.logger.notes=a note"]  # fmt: skip
        patch.setattr(TrainingModule, "training_step", failing)
        patch.setattr(sys, "argv", ["train", *shared, *own])
        with pytest.raises(SystemExit):
            train_main()
        patch.setattr(TrainingModule, "training_step", step)
        patch.setattr(sys, "argv", ["train", *shared, *own, "ckpt_path=last"])
        train_main()
        patch.setattr(
            sys, "argv", ["evaluate", "checkpoint=outputs/train/a/last.ckpt", f"data_root={tiny_data}", *EVALUATE]
        )
        evaluate_main()
    about = [str(each.message) for each in told if "wandb" in f"{each.filename}{each.message}".lower()]
    return Runs(folder=folder, said="".join(lines), about=about)


def io_of(patch) -> list[str]:
    """What is written to standard output and standard error from now on."""
    lines: list[str] = []
    for name in ("stdout", "stderr"):
        patch.setattr(getattr(sys, name), "write", lambda text: lines.append(text) or len(text))
    return lines


def test_a_resumed_run_is_one_run(written):
    failed, resumed = wandb_files.runs(written.training)
    assert failed.id == resumed.id
    assert (failed.exit_code, resumed.exit_code) == (1, 0)
    assert failed.resume
    assert resumed.resume
    for run in (failed, resumed):
        assert (run.project, run.name, run.group, run.job_type, run.notes) == ("bdbnet", "a", "", "train", "a note")
        assert set(run.tags) == {"synthetic_reid", "triplet", "mine"}
    assert not any(name.startswith(("final/", "best/")) for name in failed.summary)
    # W&B's own step rises over both, else it would drop the second part
    steps = [row["_step"] for run in (failed, resumed) for row in run.history]
    assert steps == sorted(set(steps))


def test_the_summary_holds_what_the_result_holds(written):
    result = read_result(written.training / "result.json")
    summary = wandb_files.runs(written.training)[1].summary
    for section, metrics in (("final", result.metrics), ("best", result.best["metrics"])):
        assert {name: summary[f"{section}/{name}"] for name in metrics} == metrics
    assert summary["best/epoch"] == result.best["epoch"]
    assert summary["best/note"] == "selected on the test set; optimistically biased"
    assert summary["parameters"] == result.parameters
    assert summary["images_per_second/train"] == result.images_per_second["train"]


def test_epochs_are_those_of_the_history(written):
    failed, resumed = wandb_files.runs(written.training)
    rows = [row for run in (failed, resumed) for row in run.history if "train/lr" in row]
    history = pd.read_csv(written.training / "history.csv")
    assert [row["epoch"] for row in rows] == history["epoch"].tolist() == [1, 2]
    assert [row["images_seen"] for row in rows] == [16, 32]
    names = {"loss": "train/loss/sum", "learning_rate": "train/lr", "images_per_second": "train/images_per_second",
             "mAP": "test/mAP", "loss/triplet_global": "train/loss/triplet_global"}  # fmt: skip
    for column, name in names.items():
        assert [row[name] for row in rows] == pytest.approx(history[column].tolist())
    assert {"train/*": "epoch", "test/*": "epoch"}.items() <= resumed.axes.items()
    sections = {name.partition("/")[0] for row in rows for name in row if not name.startswith("_")}
    assert sections == {"train", "test", "epoch", "images_seen"}


def test_the_config_is_flat_where_it_counts_and_names_no_place(written, tiny_data):
    run = wandb_files.runs(written.training)[1]
    result = read_result(written.training / "result.json")
    assert run.config["data_fingerprint"] == result.data["fingerprint"]
    assert run.config["data_query_images"] == result.data["counts"]["query"]["images"] == 8
    assert (run.config["protocol_task"], run.config["protocol_image_size"]) == ("reid", "64x32")
    assert run.config["dropping"]["height_ratio"] == 0.3
    text = json.dumps(run.config)
    assert str(tiny_data) not in text
    assert str(written.folder) not in text
    assert not {"data_root", "output_root", "logger"} & run.config.keys()


def test_pictures_tables_and_artifacts(written):
    run = wandb_files.runs(written.training)[1]
    lists = run.summary["test/ranking_lists"]
    assert (lists["count"], len(lists["captions"])) == (2, 2)
    for name in [
        *lists["filenames"],
        *run.summary["train/drop_masks"]["filenames"],
        *run.summary["test/activation_maps"]["filenames"],
        *run.summary["test/roc"]["filenames"],
    ]:
        assert Image.open(run.folder / "files" / name).size[0] > 100
    assert run.summary["test/distances"]["count"] == 1
    table = json.loads((run.folder / "files" / run.summary["test/worst_queries"]["path"]).read_text())
    assert table["columns"][:4] == ["query", "rank 1", "path", "label"]
    precision = [row[table["columns"].index("AP")] for row in table["data"]]
    assert len(precision) == 3
    assert precision == sorted(precision)
    assert set(run.artifacts[f"model-{run.id}".join(["model:", ""])]) == {
        "README.md",
        "bdbnet.json",
        "model.safetensors",
    }
    assert set(run.artifacts[f"result:result-{run.id}"]) == {"result.json", "history.csv"}


def test_the_model_artifact_is_a_folder_that_loads(written):
    import bdbnet

    assert bdbnet.load(written.training / "wandb" / "model", device="cpu").dimensions == 1536


def test_an_evaluation_is_a_run_that_names_the_training_s(written):
    (run,) = wandb_files.runs(written.folder / "outputs" / "evaluate" / "e")
    result = read_result(written.folder / "outputs" / "evaluate" / "e" / "result.json")
    assert (run.job_type, run.name, run.exit_code) == ("evaluate", "e", 0)
    assert {name: run.summary[f"final/{name}"] for name in result.metrics} == result.metrics
    trained = wandb_files.runs(written.training)[1]
    assert run.id != trained.id
    assert run.config["trained_in"] == f"bdbnet/{trained.id}"
    assert run.config["checkpoint"] == "last.ckpt"
    assert set(run.artifacts[f"result:result-{run.id}"]) == {"result.json", "analysis.json"}
    assert "test/roc" in run.summary


def test_the_sync_line_is_printed_and_no_library_warns(written):
    for run in wandb_files.runs(written.folder):
        assert f"wandb sync outputs/{run.folder.relative_to(written.folder / 'outputs')}\n" in written.said
    assert written.about == []
    assert "wandb: " not in written.said
    assert "WARN" not in written.said


def test_everything_lies_in_the_run_folders(written):
    assert {path.name for path in written.folder.iterdir()} == {"outputs"}
    (identity,) = {run.id for run in wandb_files.runs(written.training)}
    assert {"model", f"data-{identity}"} <= {path.name for path in (written.training / "wandb").iterdir()}


def test_the_jobs_of_a_sweep_are_a_group(tmp_path, monkeypatch, tiny_data):
    monkeypatch.chdir(tmp_path)
    ratios = ["-m", "dropping.height_ratio=0.1,0.3,0.5", "trainer.max_epochs=1", "sweep_name=ratios"]
    monkeypatch.setattr(sys, "argv", ["train", *ratios, "logger=wandb", *TINY, *QUIET, f"data_root={tiny_data}"])
    train_main()
    runs = wandb_files.runs(tmp_path)
    assert [run.name for run in runs] == [f"dropping.height_ratio={ratio}" for ratio in (0.1, 0.3, 0.5)]
    assert len({run.id for run in runs}) == 3
    assert {(run.group, run.exit_code) for run in runs} == {("ratios", 0)}
    for run in runs:
        result = read_result(run.folder.parent.parent / "result.json")
        assert run.summary["final/mAP"] == result.metrics["mAP"]
        assert run.config["dropping"]["height_ratio"] == result.config["dropping"]["height_ratio"]


# TensorBoard


@pytest.fixture(scope="module")
def events(written) -> EventAccumulator:
    found = EventAccumulator(str(written.training / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    return found.Reload()


def test_tensorboard_has_the_same_sections(written, events):
    history = pd.read_csv(written.training / "history.csv")
    for column, tag in (("learning_rate", "train/lr"), ("loss", "train/loss/sum"), ("mAP", "test/mAP")):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2]
        assert [point.value for point in points] == pytest.approx(history[column].tolist(), rel=1e-6)
    assert [point.value for point in events.Scalars("images_seen")] == [16, 32]
    assert "hp_metric" not in events.Tags()["scalars"]


def test_tensorboard_has_pictures(events):
    tags = set(events.Tags()["images"])
    pictures = {"train/drop_masks", "test/activation_maps", "test/roc", "test/distances", "test/ranking_lists/2"}
    assert pictures | {"test/worst_queries/1"} <= tags
    assert events.Images("test/ranking_lists/1")[0].step == 2
    assert "first match rank" in str(events.Tensors("test/worst_queries/text_summary")[0].tensor_proto.string_val)


def test_hyperparameters_stand_beside_the_final_metrics(written, events):
    result = read_result(written.training / "result.json")
    for name, value in result.metrics.items():
        assert events.Scalars(f"final/{name}")[0].value == pytest.approx(value)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert parameters["dropping.height_ratio"].number_value == pytest.approx(0.3)
    assert parameters["data_fingerprint"].string_value == result.data["fingerprint"]
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {each.name.tag for each in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert {"final/rank1", "final/mAP", "best/mAP"} <= metrics
    assert "hp_metric" not in metrics


def test_a_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ConfigError, match=r'logger=tensorboard needs tensorboard .*pip install "bdbnet\[tensorboard\]"'
    ):
        tensorboard_logger(save_dir=tmp_path)


# Beginnings and ends


def facts(folder: Path, **changes) -> RunFacts:
    return RunFacts("train", folder, {"dataset": {"name": "market1501"}}, {"name": "market1501"}, {}, "a", **changes)


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped(15), 143), (Stopped(2), 130), (KeyboardInterrupt(), 130), (ValueError("x"), 1)]
)
def test_an_interrupted_run_ends_with_its_status(error, status, tmp_path):
    closed = []

    class Watching(SimpleNamespace):
        def begin(self, facts): ...
        def log_row(self, row): ...
        def log_pictures(self, name, pictures, *, of_images): ...
        def log_outcome(self, outcome): ...
        def close(self, status):
            closed.append(status)

    with pytest.raises(type(error)), logged([Watching()], facts(tmp_path)):
        raise error
    assert closed == [status]


def test_what_wandb_s_variables_say_is_respected(tmp_path, monkeypatch):
    for name, value in (("PROJECT", "theirs"), ("ENTITY", "team"), ("NAME", "n"), ("NOTES", "text"), ("RUN_GROUP", "g"),
                        ("JOB_TYPE", "j"), ("RUN_ID", "given123"), ("TAGS", "x,y")):  # fmt: skip
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it reads them once in a process
    with logged([wandb_logger(save_dir=tmp_path, tags=["z"])], facts(tmp_path, group="sweep")):
        pass
    (run,) = wandb_files.runs(tmp_path)
    assert (run.project, run.entity, run.name, run.notes) == ("theirs", "team", "n", "text")
    assert (run.group, run.job_type, run.id, set(run.tags)) == ("g", "j", "given123", {"x", "y", "z"})
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize(
    ("typed", "variable", "mode"),
    [
        (None, "", "offline"), (None, "online", "online"), (None, "offline", "offline"), (None, "disabled", "disabled"),
        (False, "", "online"), (False, "offline", "offline"), (False, "disabled", "disabled"), (True, "online", "offline"),
    ],
)  # fmt: skip
def test_nothing_is_sent_unless_asked(typed, variable, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", variable)
    assert _mode(typed) == mode


def test_a_run_that_replaces_another_is_a_new_one(tmp_path):
    for anew in (False, False, True):
        with logged([wandb_logger(save_dir=tmp_path)], facts(tmp_path, anew=anew)):
            pass
    ids = [run.id for run in wandb_files.runs(tmp_path)]
    assert len(set(ids)) == 2
    assert (tmp_path / ".wandb_id").read_text().strip().rpartition("/")[2] in ids


def test_a_disabled_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with logged([wandb_logger(save_dir=tmp_path)], facts(tmp_path)) as log:
        log.row({"epoch": 1, "loss": 2.0}, 8)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_log_nothing(tmp_path, monkeypatch):
    from pytorch_lightning.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with logged([wandb_logger(save_dir=tmp_path)], facts(tmp_path)) as log:
        log.row({"epoch": 1, "loss": 2.0}, 8)
    assert list(tmp_path.iterdir()) == []


# Pictures


def pictures_in(folder: Path, name: str = "test/maps") -> dict:
    (run,) = wandb_files.runs(folder)
    return run.summary.get(name, {})


@pytest.mark.parametrize(
    ("dataset", "images", "shown"),
    [
        ("market1501", None, False), ("market1501", True, True), ("cub200", None, False), ("synthetic_reid", None, True),
        ("synthetic_reid", False, False), ("synthetic_mine", None, False),
    ],
)  # fmt: skip
def test_images_of_real_data_are_shown_where_the_user_says_so(dataset, images, shown, tmp_path):
    run = RunFacts("train", tmp_path, {"dataset": {"name": dataset}}, {"name": dataset}, {}, "a")
    logger = wandb_logger(save_dir=tmp_path, images=images)
    with logged([logger], run):
        logger.log_pictures("test/maps", [Picture(np.zeros((8, 4, 3), np.uint8), "a map")], of_images=True)
        logger.log_pictures("test/curve", [Picture(np.zeros((8, 4, 3), np.uint8))], of_images=False)
    assert bool(pictures_in(tmp_path)) == shown
    assert pictures_in(tmp_path, "test/curve")["count"] == 1


def test_pictures_beyond_wandb_s_limits_are_made_smaller(tmp_path):
    logger = wandb_logger(save_dir=tmp_path)
    with logged([logger], facts(tmp_path)):
        logger.log_pictures("test/huge", [Picture(np.zeros((70_000, 7, 3), np.uint8))], of_images=False)
        with pytest.warns(UserWarning, match="110 pictures; the first 108 are logged"):
            logger.log_pictures("test/many", [Picture(np.zeros((2, 2), np.uint8))] * 110, of_images=False)
    assert (pictures_in(tmp_path, "test/huge")["height"], pictures_in(tmp_path, "test/huge")["width"]) == (4096, 1)
    assert pictures_in(tmp_path, "test/many")["count"] == 108


def test_a_picture_that_is_none_is_left_out_and_the_run_goes_on(tmp_path):
    logger = wandb_logger(save_dir=tmp_path)
    with logged([logger], facts(tmp_path)) as log:
        with pytest.warns(UserWarning, match=r"float64 \(4, 4\); this is left out"):
            logger.log_pictures("test/maps", [Picture(np.zeros((4, 4)))], of_images=False)
        log.row({"epoch": 1, "loss": 2.0}, 8)
    (run,) = wandb_files.runs(tmp_path)
    assert run.history[-1]["train/loss/sum"] == 2.0


# What may be broken


def refused(tmp_path) -> str:
    with pytest.raises(ConfigError) as error, logged([wandb_logger(save_dir=tmp_path, offline=False)], facts(tmp_path)):
        raise AssertionError("the run has begun")
    return str(error.value)


def test_without_a_key_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))  # with no key in .netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()
    said = refused(tmp_path)
    assert "no key of W&B" in said
    assert "wandb login" in said
    assert "logger.logger.offline=true" in said


class Denying(http.server.BaseHTTPRequestHandler):
    """A W&B that knows the user, but lets nobody write."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, answer = 200, {"data": {"serverInfo": {"features": []}}}
        if "upsertBucket" in asked:
            status, answer = 403, {"errors": [{"message": "permission denied", "path": ["upsertBucket"]}]}
        elif "viewer" in asked.lower():
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            answer = {"data": {"viewer": viewer, "serverInfo": {}}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None: ...


@pytest.mark.end_to_end
def test_a_project_that_the_server_refuses_ends_the_run_before_it_begins(tmp_path, monkeypatch, capfd):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_ENTITY", "team")
        wandb.teardown()
        said = refused(tmp_path)
        server.shutdown()
    assert "the project team/bdbnet can't be written (permission denied)" in said
    assert "wandb: " not in "".join(capfd.readouterr())
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (wandb.errors.CommError("permission denied (403)"), "the project team/p can't be written (permission denied (403))"),
        (wandb.errors.CommError("Run initialization has timed out after 90.0 sec"), "W&B can't be reached or doesn't start"),
        (RuntimeError("protobuf gencode"), "W&B fails (RuntimeError: protobuf gencode). Update it"),
    ],
)  # fmt: skip
def test_a_project_that_can_t_be_written_and_other_failures(error, said, tmp_path, monkeypatch):
    def init(**_):
        raise error

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ConfigError) as told:
        wandb_logger(save_dir=tmp_path, project="p", entity="team").begin(facts(tmp_path))
    assert said in str(told.value)


def test_a_missing_and_a_broken_wandb_end_the_command_before_it_begins(tmp_path, monkeypatch, tiny_config):
    from bdbnet.training.runs import train

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match="needs wandb, which is not installed: pip install wandb, or leave logger=wandb out"
    ):
        train(tiny_config("logger=wandb", f"logger.logger.save_dir={tmp_path}"), tmp_path)
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text("raise RuntimeError('half an installation')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ConfigError, match=r"can't be imported \(RuntimeError: half an installation\)"):
        wandb_logger(save_dir=tmp_path)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text("")
    with pytest.raises(ConfigError, match="is imported in place of the package wandb"):
        wandb_logger(save_dir=tmp_path)
    sys.modules.pop("wandb", None)


def test_a_run_goes_on_without_wandb_when_that_fails_later(tmp_path, monkeypatch):
    logger = wandb_logger(save_dir=tmp_path)
    with logged([logger], facts(tmp_path)) as log:
        monkeypatch.setattr(logger.experiment, "log", lambda *_, **__: 1 / 0)
        with pytest.warns(UserWarning, match="ZeroDivisionError.*the run continues without it"):
            log.row({"epoch": 1, "loss": math.pi}, 8)
        log.row({"epoch": 2, "loss": math.pi}, 16)  # told once


def test_importing_the_reports_does_not_load_wandb():
    import subprocess

    code = "import sys, bdbnet.reporting.run_page; sys.exit('wandb' in sys.modules)"
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source), "PATH": ""}, check=False)
    assert done.returncode == 0
