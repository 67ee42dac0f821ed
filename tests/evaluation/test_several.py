"""One network on several data sets: ``dataset=[a,b]`` of ``bdbnet.evaluate``."""

import json
import statistics

import pytest
from omegaconf import OmegaConf

from bdbnet.command_line import one_dataset_each
from bdbnet.config import ConfigError
from bdbnet.datasets import DatasetError
from bdbnet.evaluate import evaluate_one, evaluate_several
from bdbnet.results import RESULT, read_result
from cuhk03_files import write_old
from forked_commands import run

OPTIONS = "dataset.options.test_identities=3 dataset.options.images_per_camera=2 dataset.options.cameras=2 " \
    "dataset.options.distractors=1 dataset.options.image_size=[32,16] dataset.options.workers=1 " \
    "dataset.options.train_identities=2 dataset.image_size=[64,32]"  # fmt: skip
FIRST, SECOND = (f"synthetic_reid {OPTIONS} dataset.options.seed={seed}" for seed in (5, 6))


@pytest.fixture
def several(finished_run, tiny_config):
    """``several("entry", ...)``: the configuration of an evaluation of a finished run on these."""

    def build(*entries: str, more: tuple[str, ...] = ()):
        listed = ",".join(f'"{entry}"' for entry in entries)
        typed = one_dataset_each([f"dataset=[{listed}]"], "evaluations")
        return tiny_config(
            *typed, f"checkpoint={finished_run / 'last.ckpt'}", "evaluation.top_k=2", *more, command="evaluate"
        )

    return build


def test_each_has_a_folder_with_what_it_gets_alone(several, tmp_path, capsys):
    results = evaluate_several(several(FIRST, SECOND), tmp_path / "both")
    names = ["synthetic_reid", "synthetic_reid_2"]
    assert [result.metrics for result in results] == [
        read_result(tmp_path / "both" / name / RESULT).metrics for name in names
    ]
    said = capsys.readouterr().out
    assert "[1/2] synthetic_reid\n" in said
    assert [line.split()[0] for line in said.splitlines()[-2:]] == names
    alone = evaluate_one(several(SECOND), tmp_path / "alone")
    assert alone.metrics == results[1].metrics
    assert alone.data == results[1].data
    records = [
        json.loads((folder / RESULT).read_text())["config"]
        for folder in (tmp_path / "alone", tmp_path / "both" / names[1])
    ]
    assert records[0]["dataset"] == records[1]["dataset"]
    assert records[0]["evaluations"] == records[1]["evaluations"] == []
    evaluate_several(several(FIRST, SECOND), tmp_path / "both")  # of the same settings: nothing is refused


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ((FIRST, "nothing_like_it"), ConfigError, "dataset: nothing_like_it"),
        ((FIRST, "market1501 dataset.root=/nowhere"), DatasetError, "/nowhere"),
        ((FIRST, FIRST), DatasetError, "the same data set is in the list twice"),
        ((FIRST, "table"), DatasetError, "dataset.manifest names no data"),
    ],
)
def test_a_set_that_can_not_be_used_ends_it_before_anything_is_computed(several, entries, error, message, tmp_path):
    with pytest.raises(error, match=message):
        evaluate_several(several(*entries), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_embeddings_are_of_one_set_alone(several, tmp_path):
    config = several(FIRST, SECOND)
    OmegaConf.update(config, "features", "embeddings.npz")
    with pytest.raises(ConfigError, match="goes with checkpoint="):
        evaluate_several(config, tmp_path)


@pytest.mark.end_to_end
def test_a_sweep_over_the_splits_of_cuhk03_ends_with_their_mean(finished_run, tmp_path):
    """Two kinds of splits, by turns: two people of one image in each view, and one person."""
    write_old(tmp_path / "data" / "cuhk03", [(1, 1), (2, 1)], [(1, 2)])
    done = run(
        "evaluate", "-m", f"checkpoint={finished_run / 'last.ckpt'}", "dataset=cuhk03_detect_old",
        "dataset.options.split=range(1,21)", "evaluation.ranks=[1]", "evaluation.single_shot=2", "loading.num_workers=0",
        "trainer.accelerator=cpu", folder=tmp_path, log=tmp_path / "log", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [read_result(path).metrics["rank1"] for path in (tmp_path / "outputs" / "sweeps").rglob(RESULT)]
    assert len(found) == 20
    assert found.count(1.0) >= 10  # who is alone is found
    mean, std = 100 * statistics.fmean(found), 100 * statistics.stdev(found)
    table = done.stdout[done.stdout.index("cuhk03_detect_old: default") :]
    assert f"{mean:.1f} ± {std:.1f}" in table
    assert "20 of 20" in table
    assert "Mean ± sample standard deviation over the splits." in table
