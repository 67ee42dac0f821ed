"""The command `bdbnet`: it lists the commands and runs them."""

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from unittest.mock import Mock

import pytest

from bdbnet import __version__, train
from bdbnet.__main__ import COMMANDS, main
from bdbnet.command_line import LenientParser
from bdbnet.schema import TABLES

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = Path(train.__file__).parent


def said(capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["bdbnet", *arguments])
    main()
    return capsys.readouterr().out


def test_every_command_is_listed_as_its_module_describes_itself():
    assert sorted(COMMANDS) == sorted(TABLES)
    for name, does in COMMANDS.items():
        first = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text())).splitlines()[0]
        assert first == f"``python -m bdbnet.{name}``: {does}."
        assert (CHECKOUT / "conf" / f"{name}.yaml").is_file()


def test_help_has_a_line_for_each_command(capsys, monkeypatch):
    listed = re.findall(r"^  (\w+) +(.+)$", said(capsys, monkeypatch, "--help"), re.MULTILINE)
    assert dict(listed) == COMMANDS
    assert said(capsys, monkeypatch) == said(capsys, monkeypatch, "-h")


def test_the_version(capsys, monkeypatch):
    assert said(capsys, monkeypatch, "--version") == f"bdbnet {__version__}\n"


# Another test may have imported the command.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_command_gets_the_other_arguments(capsys, monkeypatch):
    own = sys.modules["__main__"]
    text = said(capsys, monkeypatch, "train", "--help", "model=pcb")
    assert text.startswith("Trains a network and evaluates it.")
    assert "bdbnet.models.PCBNetwork" in text
    assert sys.modules["__main__"] is own


@pytest.mark.parametrize(
    ("name", "advice"), [("trian", "did you mean bdbnet train? bdbnet --help"), ("dataset=x", "bdbnet --help")]
)
def test_an_unknown_command_names_the_nearest(name, advice, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bdbnet", name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: bdbnet {name}: there is no such command; {advice} lists them\n"


def test_pip_installs_it():
    script = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]["bdbnet"]
    module, _, function = script.partition(":")
    assert getattr(import_module(module), function) is main


def new_process(code: str) -> str:
    """What an interpreter of its own prints, once it has ended well."""
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_loads_no_library():
    code = "import sys, bdbnet.__main__ as m; m.main(); sys.exit(bool({'torch', 'numpy', 'hydra'} & {*sys.modules}))"
    assert new_process(code).startswith("usage: bdbnet COMMAND")


def test_help_of_a_command_loads_no_torch():
    code = (
        "import gc, sys; sys.argv = ['train', '--help']; from bdbnet.train import main; main(); "
        "sys.exit(bool({'torch', 'pandas', 'numpy', 'pyarrow'} & {*sys.modules}) or not gc.isenabled())"
    )
    assert "python -m bdbnet.train" in new_process(code)


def test_a_help_text_that_is_no_string_is_taken(monkeypatch):
    """As argparse of Python 3.14 checks it, which Hydra's own option does not pass."""

    def check(self, action):
        if action.help is not None and "%" not in action.help:
            return

    class NoText:
        pass

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", lambda self, help: self._check_help(Mock(help=help)))
    with pytest.raises(TypeError):
        argparse.ArgumentParser(add_help=False).add_argument(help=NoText())
    LenientParser(add_help=False).add_argument(help=NoText())
    LenientParser(add_help=False).add_argument(help="a text")


def test_embedding_and_metrics_need_no_package_of_training():
    """docs/install.md promises it for an installation without them."""
    code = """
        import sys
        from importlib.abc import MetaPathFinder

        class Absent(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"pytorch_lightning", "wandb", "torchmetrics", "matplotlib"}:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Absent())
        import numpy as np
        import bdbnet

        embeddings = bdbnet.load("bdb_osnet_x0_25_synthetic").embed([np.zeros((64, 32, 3), np.uint8)] * 2)
        print(bdbnet.reid_metrics(embeddings, embeddings.copy(), [1, 2], [1, 2], [1, 1], [2, 2])["valid_queries"])
    """
    assert new_process(dedent(code)) == "2\n"


def test_the_page_explains_every_extra():
    page = (CHECKOUT / "docs" / "install.md").read_text()
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert sorted(listed) == sorted(extras)


def test_a_reader_of_help_may_leave_early():
    line = f"{sys.executable} -m bdbnet train --help | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "Trains a network and evaluates it. Without arguments: the Batch DropBlock Network on rendered toy data.",
        "0",
    ]
    assert not done.stderr
