"""Claims of the paper: their file, the paired test of each pair of rows, and the pages."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from bdbnet.config import ConfigError
from bdbnet.reproduce import command_line
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.cells import Cell
from bdbnet.reproduction.claims import Claims, measure_claims, read_claims
from bdbnet.reproduction.claims_page import (
    refuse_other_claims,
    refuse_other_claims_summary,
    terminal_grid,
    write_claims,
    write_claims_summary,
)
from bdbnet.reproduction.measured import Measured, jobs_of
from bdbnet.reproduction.spec import SpecError
from bdbnet.reproduction.verdicts import Judged, Verdict, judge
from bdbnet.results import Protocol, Result, read_result

IDENTITIES, EACH = 60, 4
LABELS = np.repeat(np.arange(IDENTITIES), EACH)
TABLE = {
    "title": "Networks", "columns": {"market1501": ["rank1", "mAP", "rank5"], "sop": ["recall@1", "recall@10"]},
    "rows": [
        {"name": "Baseline", "run": ["model=baseline"], "paper": {"market1501": [90.0, 70.0, 95.0]}},
        {"name": "BDB", "run": ["model=bdb"], "paper": {"market1501": [95.0, 80.0, 97.0]}},
        {"name": "Other", "run": ["model=dropping"]},
        {"name": "Quoted", "paper": {"market1501": [96.0, 81.0, 98.0]}},
    ],
}  # fmt: skip
CURVE = {
    "title": "Curve", "columns": {"market1501": ["rank1"]},
    "x": {"key": "dropping.height_ratio", "title": "Ratio", "values": [0.1, 0.3, 0.5]},
    "lines": [
        {"name": "GMP", "run": ["model=bdb"], "paper": {0.3: {"market1501": [72.8]}}},
        {"name": "GAP", "run": ["model=bdb", "model.pooling=avg"]},
    ],
}  # fmt: skip
BUDGET = Budget("toy", "made up", "order", {"market1501": ("dataset=a",), "sop": None}, (), True)


@pytest.fixture(autouse=True)
def cells_without_hydra(monkeypatch):
    """Folders named by the overrides alone: composing the configuration of a training takes a fifth of a second."""

    def cell(self, table, row, dataset, root, *, code=None):
        if row.run is None:
            return None
        settings = {"dataset.name": "toy data", "trainer.max_epochs": 2, "evaluation.normalize": "none"}
        folder = root / f"{dataset} {' '.join(row.run)}".replace("=", "-")
        return Cell(row.run, settings, folder, "", code or "0.1.0")

    monkeypatch.setattr(Budget, "cell", cell)


@pytest.fixture
def claims(tmp_path):
    """`claims(pairs, ...)`: claims on the tables above, as a file of the user's own says them."""
    for name, table in (("networks", TABLE), ("curve", CURVE)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table))

    def write(*pairs: dict, table: str = "networks.yaml", dataset: str = "market1501", **keys) -> Claims:
        claim = {"name": "BDB is better", "source": "Section 1", "table": table, "dataset": dataset, "pairs": [*pairs]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "claims": [claim | keys]}))
        return read_claims(str(tmp_path / "mine.yaml"))

    return write


def look(claims: Claims, root: Path, seeds=(1,)) -> list[Measured]:
    return measure_claims(claims.claims, BUDGET, root, seeds)


def finish(
    measured: Measured, label: str, ap: np.ndarray, seed: int = 1, *, version: str = "0.1.0", fingerprint: str = "f",
    normalize: str = "none",
) -> Path:  # fmt: skip
    """A finished training of a row with its values per query: rank 1 is right where AP is above a half."""
    (entry,) = (entry for entry in measured if entry.row.label == label)
    folder, hits = entry.cell.folder / f"seed={seed}", np.where(np.isnan(ap), np.nan, ap > 0.5)
    Result(
        kind="train", metrics={"rank1": float(np.nanmean(hits)), "mAP": float(np.nanmean(ap))},
        protocol=Protocol("reid", "toy data", (32, 16), normalize=normalize), checkpoint="last",
        data={"fingerprint": fingerprint}, config={"evaluation": {"normalize": "none"}}, seed=seed, epochs=2,
        seconds={"train": 60.0}, versions={"bdbnet": version}, hardware={"processor": "abacus", "gpus": []},
    ).write(folder / "result.json")  # fmt: skip
    rows = {"query_index": np.arange(len(ap)), "label": LABELS, "matches": np.where(np.isnan(ap), 0, 3)}
    rows |= {"first_match_rank": np.where(np.isnan(ap), -1, np.where(ap > 0.5, 1, 3)), "ap": ap}
    pd.DataFrame(rows).to_parquet(folder / "per_query.parquet", index=False)
    return folder


def drawn(seed: int, shift: float = 0.0) -> np.ndarray:
    """AP of each query: what is hard in the data is hard for every network."""
    hard = np.random.default_rng(0).uniform(0.2, 0.7, IDENTITIES)[LABELS]
    return np.clip(hard + shift + np.random.default_rng(seed).normal(0, 0.05, len(LABELS)), 0, 1)


BETTER = {"above": "BDB", "below": "Baseline"}


def judged(claims: Claims, root: Path, seeds=(1,)) -> Judged:
    (found,) = judge(claims.claims, look(claims, root, seeds))
    return found


def naive_p(differences: np.ndarray, draws: int = 4000) -> float:
    """Share of random signs of the identities with a mean as far from 0 as the observed one."""
    sums = [differences[identity == LABELS].sum() for identity in range(IDENTITIES)]
    rng, extreme = np.random.default_rng(8), 0
    for _ in range(draws):
        extreme += abs(sum(of if rng.random() < 0.5 else -of for of in sums)) >= abs(sum(sums)) - 1e-12
    return extreme / draws


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.1, Verdict.SUPPORTED), (-0.1, Verdict.CONTRADICTED), (0.008, Verdict.NOT_SHOWN), (None, Verdict.NOT_SHOWN)],
)
def test_a_verdict_is_that_of_a_test_over_identities(shift, verdict, claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    ours, theirs = drawn(1, shift or 0.0), drawn(2)
    if shift is None:  # a tie
        ours = theirs
    finish(table, "BDB", ours)
    finish(table, "Baseline", theirs)
    found = judged(mine, tmp_path)
    assert [of.metric.name for of in found.findings] == ["rank1", "mAP"]  # the headline metrics of the column
    for of, values in zip(found.findings, ((ours > 0.5) * 1.0 - (theirs > 0.5), ours - theirs)):
        assert of.found.difference == pytest.approx(values.mean(), abs=1e-12)
        assert of.found.p_value == pytest.approx(p := naive_p(values), abs=0.03)
        low, high = of.found.interval
        assert low <= values.mean() <= high
        direction = Verdict.SUPPORTED if values.mean() > 0 else Verdict.CONTRADICTED
        assert of.verdict is (direction if p < 0.05 else Verdict.NOT_SHOWN)
    assert found.verdict is verdict
    assert [of.paper for of in found.findings] == [5.0, 10.0]
    assert bool(found.reasons) == (verdict is not Verdict.SUPPORTED)


def test_values_are_averaged_over_the_seeds_that_both_rows_have(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    ours = {seed: drawn(seed, 0.1) for seed in (1, 2, 3)}
    theirs = {seed: drawn(10 + seed) for seed in (2, 3, 4)}
    for label, of in (("BDB", ours), ("Baseline", theirs)):
        for seed, ap in of.items():
            finish(table, label, ap, seed)
    of = judged(mine, tmp_path, [2]).findings[1]
    assert of.by_seed == pytest.approx({seed: (ours[seed] - theirs[seed]).mean() for seed in (2, 3)})
    assert of.found.difference == pytest.approx(np.mean([*of.by_seed.values()]))
    assert of.means == pytest.approx((np.mean([ours[2], ours[3]]), np.mean([theirs[2], theirs[3]])))
    assert of.verdict is Verdict.SUPPORTED


def test_seeds_of_different_signs_show_nothing(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    for seed, shift in ((1, 0.15), (2, -0.03)):
        finish(table, "BDB", drawn(seed, shift), seed)
        finish(table, "Baseline", drawn(10 + seed), seed)
    found = judged(mine, tmp_path)
    assert found.findings[1].found.p_value < 0.05
    assert found.verdict is found.findings[1].verdict is Verdict.NOT_SHOWN
    assert any("the seeds disagree in mAP: +1" in reason and "with seed 2" in reason for reason in found.reasons)


def test_queries_without_a_match_do_not_count(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    ours, theirs = drawn(1, 0.1), drawn(2)
    ours[:6] = theirs[:6] = np.nan
    finish(table, "BDB", ours)
    finish(table, "Baseline", theirs)
    of = judged(mine, tmp_path).findings[0]
    assert of.found.queries == len(LABELS) - 6
    assert of.means == pytest.approx(((ours[6:] > 0.5).mean(), (theirs[6:] > 0.5).mean()))


def test_one_contradicted_pair_contradicts_a_claim(claims, tmp_path):
    mine = claims({"above": "BDB", "below": "rest"})
    (table,) = look(mine, tmp_path)
    for label, shift in (("BDB", 0.1), ("Baseline", 0.0), ("Other", 0.2)):
        finish(table, label, drawn(len(label), shift))
    found = judged(mine, tmp_path)
    names = [(of.above.row.label, of.below.row.label, of.verdict) for of in found.findings[::2]]
    assert names == [("BDB", "Baseline", Verdict.SUPPORTED), ("BDB", "Other", Verdict.CONTRADICTED)]
    assert found.verdict is Verdict.CONTRADICTED
    assert all(reason.startswith("BDB and Other: Other is better in ") for reason in found.reasons)
    assert found.findings[2].paper is None


def test_lines_are_compared_at_each_x_and_points_by_their_x(claims, tmp_path):
    at_each = claims({"above": "GMP", "below": "GAP"}, table="curve.yaml")
    rows = at_each.claims[0].table.rows
    pairs = [[rows[number].label for number in pair] for pair in at_each.claims[0].pairs]
    assert pairs == [["GMP 0.1", "GAP 0.1"], ["GMP 0.3", "GAP 0.3"], ["GMP 0.5", "GAP 0.5"]]
    best = claims({"above": "GMP 0.3", "below": ["GMP 0.1", "GMP 0.5"]}, table="curve.yaml")
    pairs = [[rows[number].label for number in pair] for pair in best.claims[0].pairs]
    assert pairs == [["GMP 0.3", "GMP 0.1"], ["GMP 0.3", "GMP 0.5"]]
    assert len(claims({"above": "GMP 0.3", "below": "rest"}, table="curve.yaml").claims[0].pairs) == 5
    assert claims({"above": "GMP", "below": "rest"}, table="curve.yaml").claims[0].pairs == at_each.claims[0].pairs
    (table,) = look(at_each, tmp_path)
    for number, row in enumerate(rows):
        finish(table, row.label, drawn(number, 0.15 * (row.name == "GMP")))
    found = judged(at_each, tmp_path)
    assert found.verdict is Verdict.SUPPORTED
    assert [len(of.by_seed) for of in found.findings] == [1, 1, 1]


def test_missing_cells_are_named_and_nothing_else_is_trained(claims, tmp_path):
    mine = claims(BETTER, {"above": "Other", "below": "Baseline"})
    assert {job.cell.folder.name for job in jobs_of(look(mine, tmp_path), [1])} == {
        "market1501 model-bdb", "market1501 model-baseline", "market1501 model-dropping"
    }  # fmt: skip
    assert len(jobs_of(look(claims(BETTER), tmp_path), [1, 2])) == 4
    (table,) = look(mine, tmp_path)
    finish(table, "Baseline", drawn(1))
    bare = finish(table, "BDB", drawn(2, 0.2))
    (bare / "per_query.parquet").unlink()
    found = judged(mine, tmp_path, [1, 5])
    assert found.verdict is Verdict.NOT_MEASURED
    assert found.missing == (
        f"BDB (market1501, seed 1): no per_query.parquet in {bare}", "BDB, Baseline, Other (market1501, seed 5): not measured",
        "Other (market1501, seed 1): not measured",
    )  # fmt: skip
    notes = "\n".join(terminal_grid("Mine", [found]).notes)
    assert f"Not measured: BDB is better: {'; '.join(found.missing)}." in notes
    assert "bdbnet.evaluate checkpoint=<that folder>/last.ckpt analysis=true" in notes


def test_a_seed_that_is_missing_is_a_remark_where_another_one_is_there(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    finish(table, "BDB", drawn(1, 0.15))
    finish(table, "Baseline", drawn(2))
    finish(table, "Baseline", drawn(3), 2)
    found = judged(mine, tmp_path, [1, 2])
    assert (found.verdict, found.reasons) == (Verdict.SUPPORTED, [])
    assert found.missing == ("BDB (market1501, seed 2): not measured",)
    assert "not counted: BDB (market1501, seed 2)" in write(mine, found, tmp_path)["md"]


def test_data_that_a_budget_leaves_out_are_not_measured(claims, tmp_path):
    table = TABLE | {
        "columns": {"sop": ["recall@1"]},
        "rows": [{"name": "A", "run": ["a=1"]}, {"name": "B", "run": ["a=2"]}],
    }
    mine = claims(BETTER)
    (tmp_path / "networks.yaml").write_text(yaml.safe_dump(table))
    mine = claims({"above": "A", "below": "B"}, dataset="sop")
    found = judged(mine, tmp_path)
    assert (found.verdict, found.reasons) == (Verdict.NOT_MEASURED, ["budget toy leaves out sop"])
    assert jobs_of(look(mine, tmp_path), [1]) == []
    assert "not measured" in write(mine, found, tmp_path)["csv"]


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"version": "0.0.9"}, r"BDB, market1501, seed 1 \(.*seed=1\) was measured with bdbnet 0.0.9, not 0.1.0: .*with Baseline"),
        ({"fingerprint": "g"}, r"BDB, .* and Baseline, .* on different data \(fingerprints g and f\)"),
        ({"normalize": "joint"}, r"BDB, .* and Baseline, .* different protocols \(normalize joint and none\)"),
    ],
)  # fmt: skip
def test_trainings_that_can_not_be_compared_are_refused(difference, message, claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    finish(table, "BDB", drawn(1), **difference)
    finish(table, "Baseline", drawn(2))
    with pytest.raises(ConfigError, match=f"claim BDB is better: {message}"):
        judged(mine, tmp_path)


def test_what_belongs_to_a_recipe_may_differ_where_the_claim_says_so(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    finish(table, "BDB", drawn(1, 0.1), normalize="joint")
    finish(table, "Baseline", drawn(2))
    with pytest.raises(ConfigError, match=r"compared, write may_differ: \[normalize\] in the claim$"):
        judged(mine, tmp_path)
    found = judged(claims(BETTER, may_differ=["measure", "normalize"]), tmp_path)
    assert found.verdict is Verdict.SUPPORTED
    assert found.own_protocols == ["normalize of BDB: joint, of Baseline: none"]
    assert (
        "- each as its recipe has it: normalize of BDB: joint, of Baseline: none" in write(mine, found, tmp_path)["md"]
    )
    with pytest.raises(ConfigError, match="normalize joint and none"):
        judged(claims(BETTER, may_differ=["measure"]), tmp_path)
    mine = claims(BETTER, may_differ=["normalize"])
    finish(look(mine, tmp_path, seeds=(1, 2))[0], "BDB", drawn(3, 0.1), seed=2)
    with pytest.raises(
        ConfigError, match=r"BDB, market1501, seed 1 .* and BDB, .*seed 2 .*joint and none.* measure it again$"
    ):
        judged(mine, tmp_path, seeds=(1, 2))


def test_values_per_query_of_another_evaluation_are_refused(claims, tmp_path):
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path)
    ours, theirs = finish(table, "BDB", drawn(1, 0.1)), finish(table, "Baseline", drawn(2))
    kept = pd.read_parquet(ours / "per_query.parquet")

    def refused(queries: pd.DataFrame, message: str) -> None:
        queries.to_parquet(ours / "per_query.parquet", index=False)
        with pytest.raises(ConfigError, match=message):
            judged(mine, tmp_path)

    refused(
        kept.assign(ap=kept["ap"] / 2), r"is of another evaluation: its mAP is .* %, that of result.json beside it .* %"
    )
    refused(kept.drop(columns="first_match_rank"), r"per_query.parquet: lacks the column\(s\) first_match_rank")
    refused(kept.assign(label=kept["label"] + 1), "are not of the same queries")
    one = kept.assign(label=7)
    pd.read_parquet(theirs / "per_query.parquet").assign(label=7).to_parquet(theirs / "per_query.parquet", index=False)
    refused(one, "BDB, Baseline: an interval over identities needs at least two of them")
    (ours / "per_query.parquet").write_text("no table")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        judged(mine, tmp_path)


WRONG = [
    ({"above": "BDB", "below": "Basline"}, {}, "below: Basline: networks has no such row; choose one of Baseline, BDB, Other"),
    ({"above": "Quoted", "below": "BDB"}, {}, r"above: Quoted: the row has no training \(run\); choose one of Baseline, BDB"),
    ({"above": "BDB", "below": ["Other", "BDB"]}, {}, "below: BDB: the same row is above"),
    ({"above": "BDB", "below": []}, {}, r"below: \[\]: empty"),
    ({"above": 0.3, "below": "rest"}, {"table": "curve.yaml"}, "above: 0.3: curve has no such row; choose one of GMP 0.1, .*GAP"),
    ({"above": "GMP", "below": "GAP 0.1"}, {"table": "curve.yaml"}, "below: GAP 0.1: GMP is a line, .* choose one of GMP, GAP"),
    ({"above": "GMP 0.1", "below": "GAP"}, {"table": "curve.yaml"}, "below: GAP: curve has no such row"),
    ({"over": "BDB"}, {}, "pairs: give a list of {above: ROW, below: ROW}"),
    (BETTER, {"dataset": "cars"}, "dataset: networks has no column cars; choose one of market1501, sop"),
    (BETTER, {"table": "table9"}, "table: table9: no such table; choose one of figure1, .*table8, or give a file"),
    (BETTER, {"table": "none.yaml"}, "table: .*none.yaml: no such file"),
    (BETTER, {"pair": []}, "missing or unknown: pair"),
    (BETTER, {"may_differ": ["ap_at"]}, r"may_differ: \['ap_at'\]: give a list of keys out of image_size, .*measure"),
    (BETTER, {"may_differ": "measure"}, "may_differ: measure: give a list of keys"),
    (BETTER, {"source": None}, "source: None: give a text"),
    (BETTER, {"name": ""}, "name is missing: give it a sentence"),
]  # fmt: skip


@pytest.mark.parametrize(("pair", "keys", "message"), WRONG)
def test_a_wrong_claim_is_refused_with_its_choices(pair, keys, message, claims):
    where = "1" if "name" in keys else "BDB is better"
    with pytest.raises(SpecError, match=rf"mine\.yaml: claim {where}: .*{message}"):
        claims(pair, **keys)


def test_files_that_are_no_claims(claims, tmp_path):
    path = tmp_path / "bad.yaml"
    for text, message in (
        ("a: [", "not readable as YAML"), ("[]", "expected the keys title"), ("title: T\nclaims: []", "give a list of claims"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(SpecError, match=f"bad.yaml: .*{message}"):
            read_claims(str(path))
    for name in ("none", "none.yaml"):
        with pytest.raises(SpecError, match=rf"claims={name}: no such file; choose one of paper, or give"):
            read_claims(name)
    claims(BETTER)
    twice = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(twice | {"claims": twice["claims"] * 2}))
    with pytest.raises(SpecError, match="two claims have the name BDB is better"):
        read_claims(str(tmp_path / "mine.yaml"))


def test_the_papers_numbers_agree_with_what_it_claims():
    """Each pair of a claim of the paper, as far as it has numbers, is in the direction that the file says."""
    paper = read_claims("paper")
    assert len(paper.claims) >= 10
    with_numbers = 0
    for claim in paper.claims:
        for above, below in claim.pairs:
            numbers = [claim.table.rows[row].paper.get(claim.dataset) for row in (above, below)]
            if all(numbers):
                with_numbers += 1
                assert numbers[0][0] > numbers[1][0], (claim.name, claim.table.rows[below].name)
    assert with_numbers >= 20


def write(claims: Claims, found: Judged, folder: Path) -> dict[str, str]:
    files = write_claims(claims, [found], folder / "out", folder, None)
    return {file.suffix[1:]: file.read_text() for file in files}


def test_every_form_says_the_same(claims, tmp_path):
    mine = claims(BETTER, name="BDB <is> better")
    (table,) = look(mine, tmp_path)
    finish(table, "BDB", drawn(1, 0.15))
    finish(table, "Baseline", drawn(2))
    found = judged(mine, tmp_path)
    of = found.findings[0]
    shown = f"{100 * of.found.difference:+.1f}"
    texts = write(mine, found, tmp_path)
    assert "BDB &lt;is&gt; better" in texts["html"]
    assert '<b class="verdict supported">supported</b>' in texts["html"]
    for text in (texts["html"], texts["md"]):
        assert f"Rank-1 {shown}" in text
        assert "Rank-1 +5.0" in text
        assert "2 trainings, 2 min 0 s in all, on abacus." in text
    (line, _) = csv.DictReader(io.StringIO(texts["csv"]))
    assert float(line["difference"]) == pytest.approx(100 * of.found.difference, abs=1e-4)
    assert (line["verdict"], line["paper_difference"], line["seeds"]) == ("supported", "5.0000", "1")
    assert (line["above"], line["below"], line["measured_on"]) == ("BDB", "Baseline", "toy data")
    summary = write_claims_summary(mine, [[found]], tmp_path / "RESULTS.md", "this command")
    assert summary == tmp_path / "CLAIMS.md"
    assert "Generated by `this command`;" in summary.read_text()
    assert f"Rank-1 {shown}" in summary.read_text()


def test_other_claims_and_pages_are_not_replaced(claims, tmp_path):
    mine = claims(BETTER)
    place = (BUDGET, tmp_path / "out", tmp_path, None)
    refuse_other_claims(mine, *place)
    write(mine, judged(mine, tmp_path), tmp_path)
    refuse_other_claims(mine, *place)
    other = claims({"above": "BDB", "below": "Other"})
    with pytest.raises(
        ConfigError, match=r"claims.md holds .*claims was .*output_root=<another folder>.*overwrite=true"
    ):
        refuse_other_claims(other, *place)
    with pytest.raises(ConfigError, match="overrides was"):
        refuse_other_claims(mine, replace(BUDGET, overrides=("a=1",)), *place[1:])
    write_claims_summary(mine, [[judged(mine, tmp_path)]], tmp_path / "RESULTS.md", "this")
    refuse_other_claims_summary(tmp_path / "RESULTS.md", "this")
    with pytest.raises(ConfigError, match=r"CLAIMS.md: .*`that` has not written"):
        refuse_other_claims_summary(tmp_path / "RESULTS.md", "that")


def test_the_command_writes_the_claims_and_leaves_the_summary_of_the_tables_alone(
    claims, tmp_path, monkeypatch, capsys
):
    from bdbnet import reproduce

    monkeypatch.setattr("bdbnet.reproduction.budget.read_budget", lambda name, config: BUDGET)
    mine = claims(BETTER)
    (table,) = look(mine, tmp_path / "runs")
    folders = finish(table, "BDB", drawn(1, 0.15)), finish(table, "Baseline", drawn(2))
    assert all(read_result(folder / "result.json").seed == 1 for folder in folders)
    (tmp_path / "RESULTS.md").write_text("of another command")
    config = OmegaConf.create({
        "table": None, "figure": None, "claims": str(mine.path), "budget": "toy", "seeds": [1],
        "overrides": [], "list": True, "version": None,
        "overwrite": False, "summary": str(tmp_path / "RESULTS.md"), "runs_root": str(tmp_path / "runs"),
        "output_root": str(tmp_path / "outputs"), "weights_root": "weights",
    })  # fmt: skip
    for _ in range(2):  # the same command replaces its own files
        reproduce.main(config)
    printed = capsys.readouterr().out
    assert re.search(r"BDB is better +Rank-1 +\+5\.0 +\+\d+\.\d +1 +supported", printed)
    assert "claims.html" in printed
    assert (tmp_path / "RESULTS.md").read_text() == "of another command"
    assert (
        f"Generated by `python -m bdbnet.reproduce claims={mine.path} budget=toy list=true"
        in (tmp_path / "CLAIMS.md").read_text()
    )


def test_the_command_of_a_summary_has_what_decides_its_numbers():
    asked = {"table": 2, "figure": None, "claims": "paper", "budget": ["full", "cpu"], "seeds": [1, 2, 3],
             "overrides": ["backbone.weights=none", "dataset.image_size=[64,32]"], "version": "0.1.0", "runs_root": "kept",
             "summary": "RESULTS.md"}  # fmt: skip
    assert command_line(OmegaConf.create(asked)) == (
        "python -m bdbnet.reproduce table=2 claims=paper budget=[full,cpu] seeds=[1,2,3] "
        "'overrides=[backbone.weights=none,dataset.image_size=[64,32]]' version=0.1.0 list=true runs_root=kept summary=RESULTS.md"
    )
    plain = asked | {"seeds": [1], "overrides": [], "version": None, "claims": None, "budget": "cpu"}
    assert command_line(OmegaConf.create(plain)) == (
        "python -m bdbnet.reproduce table=2 budget=cpu list=true runs_root=kept summary=RESULTS.md"
    )
