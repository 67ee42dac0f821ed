"""Verdicts on claims as text, Markdown, CSV and a page: one line for each claim, then each pair of rows."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bdbnet.config import ConfigError
from bdbnet.reporting.heading import date_of
from bdbnet.reporting.index_page import links_of, navigation, update_index
from bdbnet.reporting.page import html_row, html_table, note_paragraphs, page
from bdbnet.reporting.table import Grid, as_csv, as_markdown, markdown_text
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.claims import Claims
from bdbnet.reproduction.queries import NO_QUERIES
from bdbnet.reproduction.verdicts import Finding, Judged, Verdict
from bdbnet.reproduction.writing import (
    budget_notes,
    budget_settings,
    content_key,
    effort,
    refuse_other_file,
    refuse_other_summary,
)
from bdbnet.results import PER_QUERY, Metric, Result, write_atomically

#: Stem of the files; and the page's name beside a summary.
NAME, SUMMARY = "claims", "CLAIMS.md"
_HEADS = [
    "claim", "claim_verdict", "table", "budget", "dataset", "measured_on", "above", "below", "metric", "paper_difference",
    "ours_above", "ours_below", "difference", "low", "high", "p_value", "seeds", "differences_of_seeds", "queries",
    "identities", "verdict",
]  # fmt: skip
_SUMMARY_HEADS = ["Claim", "Verdict", "Paper", "Ours", "Seeds", "Source"]
_PAIR_HEADS = [
    "Above", "Below", "Verdict", "Metric", "Paper", "Ours: above / below", "Difference", "95 % interval", "p", "Seeds",
]  # fmt: skip
_LISTED = 5  # reasons of a claim in the terminal
_METHOD = (
    "Supported: every pair of rows of the claim differs in its direction in every metric, with p < 0.05 and, of several seeds, "
    "with the same sign in each. Contradicted: a pair differs so in the other direction. Not shown: neither. A difference is "
    "that of the values per query, averaged over the seeds that both rows have; its 95 % interval and p (sign-flip test) are "
    "over the identities of the test set: they do not cover what another seed would change, and p is not corrected for the "
    "number of tests."
)


def terminal_grid(title: str, judged: Sequence[Judged]) -> Grid:
    """A row for each claim and metric: the paper's difference, ours and the verdict; the first reasons below."""
    rows = []
    for of in judged:
        titles = dict.fromkeys(finding.metric.title for finding in of.findings) or {"": None}
        for number, metric in enumerate(titles):
            paper, ours = (spans.get(metric, "-") for spans in (_papers(of), _ours(of)))
            ends = (of.claim.name, of.verdict.value) if number == 0 else ("", "")
            rows.append([ends[0], metric, paper, ours, _seeds(of) if number == 0 else "", ends[1]])
    notes = []
    for of in (of for of in judged if of.reasons):
        shown = "; ".join(of.reasons[:_LISTED]) + (
            f"; and {len(of.reasons) - _LISTED} more" * (len(of.reasons) > _LISTED)
        )
        notes.append(f"{of.verdict.value.capitalize()}: {of.claim.name}: {shown}.")
    return Grid(title, ["Claim", "Metric", "Paper", "Ours", "Seeds", "Verdict"], rows, notes + _notes(judged))


def summary_grid(title: str, judged: Sequence[Judged]) -> Grid:
    """A row for each claim: the verdict, the paper's difference, ours, and where the paper says it."""
    rows = [
        [of.claim.name, of.verdict.value, *(", ".join(_lines(spans)) for spans in (_papers(of), _ours(of))), _seeds(of) or "-",
         of.claim.source]
        for of in judged
    ]  # fmt: skip
    return Grid(title, _SUMMARY_HEADS, rows, _notes(judged))


def pairs_grid(judged: Judged) -> Grid:
    """A row for each pair and metric of a claim; a pair's names are in its first row alone."""
    lines = [_pair_line(of) for of in judged.findings]
    rows = [
        ["", "", *line[2:]] if number and line[:2] == lines[number - 1][:2] else line
        for number, line in enumerate(lines)
    ]
    return Grid("", _PAIR_HEADS, rows, [])


def write_claims(
    claims: Claims, judged: Sequence[Judged], folder: Path, runs_root: Path, version: str | None
) -> list[Path]:
    """Write the verdicts as a page, Markdown and CSV; returns these files, the page first.

    Args:
        runs_root: folder of the trainings, and `version` that whose results count: for `refuse_other_claims`.
    """
    text = json.dumps(_settings(claims, judged[0].measured.budget, folder, runs_root, version), indent=2) + "\n"
    write_atomically(folder / f"{NAME}.settings.json", text.encode())
    texts = {
        "html": _page(claims, judged, folder),
        "md": f"# {_markdown(claims.title, judged, rank=2)}",
        "csv": as_csv(Grid("", _HEADS, rows_of(judged), [])),
    }
    written = [write_atomically(folder / f"{NAME}.{suffix}", text.encode()) for suffix, text in texts.items()]
    update_index(folder)
    return written


def refuse_other_claims(claims: Claims, budget: Budget, folder: Path, runs_root: Path, version: str | None) -> None:
    """Refuse to replace verdicts on other claims or of other settings.  Raises ConfigError."""
    refuse_other_file(folder, NAME, _settings(claims, budget, folder, runs_root, version))


def refuse_other_claims_summary(summary: Path, command: str) -> None:
    """Refuse to replace a page beside a summary that another command wrote, or a user.  Raises ConfigError."""
    if summary.name == SUMMARY:
        raise ConfigError(
            f"summary={summary}: that is the name of the claims' own page, beside it: choose another name"
        )
    refuse_other_summary(summary.with_name(SUMMARY), command)


def write_claims_summary(claims: Claims, judged: Sequence[Sequence[Judged]], summary: Path, command: str) -> Path:
    """Write the verdicts of each budget into ``CLAIMS.md`` beside a summary, with the command that generates it."""
    parts = [
        f"# {claims.title}, and what has been measured so far",
        f"Generated by `{command}`; not to be edited by hand. Every number comes from a run whose `result.json` and "
        f"`{PER_QUERY}` were kept. The numbers of the tables are in [{summary.name}]({summary.name}).",
    ]
    for of in judged:
        name = of[0].measured.budget.name
        parts.append(f"## {_markdown(f'Budget {name}', of, rank=3)}")
    return write_atomically(summary.with_name(SUMMARY), ("\n\n".join(part.strip() for part in parts) + "\n").encode())


def rows_of(judged: Sequence[Judged]) -> list[list[str]]:
    """One line per claim, pair and metric, for a program to read; numbers in the metric's unit with four decimals."""
    lines = []
    for one in judged:
        claim, measured = one.claim, one.measured
        start = [claim.name, one.verdict.value, claim.table.name, measured.budget.name, claim.dataset]
        for of in one.findings:
            lines.append([
                *start, measured.stand_in(claim.dataset), of.above.row.label, of.below.row.label, of.metric.name,
                "" if of.paper is None else f"{of.paper:.4f}", *_fields(of), of.verdict.value,
            ])  # fmt: skip
        if not one.findings:
            lines.append([*start, *[""] * (len(_HEADS) - len(start) - 1), one.verdict.value])
    return lines


def _fields(of: Finding) -> list[str]:
    if of.found is None or of.means is None:
        return [""] * 10
    numbers = [*of.means, of.found.difference, *of.found.interval]
    by_seed = [f"{of.metric.scale * difference:.4f}" for difference in of.by_seed.values()]
    return [
        *(f"{of.metric.scale * number:.4f}" for number in numbers), f"{of.found.p_value:.6f}", " ".join(map(str, of.by_seed)),
        " ".join(by_seed), str(of.found.queries), str(of.found.identities),
    ]  # fmt: skip


def _settings(claims: Claims, budget: Budget, folder: Path, runs_root: Path, version: str | None) -> dict[str, Any]:
    # may_differ at the end: the key of claims without it stays what it was.
    content = repr([
        (of.name, of.dataset, of.pairs, dict(of.table.columns), of.table.rows, *of.may_differ) for of in claims.claims
    ])  # fmt: skip
    return {"claims": content_key(content), **budget_settings(budget, folder, runs_root, version)}


# Texts


def _papers(judged: Judged) -> dict[str, str]:
    """The paper's differences: of each metric, by its title, the smallest and the largest."""
    return _spans((of.metric, of.paper) for of in judged.findings)


def _ours(judged: Judged) -> dict[str, str]:
    found = ((of.metric, of.found) for of in judged.findings)
    return _spans((metric, None if one is None else metric.scale * one.difference) for metric, one in found)


def _spans(differences: Iterable[tuple[Metric, float | None]]) -> dict[str, str]:
    spans: dict[Metric, list[float]] = {}
    for metric, difference in differences:
        if difference is not None:
            spans.setdefault(metric, []).append(difference)
    return {
        metric.title: " to ".join(dict.fromkeys(metric.signed(end) for end in (min(of), max(of))))
        for metric, of in spans.items()
    }


def _lines(spans: dict[str, str]) -> list[str]:
    return [f"{title} {span}" for title, span in spans.items()] or ["-"]


def _seeds(judged: Judged) -> str:
    """How many seeds the pairs have."""
    counts = [len(of.by_seed) for of in judged.findings if of.by_seed]
    return " to ".join(dict.fromkeys(str(end) for end in (min(counts), max(counts)))) if counts else ""


def _pair_line(of: Finding) -> list[str]:
    metric = of.metric
    paper = "-" if of.paper is None else metric.signed(of.paper)
    line = [of.above.row.label, of.below.row.label, of.verdict.value, metric.title, paper]
    if of.found is None or of.means is None:
        return [*line, *["-"] * 5]
    seeds = [f"{seed}: {metric.change(difference)}" for seed, difference in of.by_seed.items()]
    return [
        *line, " / ".join(map(metric.number, of.means)), metric.change(of.found.difference),
        " to ".join(map(metric.change, of.found.interval)), f"{of.found.p_value:.2g}",
        "; ".join(seeds) if len(seeds) > 1 else str(*of.by_seed),
    ]  # fmt: skip


def _notes(judged: Sequence[Judged]) -> list[str]:
    notes = budget_notes([of.measured for of in judged])
    notes.append(
        "Paper and Ours: the first row of a pair minus the other, in points; of several pairs the least and the most."
    )
    notes.append(_METHOD)
    rows = (entry.row for of in judged for finding in of.findings for entry in (finding.above, finding.below))
    notes += dict.fromkeys(f"{row.name}: {row.note}." for row in rows if row.note)
    if results := _results(judged):
        notes.append(effort(results))
    if any(f"no {PER_QUERY} in" in text for of in judged for text in of.missing):
        notes.append(NO_QUERIES)
    return notes


def _results(judged: Sequence[Judged]) -> list[Result]:
    """Of each training once, however many claims it serves."""
    return list({folder: result for of in judged for folder, result in of.results.items()}.values())


def _place(judged: Judged) -> str:
    """Where the paper says it, and on what it was measured here."""
    claim, stand_in = judged.claim, judged.measured.stand_in(judged.claim.dataset)
    instead = f", measured on {stand_in}" if stand_in != claim.dataset else ""
    return f"{claim.source}. Here: {claim.table.heading}, {claim.dataset}{instead}."


def _is_measured(judged: Judged) -> bool:
    return any(of.found is not None for of in judged.findings)


def _remarks(judged: Judged) -> list[str]:
    """The reasons for a verdict, cells that it lacks all the same, and what of the protocol is the rows' own."""
    lacking = [f"not counted: {text}" for text in judged.missing] if judged.verdict is not Verdict.NOT_MEASURED else []
    return judged.reasons + lacking + [f"each as its recipe has it: {text}" for text in judged.own_protocols]


def _markdown(title: str, judged: Sequence[Judged], rank: int) -> str:
    grid = summary_grid(title, judged)
    parts = [as_markdown(Grid(title, grid.heads, grid.rows, _notes(judged))).strip()]
    for of in judged:
        parts += [
            f"{'#' * rank} {markdown_text(of.claim.name)}",
            f"**{of.verdict.value.capitalize()}.** {markdown_text(_place(of))}",
            *([as_markdown(pairs_grid(of)).strip()] if _is_measured(of) else []),
            "\n".join(f"- {markdown_text(remark)}" for remark in _remarks(of)),
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _page(claims: Claims, judged: Sequence[Judged], folder: Path) -> str:
    counts = [(verdict.value, str(sum(of.verdict is verdict for of in judged))) for verdict in Verdict]
    budget = judged[0].measured.budget.name
    results = _results(judged)
    sections = [f"<section>\n{_summary(judged)}\n{note_paragraphs(_notes(judged))}</section>"]
    sections += [_section(number, of) for number, of in enumerate(judged)]
    return page(
        claims.title, f"Reproduction, budget {budget}", "Batch DropBlock Network", sections, headline=counts,
        date=date_of(results) if results else "", navigation=navigation(links_of(folder)),
    )  # fmt: skip


def _summary(judged: Sequence[Judged]) -> str:
    rows = [
        html_row(
            f'<a href="#claim{number}">{escape(of.claim.name)}</a>',
            [_mark(of.verdict), *("<br>".join(map(escape, _lines(spans))) for spans in (_papers(of), _ours(of))),
             _seeds(of) or "-", escape(of.claim.source)],
        )
        for number, of in enumerate(judged)
    ]  # fmt: skip
    return html_table(_SUMMARY_HEADS, rows, "claims")


def _section(number: int, judged: Judged) -> str:
    rows = []
    for of, line in zip(judged.findings, pairs_grid(judged).rows):
        above, below, _, *numbers, seeds = map(escape, line)
        rows.append(html_row(above, [below, _mark(of.verdict), *numbers, seeds.replace(": ", ":&nbsp;")]))
    table = html_table(_PAIR_HEADS, rows, "pairs-of-rows") if _is_measured(judged) else ""
    remarks = "".join(f"<li>{escape(remark)}</li>\n" for remark in _remarks(judged))
    return (
        f'<section id="claim{number}">\n<h2>{escape(judged.claim.name)}</h2>\n'
        f'<p>{_mark(judged.verdict)} <span class="soft">{escape(_place(judged))}</span></p>\n'
        f"{table}{f'<ul>{remarks}</ul>' if remarks else ''}</section>"
    )


def _mark(verdict: Verdict) -> str:
    return f'<b class="verdict {verdict.value.replace(" ", "-")}">{verdict.value}</b>'
