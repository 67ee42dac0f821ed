"""Workflows, hooks and containers name what is there: make targets, Python versions, tools, files, extras."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from bdbnet.__main__ import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
MAKEFILE = (CHECKOUT / "Makefile").read_text()
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, object]]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there(path):
    lines = [line for step in steps(path) for line in str(step.get("run", "")).splitlines()]
    for target in [each for line in lines for each in re.findall(r"^make (\w+)", line)]:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for command in [each for line in lines for each in re.findall(r"-m bdbnet\.(\w+)|bin/bdbnet (\w+)", line)]:
        assert (command[0] or command[1]) in COMMANDS
    assert lines


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_alone(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_tests_run_on_the_oldest_and_the_newest_python_that_the_package_names():
    matrix = yaml.safe_load((CHECKOUT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+", each)]
    assert matrix["python"] == [named[0], named[-1]]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_hooks_are_the_tools_of_make_lint():
    (repo,) = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {Path(hook["entry"].split()[0]).name for hook in repo["hooks"]}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", recipe))


def test_the_image_is_built_from_files_that_are_there():
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*)", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    ignored = (CHECKOUT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (CHECKOUT / name).exists()
        assert f"!{name}" in ignored, f"{name} is left out of the build by .dockerignore"
    extras = re.search(r"^ARG EXTRAS=(.*)", dockerfile, re.MULTILINE)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    # whatever the wheel carries is copied
    wheel = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["force-include"], "src"} <= set(copied)


def test_the_page_of_compose_listens_where_it_is_published():
    services = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())["services"]
    port = yaml.safe_load((CHECKOUT / "conf" / "serve.yaml").read_text())["port"]
    assert services["page"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"EXPOSE {port}" in (CHECKOUT / "Dockerfile").read_text()
    assert services["page"]["command"][0] in COMMANDS


def test_the_citation_and_the_changes_are_of_this_version():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    changes = (CHECKOUT / "CHANGELOG.md").read_text()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in changes or "## Unreleased" in changes


def test_wheel_and_sdist_have_the_same_package(tmp_path):
    """The wheel that is built from the sdist has the files of the one that is built from the checkout."""

    def built(folder: Path, kind: str, into: Path) -> Path:
        code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(into)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        return into / done.stdout.split()[-1]

    wheel = built(CHECKOUT, "wheel", tmp_path)
    # Not extractall(filter="data"), which Python 3.11.2 of Debian does not know; the archive is our own.
    shutil.unpack_archive(built(CHECKOUT, "sdist", tmp_path), tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "again").mkdir()
    names = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, built(source, "wheel", tmp_path / "again"))]
    assert names[0] == names[1]
    assert {"bdbnet/py.typed", "bdbnet/conf/train.yaml", "bdbnet/experiments/paper/table1.yaml"} <= names[0]
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "constraints.txt"):
        assert (source / name).is_file()
