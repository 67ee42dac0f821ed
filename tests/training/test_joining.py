"""Ranks that meet: who is missing, and who sees something else."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import DistNetworkError, HashStore

from bdbnet.command_line import is_first
from bdbnet.config import ConfigError, plain
from bdbnet.loading.from_config import build_manifest
from bdbnet.training.joining import (
    DisagreementError,
    check_started,
    facts_of_rank,
    joined,
    meet,
    told_before_meeting,
)


def meeting(*facts, seconds=5.0) -> list[BaseException | None]:
    """What each rank says of a meeting with these facts; of None the rank never comes."""
    store, there = HashStore(), [rank for rank, each in enumerate(facts) if each is not None]
    with ThreadPoolExecutor(len(facts)) as pool:
        ranks = [pool.submit(meet, store, rank, len(facts), facts[rank], seconds) for rank in there]
        return [rank.exception() for rank in ranks]


@pytest.fixture
def facts(tiny_config):
    config = tiny_config()
    return facts_of_rank(plain(config), build_manifest(config), None)


def test_ranks_that_see_the_same_meet(facts):
    assert meeting(facts, facts, facts) == [None, None, None]


def test_a_rank_with_another_version_setting_or_data_is_named_on_all(facts):
    path, size = next(iter(facts["size in bytes of"].items()))
    rate = facts["setting"]["optimizer.lr"]
    for other, message in (
        ({"bdbnet": "0.0.1"}, f"bdbnet is {facts['bdbnet']} and 0.0.1"),
        ({"setting": facts["setting"] | {"optimizer.lr": 1.0}}, f"setting optimizer.lr is {rate} and 1.0"),
        ({"setting": facts["setting"] | {"trainer.precision": "16"}}, "setting trainer.precision is 32-true and 16"),
        ({"fingerprint of the data": "abc"}, "fingerprint of the data is "),
        ({"size in bytes of": facts["size in bytes of"] | {path: 7}}, f"size in bytes of {path} is {size} and 7"),
        ({"size in bytes of": facts["size in bytes of"] | {path: None}}, f"{path} is {size} and None"),
        ({"checkpoint to resume from": "last.ckpt of step 4"}, "resume from is None and last.ckpt of step 4"),
    ):
        said = meeting(facts, facts, {**facts, **other})
        assert all(isinstance(error, DisagreementError) for error in said)
        assert len({str(error) for error in said}) == 1
        assert f"processes 0 (on {socket.gethostname()}) and 2 (on {socket.gethostname()})" in str(said[0])
        assert message in str(said[0])


def test_a_rank_that_never_comes_is_named(facts, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    monkeypatch.setenv("MASTER_PORT", "29500")
    said = meeting(facts, None, facts, None, seconds=0.1)
    assert len(said) == 2
    for error in said:
        assert "2 of 4 processes have met within 0.1 s at MASTER_ADDR=node-a MASTER_PORT=29500" in str(error)
        assert "missing: processes 1, 3. Start the same command on every machine" in str(error)
        assert "trainer.join_seconds=" in str(error)


@pytest.fixture
def port(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        yield free


def test_a_port_in_use_is_named(port):
    port.listen()
    with pytest.raises(ConfigError, match=rf"MASTER_PORT={port.getsockname()[1]} of .* is in use by another program"):
        joined(0, 2, 1)


def test_a_first_rank_that_does_not_answer_is_named(port):
    with pytest.raises(ConfigError, match=r"1 of 2 processes have met within 0.1 s .*process 0 does not answer"):
        joined(1, 2, 0.1)


@pytest.mark.parametrize("ends", [0, 1])
def test_a_rank_that_ends_before_the_meeting_says_why_to_the_other(ends, port, facts, monkeypatch):
    port.close()
    monkeypatch.setenv("RANK", f"{ends}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: meet(joined(1 - ends, 2, 10), 1 - ends, 2, facts, 5))
        with pytest.raises(FileNotFoundError, match=r"/data/b\.jpg"), told_before_meeting():
            raise FileNotFoundError(2, "No such file or directory", "/data/b.jpg")
        with pytest.raises(DisagreementError, match=rf"process {ends} of 2 \(on .*\) has ended: .*'/data/b\.jpg'"):
            other.result()


def test_the_first_rank_names_those_that_never_come(port, facts):
    port.close()
    with pytest.raises(
        DisagreementError, match=r"1 of 3 processes have met within 0.1 s .*missing: processes 1, 2\. Start"
    ):
        meet(joined(0, 3, 0.1), 0, 3, facts, 0.1)


def test_a_first_rank_that_is_gone_is_named(facts):
    class Gone(HashStore):
        def check(self, _: object) -> bool:
            raise DistNetworkError("Connection reset by peer")

    with pytest.raises(DisagreementError, match=r"process 0 of 2 \(on .*\) has ended before all have met"):
        meet(Gone(), 1, 2, facts, 5)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # Lightning's own launcher
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # torchrun
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_the_first_process_of_a_further_machine_is_not_the_first_of_all(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


@pytest.mark.parametrize(
    ("environment", "starter"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4"}, None),  # what Lightning's own launcher leaves behind
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}, "torchrun started 4 processes, but the training has 2"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script: one process, whatever its steps will be
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell of srun --pty
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes, but the training has 2"),
    ],
)
def test_as_many_processes_are_started_as_the_training_has(environment, starter):
    if starter is None:
        check_started(2, environment)
    else:
        with pytest.raises(ConfigError, match=f"^{starter}.*set trainer.devices"):
            check_started(2, environment)
