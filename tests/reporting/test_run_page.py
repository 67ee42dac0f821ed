import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bdbnet.config import ConfigError
from bdbnet.reporting import ReportError, write_report
from bdbnet.reporting.pictures import picture
from bdbnet.results import Protocol
from bdbnet.wording import duration, protocol_line

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """The page's elements; fails on an element that is closed wrongly."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def test_the_page_opens_with_what_was_trained_its_main_numbers_and_the_date(run_folder, change_result):
    config = {
        "model": {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"]},
        "backbone": {"_target_": "bdbnet.models.ResNetBackbone", "name": "resnet50"},
        "dropping": {"_target_": "bdbnet.models.BatchDropBlock"},
        "loss": {"name": "triplet"},
    }
    change_result(config=config, protocol=Protocol("reid", "market1501", (32, 16)), created="2026-11-26T23:08:20+02:00")
    page = Page(write_report(run_folder))
    title = "BDB, ResNet-50, batch-hard triplet on Market-1501"
    assert f"<title>{title}: {run_folder.name}</title>" in page.source
    opening = f"Training run · 2026-11-26 21:08 UTC {title} Rank-1 91.2 % mAP 75.0 % {run_folder.name} 2 epochs"
    assert page.text.strip().startswith(f"{title}: {run_folder.name} {opening}")


def test_page_holds_everything_and_links_nowhere(run_folder):
    page = Page(write_report(run_folder))
    pictures = [a["src"] for a in page.all("img")] + [a["srcset"] for a in page.all("source")]
    assert len(page.all("source")) == 3
    assert len(page.all("img")) == 3 + 6 * (1 + 5)
    assert all(source.startswith("data:image/") for source in pictures)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("a")
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert all(a["alt"] and a["title"] for a in page.all("img"))
    assert page.all("html", lang="en")


def test_ranking_images_are_the_files_of_the_dataset(run_folder):
    page = Page(write_report(run_folder))
    shown = {a["title"]: a["src"] for a in page.all("img") if a["title"].endswith(".png")}
    image = Image.open(io.BytesIO(base64.b64decode(shown["query/3.png"].split(",")[1])))
    original = Image.open(run_folder.parent / "images/query/3.png")
    assert image.size == original.size
    assert max(abs(a - b) for a, b in zip(image.getpixel((1, 30)), original.getpixel((1, 30)))) < 12


def test_metrics_in_percent_before_after_and_best(run_folder):
    text = Page(write_report(run_folder)).text
    assert re.search(r"Rank-1 95\.0 % 91\.2 % \u22123\.8 93\.4 %", text)
    assert re.search(r"mAP 5\.0 % 75\.0 % \+70\.0 75\.0 %", text)
    assert "epoch 1, selected on the test set" in text
    assert "6 valid queries" in text


def test_data_speed_and_settings_are_told(run_folder):
    page = Page(write_report(run_folder))
    assert re.search(r"query 6 6 1 gallery 6 12 2", page.text)
    assert re.search(r"Fingerprint [0-9a-f]{64}", page.text)
    assert "train 3 min 7 s 312.5" in page.text
    assert "trainer.max_epochs=2" in page.text
    assert "2 epochs · seed 3 · 2.21 M parameters · embedding of 512 numbers" in page.text
    assert page.all("details")
    assert "Processor time" not in page.text


def test_processor_time_stands_where_the_wall_time_is(run_folder, change_result):
    change_result(processor_seconds=18720.0)
    assert "Processor time 5 h 12 min, user and system, of all processes" in Page(write_report(run_folder)).text


def test_right_and_wrong_are_told_without_colour(run_folder):
    page = Page(write_report(run_folder, queries=6, top=3))
    assert len(page.all("li")) == 6 * (1 + 3)
    alts = [a["alt"] for a in page.all("img")]
    assert "rank 2, wrong: identity 1, camera 1, distance 0.750" in alts
    assert "rank 1, right: identity 0, camera 1, distance 0.500" in alts
    assert len(page.all("li", **{"class": "right"})) == 3
    assert "Identity 5, camera 0: no correct image in the first 5" in page.text
    assert "Identity 3, camera 0: first correct image at rank 4" in page.text


def test_same_folder_same_page(run_folder):
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first
    assert write_report(run_folder, queries=2, seed=5).read_bytes() != first


def test_every_string_is_escaped(run_folder, change_result):
    evil = "<script>alert('\"&')</script>"
    change_result(
        protocol=Protocol("reid", evil, (32, 16), precision=evil),
        checkpoint=evil,
        data={"fingerprint": evil, "counts": {evil: {evil: 1}}},
        config={"note": {evil: evil}},
        versions={evil: evil},
        hardware={evil: evil, "gpus": [evil]},
        metrics={evil: 0.5},
        best={"metrics": {evil: 0.5}, "epoch": evil, "note": evil},
        seconds={evil: 1.0},
        images_per_second={},
        created=evil,
        kind=evil,
    )
    path = run_folder / "topk.parquet"
    table = pd.read_parquet(path)
    table[["query_path", "gallery_path"]] = evil
    table["query_label"] = evil
    table.to_parquet(path)
    page = Page(write_report(run_folder))
    assert not page.all("script")
    assert "<script" not in page.source
    assert evil in page.text


def test_missing_dataset_leaves_placeholders_and_a_remark(run_folder):
    images = run_folder.parent / "images"
    images.rename(run_folder.parent / "elsewhere")
    page = Page(write_report(run_folder))
    assert len(page.all("img")) == 3
    assert len(page.all("div", **{"class": "missing", "role": "img"})) == 36
    assert "was not found where the run had it" in page.text
    assert "image not found" in page.text


def test_single_missing_and_broken_images_are_told_apart(run_folder):
    (run_folder.parent / "images/query/0.png").unlink()
    (run_folder.parent / "images/query/1.png").write_bytes(b"no image")
    page = Page(write_report(run_folder))
    words = [a["aria-label"] for a in page.all("div", **{"class": "missing"})]
    assert "query: identity 0, camera 0 (image not found)" in words
    assert "query: identity 1, camera 0 (image not readable)" in words


def test_evaluation_without_history_before_and_best(run_folder, change_result):
    (run_folder / "history.csv").unlink()
    change_result(kind="evaluate", before=None, best=None, checkpoint="outputs/last.ckpt", epochs=None)
    page = Page(write_report(run_folder))
    assert "Evaluation" in page.text
    assert "Metric Result Rank-1 91.2 %" in page.text
    assert "Weights evaluated: outputs/last.ckpt" in page.text
    assert not page.all("picture")


def test_numbers_without_re_ranking_stand_beside_those_with_it(run_folder, change_result):
    changed = {"kind": "evaluate", "before": None, "best": None, "checkpoint": "outputs/last.ckpt", "epochs": None}
    change_result(**changed, plain={"rank1": 0.125, "mAP": 0.0625, "valid_queries": 6})
    page = write_report(run_folder).read_text()
    assert "As embedded" in page
    assert "<td>12.5 %</td>" in page
    assert "without re-ranking and query expansion" in page


def test_result_alone_makes_a_page(run_folder):
    (run_folder / "history.csv").unlink()
    (run_folder / "topk.parquet").unlink()
    page = Page(write_report(run_folder))
    assert not page.all("img")
    assert "Rank-1" in page.text


def test_retrieval_has_classes_and_no_cameras(run_folder, change_result):
    metrics = {"recall@1": 0.5, "recall@2": 0.625}
    change_result(protocol=Protocol("retrieval", "drawn", (224, 224)), metrics=metrics, before=None, best=None)
    path = run_folder / "topk.parquet"
    table = pd.read_parquet(path)
    table[["query_camera", "gallery_camera"]] = -1
    table.to_parquet(path)
    page = Page(write_report(run_folder))
    assert "Recall@2 62.5 %" in page.text
    assert "Class 5: no correct image" in page.text
    assert "cam " not in page.text


def test_queries_that_no_metric_counts_are_mentioned(run_folder, change_result):
    change_result(metrics={"rank1": 0.9, "valid_queries": 4.0})
    assert "2 queries have no correct image in the gallery" in Page(write_report(run_folder)).text


def test_no_ranking_lists_on_request(run_folder):
    assert "Ranking lists" not in Page(write_report(run_folder, queries=0)).text


@pytest.mark.parametrize("bad", [{"queries": -1}, {"top": 0}, {"seed": -1}])
def test_bad_arguments_are_named(run_folder, bad):
    (name,) = bad
    with pytest.raises(ReportError, match=f"{name}="):
        write_report(run_folder, **bad)
    assert not (run_folder / "report.html").exists()


def test_a_failed_report_leaves_the_old_one(run_folder):
    page = write_report(run_folder)
    old = page.read_bytes()
    (run_folder / "result.json").write_text("{")
    with pytest.raises(ValueError):
        write_report(run_folder)
    assert page.read_bytes() == old
    assert sorted(p.name for p in run_folder.iterdir()) == ["history.csv", "report.html", "result.json", "topk.parquet"]


def test_protocol_line_names_what_changes_a_number():
    line = protocol_line(
        Protocol("reid", "x", (1, 2), ap_at=50, flip=True, rerank={"k1": 20, "k2": 6, "lambda": 0.3}, normalize="joint")
    )
    for part in ("rank 50", "mirror image", "re-ranked (k1 20, k2 6, lambda 0.3)", "L2-normalised", "1 x 2"):
        assert part in line


@pytest.mark.parametrize(("seconds", "words"), [(59.96, "60.0 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_page_of_other_arguments_is_replaced_where_the_user_says_so(run_folder):
    page = write_report(run_folder, top=3, overwrite=False).read_bytes()
    assert write_report(run_folder, top=3, overwrite=False).read_bytes() == page
    with pytest.raises(
        ConfigError, match=r"report.html holds results of other settings: top was 3, is 4.*overwrite=true"
    ):
        write_report(run_folder, top=4, overwrite=False)
    assert (run_folder / "report.html").read_bytes() == page
    assert write_report(run_folder, top=4).read_bytes() != page
    (run_folder / "report.html").write_text("of an earlier version")
    write_report(run_folder, top=4, overwrite=False)


def test_a_path_that_leads_out_of_the_data_is_not_shown(run_folder):
    """Ranking lists may come from somebody else."""
    secret = run_folder.parent / "secret.png"
    Image.new("RGB", (16, 32)).save(secret)
    path = run_folder / "topk.parquet"
    table = pd.read_parquet(path)
    evil = ["../secret.png", str(secret), "gallery/../../secret.png", "..", "gallery", "gallery/../gallery/1.png"]
    table["gallery_path"] = [evil[number % len(evil)] for number in range(len(table))]
    table.to_parquet(path)
    page = Page(write_report(run_folder, queries=6, top=5))
    shown = {a["title"] for a in page.all("img") if not a["alt"].startswith("query") and "rank" in a["alt"]}
    assert shown == {"gallery/../gallery/1.png"}
    words = [a["aria-label"] for a in page.all("div", **{"class": "missing"})]
    assert sum("not in the data set's folder" in text for text in words) == 20
    assert sum("image not found" in text for text in words) == 5


def test_a_pipe_among_the_images_is_not_waited_for(run_folder):
    file = run_folder.parent / "images/query/0.png"
    file.unlink()
    os.mkfifo(file)
    words = [a["aria-label"] for a in Page(write_report(run_folder)).all("div", **{"class": "missing"})]
    assert "query: identity 0, camera 0 (image not found)" in words


def test_ranks_and_cameras_are_escaped(run_folder):
    path = run_folder / "topk.parquet"
    table = pd.read_parquet(path)
    assert "<script" not in picture(run_folder, "<script>", "<script>", None)
    table["query_label"] = "<script>"
    table.to_parquet(path)
    assert "<script" not in Page(write_report(run_folder)).source


def test_maps_stand_beneath_the_ranking_lists(run_folder):
    plain = Page(write_report(run_folder, queries=2, top=3))
    with pytest.raises(ReportError, match=r"maps=true needs the run's network: .*no such file.*checkpoint=FILE"):
        write_report(run_folder, queries=2, top=3, maps=True)
    with_maps = Page(write_report(run_folder, queries=2, top=3, maps=True, checkpoint="bdb_osnet_x0_25_synthetic"))
    assert with_maps.source.count('<ol class="ranks maps">') == 2
    assert with_maps.source.count("<img") == plain.source.count("<img") + 2 * 4
    assert "where rank 3 agrees with the query" in with_maps.source
    (run_folder.parent / "images" / "gallery" / "0.png").unlink()  # in every list
    assert (
        "ranks maps"
        not in Page(
            write_report(run_folder, queries=2, top=3, maps=True, checkpoint="bdb_osnet_x0_25_synthetic")
        ).source
    )
