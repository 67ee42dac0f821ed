"""Commands on two machines: torchrun's agents, or processes that are numbered as it does, all of them on this one."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bdbnet.embed
import bdbnet.evaluate
from bdbnet.gallery import EmbeddingStore
from bdbnet.results import read_result
from forked_commands import Command

SOURCE = Path(__file__).resolve().parents[2] / "src"
OPTIONS = (
    "{train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}"
)
TRAIN_AND_EMBED = """
import sys, time
from pathlib import Path

import bdbnet.embed
import bdbnet.train

settings = sys.argv[1:]
cut = settings.index("then")
sys.argv[1:] = settings[:cut]
bdbnet.train.main()
while not Path("outputs/train/two/result.json").exists():  # the first process writes it
    time.sleep(0.05)
sys.argv[1:] = settings[cut + 1 :]
bdbnet.embed.main()
"""

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def settings(tiny_data) -> list[str]:
    """Of a tiny training with one process on each of two machines."""
    return [
        f"data_root={tiny_data}", f"dataset.options={OPTIONS}", "dataset.image_size=[64,32]", "backbone=osnet_x0_25",
        "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "trainer.strategy=ddp", "callbacks.progress=false", "trainer.num_nodes=2", "trainer.devices=1",
    ]  # fmt: skip


def test_two_agents_of_torchrun_train_one_network_and_fill_one_store(settings, port, tiny_data, tmp_path, monkeypatch):
    (script := tmp_path / "train_and_embed.py").write_text(TRAIN_AND_EMBED)
    embedding = [
        "checkpoint=outputs/train/two/last.ckpt", f"images={tiny_data}", "shard_size=4", "loading.num_workers=0",
        "accelerator=cpu",
    ]  # fmt: skip
    train = [*settings, "trainer.max_epochs=2", "run_name=two"]
    agents = [
        Command(
            "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1",
            f"--master-port={port}", str(script), *train, "then", *embedding, "output=shared",
            folder=tmp_path, log=tmp_path / f"{node}", PYTHONPATH=str(SOURCE), OMP_NUM_THREADS="1",
        )
        for node in range(2)
    ]  # fmt: skip
    first, second = (agent.ended() for agent in agents)
    assert "2 processes: each step has 8 images, 4 for each of them" in first
    assert ["after training" in text for text in (first, second)] == [True, False]

    # What two machines have evaluated and embedded is what one process does.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embed", *embedding, "output=alone"])
    bdbnet.embed.main()
    shared, alone = EmbeddingStore.open(tmp_path / "shared"), EmbeddingStore.open(tmp_path / "alone")
    assert shared.table.equals(alone.table)
    assert shared.fingerprint == alone.fingerprint
    np.testing.assert_allclose(shared.embeddings, alone.embeddings, rtol=0, atol=1e-6)
    assert all("embedded " in text for text in (first, second))
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "checkpoint=outputs/train/two/last.ckpt", "run_name=one", settings[0]]
    )
    bdbnet.evaluate.main()
    result = read_result(tmp_path / "outputs" / "train" / "two" / "result.json")
    assert result.metrics == read_result(tmp_path / "outputs" / "evaluate" / "one" / "result.json").metrics


@pytest.fixture
def start(settings, tmp_path):
    """``start(run_name, arguments of one, of the other, variables=of a machine)``: a training with a process on each of two."""

    def run(name: str, *arguments: list[str], variables: Callable[[int], dict[str, str]]) -> list[Command]:
        return [
            Command(
                "train", *settings, f"run_name={name}", *more, folder=tmp_path, log=tmp_path / f"{name}{node}", OMP_NUM_THREADS="1",
                **variables(node),
            )
            for node, more in enumerate(arguments)
        ]  # fmt: skip

    return run


def test_machines_that_disagree_do_not_start(start, port):
    """They are numbered as SLURM does."""

    def variables(node: int) -> dict[str, str]:
        job = {
            "JOB_ID": "77",
            "JOB_NAME": "x",
            "JOB_NUM_NODES": "2",
            "NNODES": "2",
            "NODELIST": "127.0.0.1",
            "LOCALID": "0",
        }
        task = {"NTASKS": "2", "NTASKS_PER_NODE": "1", "STEP_NUM_TASKS": "2", "PROCID": f"{node}", "NODEID": f"{node}"}
        return {f"SLURM_{name}": value for name, value in (job | task).items()} | {"MASTER_PORT": f"{port}"}

    for process in start(
        "other", ["trainer.max_epochs=1"], ["trainer.max_epochs=1", "optimizer.lr=0.5"], variables=variables
    ):
        done = process.wait()
        assert done.returncode == 1
        assert done.stderr.count("error: processes 0 (on ") == 1
        assert "setting optimizer.lr is 0.001 and 0.5" in done.stderr


def test_a_machine_that_is_killed_ends_the_other(start, port, tmp_path):
    """They are numbered as Lightning's own launcher does."""

    def variables(node: int) -> dict[str, str]:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "NODE_RANK": f"{node}"}

    first, second = start("killed", *2 * [["trainer.max_epochs=1000"]], variables=variables)
    deadline = time.monotonic() + 300
    while not (tmp_path / "outputs" / "train" / "killed" / "history.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    second.kill()
    done = first.wait(60)  # within a minute
    assert done.returncode == 1
    assert (
        "error: another process of the 2 that train together has ended: it has left no message; was it killed"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
