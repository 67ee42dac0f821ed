"""Names of run folders: safe, stable, and of one command line alone."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import command
from bdbnet.run_names import LONGEST, folder_name, name_sweep, named_of_job, run_name, shortened
from bdbnet.settings import unnamed_settings

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=90)


def earlier_name(override_dirname: str) -> str:
    """What earlier versions made of overrides that fit and have no character to replace."""
    return override_dirname or "default"


@given(st.sets(TEXTS, min_size=2, max_size=6))
@example({"checkpoint=a/b.pth", "checkpoint=a_b.pth", "checkpoint=a b.pth", "checkpoint=a:b.pth"})
@example({"a" * 151, "a" * 150, "a" * 152})
@example({"x=" + "\u8eca" * 75, "x=" + "\u8eca" * 76, "x=" + "\u8eca" * 140})
@example({"a/b", run_name("a/b")})
def test_two_command_lines_have_two_names_that_file_systems_take(texts):
    names = {text: run_name(text) for text in texts}
    assert len({*names.values()}) == len(texts)
    for text, name in names.items():
        assert name == run_name(text)
        assert re.fullmatch(r"[\w=,.+-]+", name)
        assert len(name.encode()) <= LONGEST


@pytest.mark.parametrize("text", ["", "dataset=market1501,loss=hard_triplet", "a" * 150, "x=" + "\u8eca" * 84])
def test_what_needs_no_change_is_the_name_as_before(text):
    assert run_name(text) == earlier_name(text)


def test_a_name_that_is_only_long_is_cut_as_before():
    text = ",".join(f"key{number}={number}" for number in range(100))
    assert re.fullmatch(re.escape(text[:130]) + "-[0-9a-f]{12}", run_name(text))
    assert len(run_name(text)) == 143


def test_bytes_are_counted_not_characters(tmp_path):
    name = run_name("dataset.manifest=/" + "\u6c49" * 75)
    (tmp_path / name).mkdir()
    (tmp_path / run_name("images=" + "\U0001f697" * 200)).mkdir()
    (tmp_path / folder_name("\u6c49" * 200)).mkdir()


def test_a_key_under_its_former_name_finds_its_former_folder(monkeypatch):
    """A job that was submitted with the former name is requeued with it."""
    assert run_name("evaluation.distance=cosine,seed=2") == "evaluation.distance=cosine,seed=2"
    monkeypatch.setattr("bdbnet.run_names._typed_formerly", {"evaluation.measure"})
    assert run_name("evaluation.distance=cosine,seed=2") == "evaluation.measure=cosine,seed=2"


@pytest.mark.parametrize("name", ["mine", "my run", "loss=none,seed=2", "v1.2", "\u6c49"])
def test_a_typed_name_that_is_fine_stays(name):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    "name", ["a/b<script>", "../../x", "/etc/x", "..", ".", "", "a\nb", "a\\b", 'a"b', "a\u202eb", "x" * 256]
)
def test_a_typed_name_is_one_folder_below_its_place(name, tmp_path):
    safe = folder_name(name, str(tmp_path))
    assert (tmp_path / safe).parent == tmp_path
    assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
    assert not re.search(r'[<>"/\\\n\u202e]', safe)
    (tmp_path / safe).mkdir()


def test_a_typed_name_with_levels_finds_its_earlier_folder(tmp_path):
    assert folder_name("a/b", str(tmp_path)) == folder_name("a/b") != "a/b"
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert folder_name("a/b", str(tmp_path)) == "a/b"
    assert folder_name("a/../../b", str(tmp_path / "a")) != "a/../../b"


def test_names_are_shortened_to_what_is_left():
    assert shortened("abc", 20) == "abc"
    assert shortened("\u6c49" * 20, 30) != shortened("\u6c49" * 21, 30)
    assert len(shortened("\u6c49" * 20, 30).encode()) <= 30


@pytest.mark.parametrize(
    "arguments",
    [["model=bdb", "seed=1,2"], ["-m", "seed=1"], ["-m", "seed=1,2", "run_name=x"], ["-m", "seed=[1,2"], ["-m"]],
)
def test_only_a_sweep_is_named_by_what_is_swept(arguments):
    assert name_sweep("train", arguments) == arguments
    assert name_sweep("reproduce", ["-m", "worker=0,1"]) == ["-m", "worker=0,1"]


@pytest.fixture
def name_of(tmp_path, monkeypatch) -> Callable[..., str]:
    """``name_of("seed=2", swept=["seed"])``: the name of a job of `bdbnet.train` with these overrides."""

    def name(*overrides: str, swept: Sequence[str] = (), params: dict[str, str] | None = None) -> str:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        unnamed = list(unnamed_settings())
        sweep = bool(swept or params)
        hydra = {
            "mode": RunMode.MULTIRUN if sweep else RunMode.RUN,
            "job": {"config_name": "train", "config": {"override_dirname": {"exclude_keys": unnamed}}},
            "overrides": {"task": list(overrides)},
            "sweeper": {"params": params},
            "sweep": {"dir": str(tmp_path)},
        }
        monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
        dirname = get_overrides_dirname(parsed, unnamed, ",", "=")
        return named_of_job(dirname, swept, _root_=OmegaConf.create({"output_root": str(tmp_path)}))

    return name


def leave(folder: Path, *overrides: str) -> None:
    """What Hydra leaves in the folder of a job."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")


def test_jobs_of_a_sweep_are_named_by_what_was_swept(name_of):
    shared = ["model=bdb", "dataset.image_size=[64,32]"]
    names = [name_of(*shared, f"seed={seed}", swept=["seed"]) for seed in (1, 2)]
    assert [re.fullmatch(r"(seed=\d)-[0-9a-f]{12}", name)[1] for name in names] == ["seed=1", "seed=2"]
    assert name_of("seed=1", *reversed(shared), "data_root=/data", swept=["seed"]) == names[0]
    assert name_of("model=bdb", "dataset.image_size=[64,64]", "seed=1", swept=["seed"]) not in names
    assert name_of("seed=1", "loss=none", swept=["seed", "loss"]) == "loss=none,seed=1"
    assert name_of("seed=1", "loss=none") == "loss=none,seed=1"


def test_a_sweep_of_an_experiment_is_named_by_its_values(name_of):
    params = {"dropping.height_ratio": "0.1,0.2"}
    name = name_of("experiment=mine", "dropping.height_ratio=0.1", params=params)
    assert re.fullmatch(r"dropping\.height_ratio=0\.1-[0-9a-f]{12}", name)


def test_a_long_list_of_shared_settings_leaves_the_swept_value(name_of):
    shared = [f"+dataset.options.my_option_of_some_length_{number}={number}" for number in range(9)]
    names = [name_of(*shared, f"seed={seed}", swept=["seed"]) for seed in (1, 2)]
    assert [name.partition("-")[0] for name in names] == ["seed=1", "seed=2"]


@pytest.mark.parametrize(
    "overrides", [["seed=1", "seed=2"], ["dataset.options={a:1}", "dataset.options.a=2"], ["+x=1", "x=2"]]
)
def test_where_the_order_counts_it_tells_command_lines_apart(name_of, overrides):
    assert name_of(*overrides) != name_of(*reversed(overrides))
    assert name_of(*overrides, "loss=none") == name_of(*overrides, "loss=none", "data_root=x")
    assert name_of("dataset=a", "dataset.b=1") == name_of("dataset.b=1", "dataset=a")


def test_a_training_keeps_the_folder_that_an_earlier_version_named(name_of, tmp_path):
    overrides = ["dataset.image_size=[64,32]", "seed=3"]
    new, former = name_of(*overrides), "dataset.image_size=_64,32_,seed=3"
    assert re.fullmatch(re.escape(former) + "-[0-9a-f]{12}", new)
    leave(tmp_path / "train" / former, "dataset.image_size=[64,32]", "ckpt_path=last", "seed=3")
    assert name_of(*overrides) == name_of("ckpt_path=last", *reversed(overrides)) == former
    assert name_of("dataset.image_size='[64,32]'", "seed=3") != former  # has the same name there, and is another
    assert name_of(*overrides, swept=["seed"]).startswith("seed=3-")


def test_a_sweep_keeps_the_folders_that_an_earlier_version_named(name_of, tmp_path):
    leave(tmp_path / "loss=none,seed=1", "seed=1", "loss=none")
    assert name_of("loss=none", "seed=1", swept=["seed"]) == "loss=none,seed=1"
    assert name_of("loss=none", "seed=2", swept=["seed"]).startswith("seed=2-")
    (tmp_path / "loss=none,seed=1" / ".hydra" / "overrides.yaml").write_text("{")
    assert name_of("loss=none", "seed=1", swept=["seed"]).startswith("seed=1-")


@pytest.mark.end_to_end
def test_the_folders_of_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bdbnet.config.check_given", lambda *_: None)  # the files of these lines are made up

    def folders(*arguments: str) -> list[str]:
        found = []

        @command("search")
        def main(config: DictConfig) -> None:
            found.append(str(Path(HydraConfig.get().runtime.output_dir).relative_to(tmp_path)))

        monkeypatch.setattr(sys, "argv", ["bdbnet", *arguments])
        main()
        return found

    jobs = folders("-m", "index=a/b", "k=1,2", "distance=cosine")
    assert [re.fullmatch(r"outputs/sweeps/default/(k=\d)-[0-9a-f]{12}", job)[1] for job in jobs] == ["k=1", "k=2"]
    assert folders("index=a/b") != folders("index=a_b") == ["outputs/search/index=a_b"]
    (one,) = folders("run_name=../../x<b>")
    assert re.fullmatch(r"outputs/search/[^/<>]+", one)
    assert folders("run_name=k=1,mine") == ["outputs/search/k=1,mine"]
    (job,) = folders("-m", "k=1", "sweep_name=../y", "run_name=a/b")
    assert re.fullmatch(r"outputs/sweeps/[^/]+/[^/]+", job)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
