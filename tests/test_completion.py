"""What the Tab key offers: commands, groups, choices, keys, words and files, and the script of each shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bdbnet.__main__ import COMMANDS, main
from bdbnet.completion import SCRIPTS, fitting_words
from bdbnet.config import compose_settings, config_dir, flatten

NAMES = list(COMMANDS)
CHECKOUT = Path(__file__).resolve().parents[1]


def words(line: str) -> list[str]:
    return fitting_words(line, NAMES)


def test_the_first_word_is_a_command():
    assert words("bdbnet ") == sorted([*(f"{name} " for name in NAMES), "completion ", "--help ", "--version "])
    assert words("bdbnet rep") == ["report ", "reproduce "]
    assert words("bdbnet completion ") == ["bash ", "fish ", "zsh "]
    assert words("bdbnet nothing da") == []


@pytest.mark.parametrize("group", ["dataset", "loss", "backbone", "experiment", "schedule"])
def test_a_group_has_all_its_choices(group):
    choices = {path.stem for path in (config_dir() / group).glob("*.yaml")}
    assert {word.strip() for word in words(f"bdbnet train {group}=")} == {f"{group}={each}" for each in choices}


@pytest.mark.parametrize("command", NAMES)
def test_every_key_of_a_command_can_be_reached(command):
    """Dot by dot, each key that `--help` shows is among the words."""
    config = compose_settings(command, [])
    for key, _ in flatten(OmegaConf.to_container(config)):
        if key.endswith("_target_") or key == "run_name" or key.startswith("hydra"):
            continue
        parts = key.split(".")
        for depth in range(len(parts)):
            begun = ".".join([*parts[:depth], ""]).lstrip(".")
            word = ".".join(parts[: depth + 1]) + ("=" if depth == len(parts) - 1 else ".")
            assert {word, f"{word[:-1]}="} & set(words(f"bdbnet {command} {begun}")), (key, word)


def test_keys_are_those_of_the_choice_that_was_typed():
    assert "backbone.last_stride=" in words("bdbnet train backbone.")
    assert "backbone.last_stride=" not in words("bdbnet train backbone=torchvision backbone.")
    assert "dropping.mask_scope=" in words("bdbnet train dropping.")
    assert "dropping.mask_scope=" not in words("bdbnet train dropping=none dropping.")


def test_words_of_a_setting():
    assert words("bdbnet train trainer.deterministic=") == [
        "trainer.deterministic=false ",
        "trainer.deterministic=true ",
        "trainer.deterministic=warn ",
    ]
    assert words("bdbnet evaluate evaluation.distance=c") == ["evaluation.distance=cosine "]
    assert words("bdbnet train seed=") == []


def test_the_last_item_of_a_list_or_sweep():
    assert words("bdbnet train logger=[wandb,tens") == ["logger=[wandb,tensorboard"]
    assert words("bdbnet train -m loss=lifted,mar") == ["loss=lifted,margin "]


def test_files_and_folders(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    for name in ("nets/last.ckpt", "nets/.hidden", "net.pth"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert words("bdbnet evaluate checkpoint=ne") == ["checkpoint=net.pth ", "checkpoint=nets/"]
    assert words("bdbnet evaluate checkpoint=nets/") == ["checkpoint=nets/last.ckpt "]
    assert words(f"bdbnet evaluate checkpoint={tmp_path}/net.") == [f"checkpoint={tmp_path}/net.pth "]
    assert words("bdbnet evaluate checkpoint=absent/") == []


def test_another_shell_is_told_which_there_are(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bdbnet", "completion", "tcsh"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "completion tcsh: name a shell, bash, zsh or fish" in said
    assert "source <(bdbnet completion bash)" in said


def in_shell(shell: str, code: str, tmp_path: Path) -> list[str]:
    """Lines that a shell prints, with `bdbnet` on its path and the script read."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bdbnet"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT}/src exec {sys.executable} -m bdbnet "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [shell, "-c", f"{SCRIPTS[shell]}\n{code}"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("typed", "of_bash", "offered"),
    [
        ("bdbnet calib", "calib", ["calibrate "]),
        # bash has cut the word at its equals sign
        ("bdbnet train schedule=c", "c", ["constant ", "cosine "]),
        ("bdbnet train trainer.max_e", "trainer.max_e", ["trainer.max_epochs="]),
    ],
)
def test_bash_completes(typed, of_bash, offered, tmp_path):
    code = f'COMP_LINE="{typed}" COMP_POINT={len(typed)}; _bdbnet; printf "%s\\n" "${{COMPREPLY[@]}}"'
    assert in_shell("bash", code, tmp_path) == offered


def test_fish_completes(tmp_path):
    found = in_shell("fish", 'complete -C "bdbnet train schedule=c"', tmp_path)
    assert found == ["schedule=constant", "schedule=cosine"]
