"""Every fenced block of the README and of the site's pages runs, is checked, or says why not."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from blocks import PARSERS, blocks_of, commands, inline_commands, is_typed_out, main, pages

from documented import ROOT, UnknownLineError, check_line, check_sweep

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
#: What makes a command that runs small.
SMALL = {
    "embed": ["loading.num_workers=0", "accelerator=cpu"],
    "search": ["num_workers=0", "accelerator=cpu"],
    "evaluate": ["loading.num_workers=0", "trainer.accelerator=cpu"],
}


@each_page
def test_each_block_is_of_a_known_kind(page):
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page)), f"{page.name}: begin fences of ``` at the beginning of a line"
    for block in blocks_of(page):
        assert block.kind != "unknown", f"{block.place}: ```{block.language}: mark it <!-- not run: reason -->"
        if block.language in PARSERS and block.reason is None:
            PARSERS[block.language](block.code)


@each_page
def test_commands_are_ones_that_would_start(page, mypkg, monkeypatch):
    blocks = [block for block in blocks_of(page) if block.reason is None]
    written = {block.file for block in blocks if block.file}
    for block in blocks:
        if block.language != "bash" or is_typed_out(page):
            continue
        for line in commands(block):
            with explained(f"{block.place}: {line}"):
                check_line(line, written)
    for line in inline_commands(page):
        with explained(f"{page.name}: {line}"):
            check_line(line)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Says which line of which page fails."""
    try:
        yield
    except UnknownLineError:
        pytest.fail(f"{place}\nnot checked by anything: mark its block <!-- not run: reason -->")
    except Exception as error:
        pytest.fail(f"{place}\n{type(error).__name__}: {error}")


def has_code(page: Path) -> bool:
    kinds = {block.kind for block in blocks_of(page)}
    # test_extend_pages.py runs those that are typed out.
    return not is_typed_out(page) and bool(kinds & {"python, run", "bash, checked and run"})


@pytest.mark.parametrize(
    "page", [page for page in pages() if has_code(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_code_of_a_page_runs(page, workplace, monkeypatch, capsys, request):
    if page.name == "export.md":
        request.getfixturevalue("exported")
    names = {
        "__name__": "page",
        "CHECKPOINT": "last.ckpt",
        "frame": np.zeros((120, 80, 3), np.uint8),
        "xyxy": np.array([[5, 5, 40, 100], [30, 10, 70, 110]]),
    }
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page.name, "exec"), names)
        elif block.language == "bash" and block.run:
            for line in commands(block):
                program, name, *arguments = shlex.split(line)
                assert program == "bdbnet"
                monkeypatch.setattr(
                    sys, "argv", [name, *arguments, *({} if "features=" in line else SMALL).get(name, [])]
                )
                sys.modules.pop(f"bdbnet.{name}", None)
                runpy.run_module(f"bdbnet.{name}", run_name="__main__")


@pytest.mark.parametrize("file", ["height_ratio.yaml", "bayes.yaml"])
def test_the_sweeps_that_pages_name_start(file):
    check_sweep(ROOT / "conf" / "sweeps" / file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bdbnet train lose=hard_triplet", "lose"),
        ("python -m bdbnet.evaluate evaluation.measure=cosine", "distance"),
        ("bdbnet train seed=1,2", "-m"),
        ("bdbnet train trainer.max_epochs=0", "max_epochs"),
        ("bdbnet train dataset=market150", "market150"),
        ('pip install "bdbnet[fais]"', "fais"),
        ("make demos", "demos"),
        ("pip install -c constraint.txt .", "constraint.txt"),
        ("source <(bdbnet complete bash)", "complete"),
        ("python experiments/benchmarks/retrieval_metrics.py --nois", "--nois"),
        ("curl http://127.0.0.1", "curl"),
    ],
)
def test_a_wrong_line_is_found(line, said):
    with pytest.raises((Exception, AssertionError), match=said):
        check_line(line)


def test_the_counts_are_printed(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "fenced blocks on" in capsys.readouterr().out
