"""The code of the pages for people who extend bdbnet: files are written, Python blocks run, commands are typed, at toy size."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "extend"
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
#: What makes a command of a page small.
TOY_DATA = (
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,"
    "image_size:[32,16],workers:1}"
)
SMALL = {
    "train": [
        "dataset.image_size=[64,32]", "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.progress=false",
    ],
    "evaluate": ["loading.num_workers=0", "trainer.accelerator=cpu"],
    "prepare": [],
}  # fmt: skip


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text()))


def typed(line: str, tiny_data: Path) -> list[str]:
    """Module and arguments of a command of a page, with what makes it small."""
    interpreter, flag, *rest = shlex.split(line)
    if flag != "-m":
        return [flag, *rest]
    assert interpreter == "python"
    module, *arguments = rest
    command = module.removeprefix("bdbnet.")
    named = " ".join(arguments)
    if "backbone=" not in named and command == "train":
        arguments.append("backbone=osnet_x0_25")
    if "dataset=" not in named or "dataset=synthetic_reid" in named:
        arguments += [TOY_DATA, f"data_root={tiny_data}"]
    return [module, *arguments, *SMALL[command]]


@pytest.mark.parametrize("page", sorted(PAGES.glob("[a-z]*.md")), ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, plugin, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {}
    commands = 0
    for block in blocks(page):
        code = block["code"]
        if block["file"]:
            (tmp_path / block["file"]).write_text(code)
        elif block["language"] == "python":  # continues the module of its page
            module = next(found["file"] for found in blocks(page) if found["file"])
            namespace = namespace or vars(__import__(module.removesuffix(".py")))
            exec(compile(code, f"{page.name}: a block", "exec"), namespace)
        elif block["language"] == "bash":
            for line in code.replace("\\\n", " ").strip().splitlines():
                target, *arguments = typed(line, tiny_data)
                monkeypatch.setattr(sys, "argv", [target, *arguments])
                if target.endswith(".py"):
                    runpy.run_path(target, run_name="__main__")
                else:
                    sys.modules.pop(target, None)
                    runpy.run_module(target, run_name="__main__")
                commands += 1
    assert commands
    for module in [found["file"].removesuffix(".py") for found in blocks(page) if found["file"]]:
        sys.modules.pop(module, None)
    assert page.stem == "dataset" or list((tmp_path / "outputs" / "train").glob("*/result.json"))


def test_the_pages_are_short():
    for page in PAGES.glob("*.md"):
        assert len(page.read_text().splitlines()) <= 100
