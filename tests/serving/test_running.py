"""The command: addresses, ports, tokens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from bdbnet.config import ConfigError
from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery.store import StoreError
from bdbnet.serve import main
from bdbnet.serving.address import listening, shown_host, token_of
from bdbnet.serving.running import open_app

CHECKOUT = Path(__file__).resolve().parents[2]


def test_other_machines_need_a_token(tools, monkeypatch):
    monkeypatch.delenv("BDBNET_TOKEN", raising=False)
    config = tools.settings()
    for config.host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match=f"^host={config.host} can be reached by other machines"):
            token_of(config)
    for config.host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        assert token_of(config) is None
    config.token = "long_enough"
    for config.host in ("0.0.0.0", "::", "127.0.0.1"):
        assert token_of(config) == "long_enough"


def test_tokens(tools, monkeypatch):
    monkeypatch.setenv("BDBNET_TOKEN", "from the environment")
    config = tools.settings()
    assert token_of(config) == "from the environment"
    config.token = "auto"
    made = {token_of(config) for _ in range(2)}
    assert len(made) == 2
    assert all(len(token) >= 24 for token in made)
    config.token = 12345678  # as the command line reads it
    assert token_of(config) == "12345678"
    for config.token in ("short", "", "späte Nachricht"):
        with pytest.raises(ConfigError, match=r"^token=: give at least 8 characters"):
            token_of(config)


def test_a_port_that_is_taken_names_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port={port} is taken by another program: try port=(\d+)$") as refused:
            listening("127.0.0.1", port)
        free = int(str(refused.value).rpartition("=")[2])
        with listening("127.0.0.1", free) as sock:
            assert sock.getsockname()[1] == free


def test_small_answers_are_sent_at_once():
    with listening("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_not_of_this_machine():
    with pytest.raises(ConfigError, match=r"^host=192\.0\.2\.1: can't listen there"):
        listening("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"^host=no such host: no such address"):
        listening("no such host", 0)


def test_the_address_that_is_printed():
    assert [shown_host(host) for host in ("127.0.0.1", "::1")] == ["127.0.0.1", "[::1]"]
    assert shown_host("0.0.0.0") == socket.gethostname()


def test_a_network_that_did_not_make_the_gallery_is_refused(tools, stored, make_embedder):
    other: Embedder = make_embedder(1)
    with pytest.raises(StoreError, match="can't be compared"):
        open_app(tools.settings(f"index={stored}", f"checkpoint={other.origin.source}"), None)


def test_a_gallery_that_is_not_there(tools, tmp_path):
    with pytest.raises(StoreError, match=r"there is no such folder of embeddings; python -m bdbnet\.embed makes one"):
        open_app(tools.settings(f"index={tmp_path / 'nothing'}"), None)


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BDBNET", "HYDRA", "PYTHON"))}
    return kept | {"PYTHONPATH": str(CHECKOUT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.end_to_end
def test_the_command_serves_until_a_signal_ends_it(stored, embedder, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "bdbnet.serve", f"index={stored}", f"checkpoint={embedder.origin.source}", "port=0",
         "accelerator=cpu"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("gallery: 19 images of ")
        address = lines[2].split()[1]
        assert address.startswith("http://127.0.0.1:")
        found = httpx.post(f"{address}api/search", data={"row": 2, "k": 3}, timeout=30).json()["results"]
        assert len(found) == 3
        # A client that never ends its request does not keep the server.
        with socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))) as slow:
            slow.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=30)
        assert process.returncode == 143
        assert errors == "\ninterrupted. Start the server again with the same command.\n"
        assert output == ""
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()


@pytest.mark.end_to_end
def test_the_command_refuses_a_taken_port_before_it_loads_the_gallery(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "bdbnet.serve", "index=.", f"port={taken.getsockname()[1]}"], cwd=tmp_path,
            env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("\nerror: port=")
    assert "is taken by another program: try port=" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "index= is missing"), (["index=.", "host=0.0.0.0"], "give a token too")]
)
def test_the_command_says_what_is_missing(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("BDBNET_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert said in capsys.readouterr().err
