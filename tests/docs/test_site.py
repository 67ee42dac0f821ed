"""The site builds without a warning, and loads nothing from elsewhere. Skipped where MkDocs is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import loaded_from_elsewhere

from browser import Browser, chromium
from documented import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_it_builds_strictly_and_works_without_a_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        assert not loaded_from_elsewhere(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not loaded_from_elsewhere(f"<style>{style.read_text()}</style>"), style


def test_search_finds_keys_functions_and_text(site):
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    text = {entry["location"]: entry["text"] + entry["title"] for entry in found}
    for word, place in (
        ("checkpoint_every_seconds", "reference/commands/train.html"),
        ("k_reciprocal_rerank", "reference/python/retrieval.html"),
        ("Distractors", "explanation/numbers.html"),
    ):
        assert any(word in of and where.startswith(place) for where, of in text.items()), word
    assert not any(where.startswith("tools/") for where in text)


def test_pages_that_are_opened_as_files_can_be_searched(site, tmp_path):
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium")
    with Browser(executable, tmp_path) as browser:
        browser.size(1400, 1000)
        browser.open((site / "reference" / "commands" / "train.html").as_uri())
        browser.wait("document.documentElement.classList.contains('js')")
        browser.evaluate("document.querySelector('label[for=__search]').click()")
        browser.evaluate("document.querySelector('.md-search__input').focus()")
        browser.wait("document.querySelector('.md-search-result__meta').textContent.includes('Type')")  # it is ready
        browser.call("Input.insertText", text="distractor")
        browser.press("s", "s")  # it listens to keys
        browser.wait("document.querySelector('.md-search-result__item a') !== null")
        found = browser.evaluate("[...document.querySelectorAll('.md-search-result__item a')].map(a => a.pathname)")
        assert any(path.endswith("/explanation/numbers.html") for path in found)
        assert browser.messages == []


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://a.org/a.js"></script>', ["https://a.org/a.js"]),
        ('<link rel="stylesheet" href="//a.org/a.css">', ["//a.org/a.css"]),
        ('<link rel="canonical" href="https://a.org/">', []),
        ("<style>@import 'https://a.org/a.css'; b { background: url(https://a.org/b.png) }</style>",
         ["https://a.org/a.css", "https://a.org/b.png"]),
        ('<p style="background: url(//a.org/b)">url(https://text.org)</p>', ["//a.org/b"]),
        ('<img srcset="a.png 1x, https://a.org/b.png 2x" src="a.png">', ["https://a.org/b.png"]),
        ('<img src="data:image/png;base64,AA=="><a href="https://a.org">a</a>', []),
    ],
)  # fmt: skip
def test_what_is_loaded_from_elsewhere_is_found(html, found):
    assert loaded_from_elsewhere(html) == found
