import csv
import io
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbnet.reporting.table import (
    Grid,
    Spread,
    as_csv,
    as_html,
    as_latex,
    as_markdown,
    as_text,
    spread,
    spread_text,
)
from bdbnet.results import metric_of

EVIL = 'a|b, "c" <i> & 50 % _x_ #1 {y} \\ $ ~^*`'
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)


@pytest.fixture
def grid() -> Grid:
    rows = [["none", "71.0", "3"], ["batch dropblock", "72.8 ± 0.4", "3"]]
    return Grid("Drop layers", ["Layer", "Rank-1", "seeds"], rows, ["First note.", "Second."], {(1, 1)})


def test_spread_is_the_sample_standard_deviation():
    measured = spread([0.70, 0.72, 0.74])
    assert measured == Spread(pytest.approx(0.72), pytest.approx(0.02), 3)
    assert spread([0.5]) == Spread(0.5, None, 1)
    assert spread([0.5, 0.5]).std == 0
    with pytest.raises(ValueError, match="values"):
        spread([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_spread_is_written_as_measured(values):
    mean, std = (100 * function(values) for function in (statistics.fmean, statistics.stdev))
    assert spread_text(metric_of("mAP"), spread(values)) == f"{mean:.1f} ± {std:.1f}"


def test_text_is_in_line(grid):
    assert as_text(grid).splitlines() == [
        "Drop layers",
        "Layer                Rank-1  seeds",
        "----------------------------------",
        "none                   71.0      3",
        "batch dropblock  72.8 ± 0.4      3",
        "First note.",
        "Second.",
    ]


def test_markdown_has_a_bare_title_and_the_best_in_bold(grid):
    lines = as_markdown(grid).splitlines()
    assert lines[:2] == ["Drop layers", ""]
    assert re.fullmatch(r"\| :-+ \| -+: \| -+: \|", lines[3])
    assert re.fullmatch(r"\| batch dropblock \| \*\*72.8 ± 0.4\*\* \| +3 \|", lines[5])
    assert lines[6:] == ["", "First note.", "", "Second."]
    assert len({len(line) for line in lines[2:6]}) == 1


def test_latex_is_a_tabular_of_booktabs(grid):
    assert as_latex(grid).splitlines() == [
        "% Drop layers",
        "% First note.",
        "% Second.",
        "\\begin{tabular}{lrr}",
        "\\toprule",
        "Layer & Rank-1 & seeds \\\\",
        "\\midrule",
        "none & 71.0 & 3 \\\\",
        "batch dropblock & \\textbf{72.8 $\\pm$ 0.4} & 3 \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_latex_escapes_what_it_reads_as_commands():
    written = as_latex(Grid("50 %\nof it", ["a_b"], [[EVIL], ["[64, 32]"], ["*"]], []))
    assert "% 50 % of it\n" in written
    assert "a\\_b \\\\" in written
    assert "50 \\% \\_x\\_ \\#1 \\{y\\} \\textbackslash{} \\$ \\textasciitilde{}\\textasciicircum{}*`" in written
    assert "\\& " in written
    assert "\n{}[64, 32] \\\\\n{}* \\\\\n" in written


def test_html_escapes_and_has_rows_with_names(grid):
    written = as_html(grid)
    assert '<table class="plain">' in written
    assert '<tr><th scope="row">batch dropblock</th><td><b>72.8 ± 0.4</b></td><td>3</td></tr>' in written
    assert "Drop layers" not in written
    evil = as_html(Grid(EVIL, [EVIL], [[EVIL]], [EVIL], {(0, 0)}))
    assert "<i>" not in evil
    assert '<th scope="row"><b>a|b, &quot;c&quot; &lt;i&gt; &amp; 50 %' in evil


def test_markdown_keeps_one_cell_one_cell():
    written = as_markdown(Grid("", ["x"], [[EVIL], ["two\nlines"], ["height_ratio"]], []))
    lines = written.splitlines()
    assert len(lines) == 5
    assert r"a\|b" in lines[2]
    assert r"\<i>" in lines[2]
    assert r"\_x\_" in lines[2]
    assert "two lines" in lines[3]
    assert "height_ratio" in lines[4]


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=4))
def test_csv_is_read_back_as_it_was(rows):
    grid = Grid("title", ["a", "b"], rows, ["note"])
    assert list(csv.reader(io.StringIO(as_csv(grid), newline=""))) == [["a", "b"], *rows]


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=4))
def test_every_row_is_one_line_whatever_it_holds(rows):
    grid = Grid("", ["a", "b"], rows, [])
    assert len(re.split(r"\n", as_markdown(grid).rstrip("\n"))) == 2 + len(rows)
    assert as_latex(grid).count("\n") == 6 + len(rows)
    assert as_html(grid).count("<tr>") == 1 + len(rows)


@pytest.mark.parametrize("written", [as_text, as_markdown, as_csv, as_latex, as_html])
def test_no_rows_leave_the_heads(written):
    assert "Rank-1" in written(Grid("", ["Layer", "Rank-1"], [], []))


def test_a_row_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"rows\[1\]: 1 texts for 2 heads"):
        Grid("", ["a", "b"], [["1", "2"], ["3"]], [])
