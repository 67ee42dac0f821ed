"""Links of the README, CONTRIBUTING and the site's pages lead somewhere, and no page loads anything from elsewhere."""

import re
from pathlib import Path

import pytest
from blocks import pages
from repository import is_outside, linked_file, linked_pages, links, page_of, text_of, with_site_links

from documented import ROOT

WRITTEN = [*pages(), ROOT / "CONTRIBUTING.md"]
#: Pages that are generated when the site is built.
GENERATED = re.compile(r"docs/reference/(commands|groups)/\w+\.md")

each_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors_of(markdown: str) -> set[str]:
    """The anchors of a page's headings."""
    without_code = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each_page
def test_its_links_lead_somewhere(page):
    for target in links(page.read_text()):
        if is_outside(target):
            continue
        file = linked_file(page, target)
        anchor = target.partition("#")[2]
        if file is None:
            file = page
        elif GENERATED.fullmatch(file.relative_to(ROOT).as_posix()):
            assert is_generated(file), target
            continue
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(file.read_text()), f"{page.name}: {target} has no such heading"


def is_generated(file: Path) -> bool:
    """Whether the command or the group of a generated page is there."""
    from settings_pages import groups

    from bdbnet.__main__ import COMMANDS

    return file.stem in (COMMANDS if file.parent.name == "commands" else groups())


@each_page
def test_it_shows_no_picture_from_elsewhere(page):
    text = page.read_text()
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) + re.findall(r"<(?:img|script|link|iframe)[^>]*", text)
    assert not [target for target in shown if is_outside(target) or "http" in target]


def test_files_outside_of_docs_become_pages_with_links_of_their_own():
    made = linked_pages(path for path in WRITTEN if path.is_relative_to(ROOT / "docs"))
    assert {"repository/experiments/RESULTS.md", "repository/CONTRIBUTING.md"} <= made.keys()
    for page, file in made.items():
        if file.suffix == ".md":
            for target in links(with_site_links(text_of(file), file, page)):
                path = target.partition("#")[0]
                if path and not is_outside(target):
                    place = Path(ROOT / "docs" / page).parent / path
                    inside = place.resolve().relative_to(ROOT / "docs").as_posix()
                    assert inside in made or (ROOT / "docs" / inside).exists(), f"{page}: {target}"


def test_a_link_to_what_the_site_does_not_show_is_text(tmp_path):
    source = ROOT / "docs" / "page.md"
    for markdown, shown in (
        ("[tests](../tests)", "tests"),
        ("[data](../experiments/RESULTS.md#budget-full)", "[data](repository/experiments/RESULTS.md#budget-full)"),
        ("`[a](../tests)` and [`b`](losses.md)", "`[a](../tests)` and [`b`](losses.md)"),
        ("[out](https://arxiv.org/abs/1811.07130)", "[out](https://arxiv.org/abs/1811.07130)"),
        ("```\n[a](../tests)\n```", "```\n[a](../tests)\n```"),
    ):
        assert with_site_links(markdown, source, "page.md") == shown


def test_a_notebook_is_shown_with_its_outputs():
    text = text_of(ROOT / "notebooks" / "1_quick_start.ipynb")
    assert text.startswith("# Quick start")
    assert '<img alt="What the cell above draws" src="data:image/jpeg;base64,' in text
    assert page_of(ROOT / "notebooks" / "1_quick_start.ipynb") == "repository/notebooks/1_quick_start.ipynb.md"
