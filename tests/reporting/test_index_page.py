import os
import re
from pathlib import Path

import pytest

from bdbnet.reporting.index_page import INDEX, about_of, index_page, links_of, output_root, relative, update_index
from bdbnet.reporting.page import page
from bdbnet.reporting.run_page import write_report


def write(file: Path, heading: str, date: str, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(heading, "Evaluation", "", [], date=date, **options))
    return file


@pytest.fixture
def outputs(tmp_path):
    root = tmp_path / "outputs"
    write(root / "train/a/report.html", "Old", "2026-01-02 03:04 UTC", headline=[("Rank-1", "91.2 %")])
    write(root / "evaluate/b/report.html", 'New "<b>"', "2026-05-06 07:08 UTC")
    write(root / "sweeps/s/c=1/report.html", "Middle", "2026-03-04 05:06 UTC")
    (root / "search" / "d").mkdir(parents=True)
    (root / "search/d/other.html").write_text("<html>of another program</html>")
    write(root / "train/a/wandb/x.html", "Hidden", "2026-09-09 00:00 UTC")
    return root


def test_pages_are_listed_newest_first_with_what_they_say_of_themselves(outputs):
    text = index_page(outputs)
    headings = re.findall(r'<th scope="row"><a href="([^"]*)">([^<]*)</a>', text)
    assert headings == [
        ("./evaluate/b/report.html", "New &quot;&lt;b&gt;&quot;"),
        ("./sweeps/s/c%3D1/report.html", "Middle"),
        ("./train/a/report.html", "Old"),
    ]
    assert "Rank-1 <b>91.2 %</b>" in text
    assert "3 pages" in text
    assert re.search(r"script-src 'sha256-[\w+/=]+'", text)
    assert "Hidden" not in text


def test_the_index_is_made_anew_and_does_not_list_itself(outputs):
    assert update_index(outputs / "train/a") == outputs / INDEX
    first = (outputs / INDEX).read_text()
    (outputs / "evaluate/b/report.html").unlink()
    update_index(outputs / "sweeps/s/c=1")
    assert "New" in first
    assert "New" not in (outputs / INDEX).read_text()
    assert "2 pages" in (outputs / INDEX).read_text()


def test_a_pipe_is_not_waited_for(outputs):
    os.mkfifo(outputs / "train/a/pipe.html")
    update_index(outputs / "train/a")
    assert "3 pages" in (outputs / INDEX).read_text()


def test_folders_that_no_command_named_get_no_index(tmp_path):
    folder = tmp_path / "mine" / "results"
    folder.mkdir(parents=True)
    assert output_root(folder) is None
    assert update_index(folder) is None
    assert links_of(folder) == []
    assert not list(tmp_path.rglob(INDEX))


def test_links_lead_to_what_is_there(outputs):
    folder = outputs / "sweeps/s/c=1"
    links = links_of(folder, ("Training", outputs / "train/a/report.html"), ("Sweep", folder.parent / "report.html"))
    assert [(link.title, link.href) for link in links] == [
        ("All pages", "../../../index.html"),
        ("Training", "../../../train/a/report.html"),
    ]
    assert relative(folder / "report.html", folder) == "./report.html"


def test_a_run_in_an_output_folder_links_to_its_index(run_folder, tmp_path):
    place = tmp_path / "outputs" / "train" / "run"
    place.parent.mkdir(parents=True)
    run_folder.rename(place)
    text = write_report(place).read_text()
    assert '<nav><a href="../../index.html">All pages</a></nav>' in text
    assert "91.2" in (tmp_path / "outputs" / INDEX).read_text()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"headline": 3}', '{"headline": [[1, 2]]}'])
def test_a_page_with_damaged_facts_is_left_out(tmp_path, content):
    (tmp_path / "x.html").write_text(
        f'<meta name="bdbnet-page" content=\'{content}\'><meta name="bdbnet-page" content="{content}">'
    )
    assert about_of(tmp_path / "x.html") is None
