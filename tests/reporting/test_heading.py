"""What pages say they are about."""

import pytest

from bdbnet.reporting.heading import date_of, headline, run_title, title_of
from bdbnet.results import Protocol, Result

BDB = {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"]}
RESNET = {"_target_": "bdbnet.models.ResNetBackbone", "name": "resnet50"}


def result(config: dict, dataset: str = "mine", checkpoint: str = "last", **fields: object) -> Result:
    metrics = {"rank1": 0.5, "rank5": 0.6, "mAP": 0.25}
    return Result("train", metrics, Protocol("reid", dataset, (32, 16)), checkpoint, {}, config, seed=1, **fields)


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"model": BDB, "backbone": RESNET, "loss": {"name": "lifted"}}, "BDB, ResNet-50, lifted structure on mine"),
        ({"model": BDB, "dropping": {"_target_": "torch.nn.Identity"}}, "BDB without dropping on mine"),
        ({"model": BDB, "dropping": {"_target_": "mypkg.Mine"}}, "BDB with Mine on mine"),
        ({"model": BDB | {"branches": ["global"]}, "dropping": {"_target_": "mypkg.Mine"}}, "Baseline on mine"),
        ({"model": BDB | {"branches": ["dropping"]}}, "dropping branch alone on mine"),
        ({"model": {"_target_": "bdbnet.models.PCBNetwork", "refined": True}}, "PCB + RPP on mine"),
        (
            {"model": {"_target_": "bdbnet.models.MGNNetwork"}, "loss": {"name": "CircleLoss"}},
            "MGN, CircleLoss on mine",
        ),
        ({"backbone": {"_target_": "bdbnet.models.OSNetBackbone", "width": 0.25}}, "OSNet x0.25 on mine"),
        ({"backbone": {"_target_": "bdbnet.models.TimmBackbone", "name": "swin_tiny"}}, "swin_tiny on mine"),
        ({"backbone": {"_target_": "mypkg.MyBackbone"}}, "MyBackbone on mine"),
        ({"model": None, "trained_with": {"model": BDB, "loss": {"name": "none"}}}, "BDB, softmax alone on mine"),
        ({"model": "resnet", "backbone": [1], "loss": {"name": None}, "dropping": 3}, "last on mine"),
    ],
)
def test_a_run_is_told_by_network_backbone_loss_and_dataset(config, title):
    assert run_title(result(config)) == title


def test_a_network_of_unknown_training_is_told_by_its_file():
    assert run_title(result({}, "market1501", "weights/osnet.pth")) == "osnet.pth on Market-1501"


def test_several_runs_are_told_by_what_they_share():
    one, other = result({"model": BDB, "backbone": RESNET}), result({"model": BDB, "loss": {"name": "margin"}})
    assert title_of([one, other]) == "BDB on mine"
    assert title_of([result({}), result({})]) == "mine"
    assert title_of([result({}, "a"), result({}, "b")]) == "several networks on several datasets"


def test_the_headline_is_of_the_main_metrics():
    assert headline(result({})) == [("Rank-1", "50.0 %"), ("mAP", "25.0 %")]


def test_the_date_is_that_of_the_last_run():
    runs = [result({}, created=f"2026-11-2{day}T08:00:00+00:00") for day in (6, 5)]
    assert date_of(runs) == "2026-11-26 08:00 UTC"
    assert date_of([result({}, created="yesterday")]) == "yesterday"
