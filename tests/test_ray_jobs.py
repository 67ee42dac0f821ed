"""Sweeps on Ray: with a stand-in for its public functions, and on a cluster of its own where it is installed."""

import importlib.util
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from bdbnet import ray_jobs
from bdbnet.config import ConfigError
from bdbnet.ray_jobs import SweepError, run_jobs
from bdbnet.results import read_result, versions
from bdbnet.train import main


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = None


class Ray:
    """Ray's functions over jobs whose ends are written down: one for each try, by seed; what is submitted is kept."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, ends: dict[int, list[object]], gpus: int = 0) -> None:
        self.ends, self.gpus = ends, gpus
        self.submitted: list[tuple[int, str | None]] = []
        self.cancelled: list[int] = []
        self.resources: dict[str, object] = {}
        self.running = False

    def init(self, **_: object) -> None:
        self.running = True
        signal.signal(signal.SIGTERM, lambda *_: None)

    def shutdown(self) -> None:
        self.running = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def put(self, value: object) -> object:
        return value

    def remote(self, **resources: object):
        self.resources = resources

        def submit(_shared: object, config, _version: str) -> int:
            self.submitted.append((config.seed, config.ckpt_path))
            return config.seed

        return lambda _: SimpleNamespace(remote=submit)

    def wait(self, jobs: list[int], **_: object):
        return jobs[:1], jobs[1:]

    def get(self, job: int) -> object:
        end = self.ends[job].pop(0)
        if isinstance(end, BaseException):
            raise end
        return end if isinstance(end, tuple) else (end, 0)

    def cancel(self, job: int, *, force: bool) -> None:
        assert not force
        self.cancelled.append(job)


DONE = JobReturn(_return_value=0.5, status=JobStatus.COMPLETED)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """``sweep(ray, overwrite=False)``: the returns of a sweep over the seeds of a stand-in."""

    def run(ray: Ray, **settings: object):
        monkeypatch.setitem(sys.modules, "ray", ray)
        config = {"seed": 0, "sampler": {"batch_size": 8}, "ckpt_path": None, "overwrite": False, **settings}
        config["hydra"] = {"sweep": {"dir": str(tmp_path)}, "job": {"id": "", "num": 0}}

        def load(config, overrides):
            return OmegaConf.merge(config, OmegaConf.from_dotlist(overrides))

        context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=load))
        launcher = SimpleNamespace(
            address=None, cpus=1, gpus=None, tries=3, config=OmegaConf.create(config), hydra_context=context,
            task_function=None,
        )  # fmt: skip
        before = signal.getsignal(signal.SIGTERM)
        try:
            return run_jobs(launcher, [["sampler.batch_size=8", f"seed={seed}"] for seed in ray.ends], 0)
        finally:
            assert signal.getsignal(signal.SIGTERM) is before
            assert not ray.running

    return run


def test_a_job_whose_worker_dies_is_run_again_and_resumes(sweep, capsys):
    ray = Ray({1: [DONE], 2: [RayError("the worker died\nlong"), ("exit status 143", 143), DONE], 3: [DONE]})
    assert sweep(ray) == [DONE, DONE, DONE]
    assert ray.submitted == [(1, None), (2, None), (3, None), (2, "last"), (2, "last")]
    said = capsys.readouterr().out.splitlines()
    assert said == ["job 2 is run again: its worker died (the worker died)", "job 2 is run again: exit status 143"]
    assert ray.resources == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}


def test_what_is_to_be_overwritten_is_not_resumed(sweep):
    ray = Ray({1: [RayError("dead"), DONE]}, gpus=4)
    assert sweep(ray, overwrite=True) == [DONE]
    assert ray.submitted == [(1, None), (1, None)]
    assert ray.resources["num_gpus"] == 1


def test_jobs_that_fail_are_named_and_the_others_are_done(sweep):
    own = RayTaskError("trace")
    own.cause = ConfigError("bdbnet 0.1 is installed on b")
    ray = Ray({1: [("no such file: a.pth", 1)], 2: [own], 3: [RayError("gone")] * 3, 4: [DONE]})
    with pytest.raises(SweepError) as error:
        sweep(ray)
    assert str(error.value).splitlines() == [
        "3 of 4 jobs have no result:",
        "  job 1 seed=1: no such file: a.pth",
        "  job 2 seed=2: bdbnet 0.1 is installed on b",
        "  job 3 seed=3: its worker died (gone)",
    ]
    assert ray.ends[4] == []


def test_a_sweep_that_is_stopped_asks_its_jobs_to_end(sweep):
    ray = Ray({1: [KeyboardInterrupt()], 2: [DONE], 3: [DONE]})
    with pytest.raises(KeyboardInterrupt):
        sweep(ray)
    assert ray.cancelled == [2, 3]


def test_a_node_with_another_version_says_so():
    with pytest.raises(ConfigError, match=r" has bdbnet \S+, the sweep was started by 0\.0\.1"):
        ray_jobs._run((None, None, None, "."), OmegaConf.create({}), "0.0.1")


def test_a_command_that_leaves_or_fails_is_no_end_of_the_worker(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_jobs, "setup_globals", lambda: None)

    def outcome(run) -> object:
        monkeypatch.setattr(ray_jobs, "run_job", run)
        return ray_jobs._run((None, None, Singleton.get_state(), "."), OmegaConf.create({}), versions().get("bdbnet"))

    def leave(*_: object) -> None:
        try:
            raise ConfigError("no such file")
        except ConfigError:
            sys.exit(1)

    assert outcome(leave) == ("no such file", 1)
    assert outcome(lambda *_: sys.exit(143)) == ("exit status 143", 143)
    assert outcome(lambda *_: DONE) == (DONE, 0)
    fault = JobReturn(_return_value=KeyError("x"), status=JobStatus.FAILED)
    assert outcome(lambda *_: fault) == ("KeyError('x')", 1)


SWEEP = ["-m", "seed=1,2", "hydra/launcher=ray"]


def refusal(monkeypatch, capsys, *more: str) -> str:
    monkeypatch.setattr(sys, "argv", ["train", *SWEEP, *more])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    return capsys.readouterr().err


def test_a_cluster_that_is_gone_is_named_and_without_ray_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", Ray({}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = refusal(monkeypatch, capsys, f"hydra.launcher.address={address}")
    assert f"error: hydra.launcher.address={address}: no Ray cluster answers there (" in said
    assert "ray start --head" in said
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refusal(monkeypatch, capsys)
    assert "error: hydra/launcher=ray needs Ray" in said
    assert "pip install 'bdbnet[ray]'" in said


@pytest.mark.end_to_end
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'bdbnet[ray]'")
def test_two_jobs_on_a_cluster_of_this_machine(tiny_data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    options = "{train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}"
    tiny = [
        f"data_root={tiny_data}", f"dataset.options={options}", "dataset.image_size=[64,32]", "backbone=osnet_x0_25",
        "sampler.batch_size=8", "loading.num_workers=0", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", *SWEEP, *tiny])
    main()
    results = sorted(Path("outputs/sweeps/default").glob("*/result.json"))
    assert [read_result(path).seed for path in results] == [1, 2]
    assert "equal in all runs" in capfd.readouterr().out
