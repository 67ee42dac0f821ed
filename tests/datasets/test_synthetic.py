import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.datasets.synthetic import readers, rendering
from bdbnet.datasets.synthetic.appearance import GROUP_SIZE, group_appearances, identity_appearance
from bdbnet.datasets.synthetic.frames import render_frame
from bdbnet.datasets.synthetic.objects import SIBLINGS, object_class, render_object
from bdbnet.datasets.synthetic.people import Painter, Pose, paint_figure
from bdbnet.datasets.synthetic.readers import read_synthetic_reid, read_synthetic_retrieval, render_person
from bdbnet.datasets.synthetic.rendering import Shot
from bdbnet.datasets.synthetic.scenes import OCCLUDERS, SCENES, draw_occluder, draw_scene, expose, make_camera

REID = {
    "train_identities": 3, "test_identities": 2, "cameras": 2, "images_per_camera": 2, "distractors": 2,
    "image_size": (32, 16), "workers": 0,
}  # fmt: skip
RETRIEVAL = {"train_classes": 2, "test_classes": 3, "images_per_class": 2, "image_size": (24, 20), "workers": 0}


def contents(manifest: Manifest) -> dict[str, str]:
    return {path: hashlib.sha256((manifest.root / path).read_bytes()).hexdigest() for path in manifest.table["path"]}


def folders(root: Path) -> Iterator[str]:
    return (entry.name for entry in root.iterdir())


def test_people_have_disjoint_identities_and_cross_camera_matches(tmp_path: Path) -> None:
    manifest = read_synthetic_reid(tmp_path, **REID)
    train, query, gallery = (manifest.subset(role).table for role in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (3 * 2 * 2, 2 * 2, 2 * 2 + 2)
    assert set(train["label"]) == {1, 2, 3}
    assert set(query["label"]) == {5, 6}  # test identities start a new group of four
    assert set(gallery["label"]) == {0, 5, 6}
    for part in (train, query, gallery):
        people = part[part["label"] > 0]
        assert (people.groupby("label")["camera"].nunique() == 2).all()
    assert manifest.unmatched_queries() == 0
    for path, row in zip(manifest.paths, manifest.table.itertuples()):
        assert Path(path).name.startswith(f"{row.label:04d}_c{row.camera}_")
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (16, 32))


def test_objects_have_disjoint_classes_and_no_cameras(tmp_path: Path) -> None:
    manifest = read_synthetic_retrieval(tmp_path, **RETRIEVAL)
    assert not manifest.has_cameras
    assert set(manifest.subset("train").table["label"]) == {1, 2}
    assert manifest.subset("query").table.equals(manifest.subset("gallery").table)
    assert manifest.subset("query").table["label"].value_counts().to_dict() == {3: 2, 4: 2, 5: 2}
    with Image.open(manifest.paths[0]) as image:
        assert (image.mode, image.size) == ("RGB", (20, 24))


def test_default_sizes_are_those_of_the_configuration() -> None:
    conf = Path(__file__).resolve().parents[2] / "conf" / "dataset"
    yaml = pytest.importorskip("yaml")
    for name, reader in (("synthetic_reid", read_synthetic_reid), ("synthetic_retrieval", read_synthetic_retrieval)):
        settings_ = yaml.safe_load((conf / f"{name}.yaml").read_text())
        defaults = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in reader.__kwdefaults__.items()
            if key not in ("stored_only", "test_only")  # for programs that read results, and with a trained network
        }
        assert settings_["options"] == defaults


@pytest.mark.parametrize(("name", "options"), [("synthetic_reid", REID), ("synthetic_retrieval", RETRIEVAL)])
def test_a_cache_is_reused(tmp_path: Path, name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_manifest(name, tmp_path, **options)
    times = [Path(path).stat().st_mtime_ns for path in first.paths]
    monkeypatch.setattr(rendering, "_save", lambda *_: pytest.fail("rendered again"))
    second = load_manifest(name, tmp_path, **options)
    assert [Path(path).stat().st_mtime_ns for path in second.paths] == times
    assert second.fingerprint == first.fingerprint


def test_options_seed_and_renderer_version_have_caches_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_synthetic_retrieval(tmp_path, **RETRIEVAL)
    reseeded = read_synthetic_retrieval(tmp_path, **RETRIEVAL | {"seed": 1})
    monkeypatch.setattr(rendering, "RENDERER_VERSION", rendering.RENDERER_VERSION + 1)
    newer = read_synthetic_retrieval(tmp_path, **RETRIEVAL)
    assert len({first.root, reseeded.root, newer.root}) == 3
    assert contents(first) == contents(newer)
    assert contents(first) != contents(reseeded)


def test_images_do_not_depend_on_workers_or_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "IMAGES_PER_WORKER", 4)
    alone = read_synthetic_reid(tmp_path / "alone", **REID)
    several = read_synthetic_reid(tmp_path / "several", **REID | {"workers": 2})
    assert contents(several) == contents(alone)
    more = read_synthetic_reid(tmp_path / "more", **REID | {"images_per_camera": 3, "test_identities": 3})
    common = [path for path in alone.table["path"] if not path.startswith("gallery/0000")]
    assert {path: contents(more)[path] for path in common} == {path: contents(alone)[path] for path in common}


def test_a_lost_worker_process_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendering, "IMAGES_PER_WORKER", 4)
    monkeypatch.setattr(sys, "executable", "false")  # a program that fails at once
    # A command that ran in this process before may have disabled the logger and raised the level (Hydra).
    monkeypatch.setattr(rendering.logger, "disabled", False)
    caplog.set_level("WARNING")
    manifest = read_synthetic_retrieval(tmp_path, **RETRIEVAL | {"workers": 2})
    assert all(Path(path).is_file() for path in manifest.paths)
    assert "ended early" in caplog.text


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_interrupted_rendering_leaves_nothing(tmp_path: Path, failure, monkeypatch: pytest.MonkeyPatch) -> None:
    save = rendering._save
    saved = []

    def failing(folder: Path, render, shot: Shot) -> None:
        if len(saved) == 3:
            raise failure
        save(folder, render, shot)
        saved.append(shot)

    monkeypatch.setattr(rendering, "_save", failing)
    expected = DatasetError if isinstance(failure, OSError) else failure
    with pytest.raises(expected) as error:
        read_synthetic_retrieval(tmp_path, **RETRIEVAL)
    assert list(folders(tmp_path)) == []
    if expected is DatasetError:
        assert str(tmp_path) in str(error.value)
        assert "No space left" in str(error.value)
    monkeypatch.setattr(rendering, "_save", save)
    assert len(read_synthetic_retrieval(tmp_path, **RETRIEVAL).table) == 10


def test_a_folder_of_a_killed_run_is_ignored(tmp_path: Path) -> None:
    complete = read_synthetic_retrieval(tmp_path / "a", **RETRIEVAL)
    left = tmp_path / "b" / f".{complete.root.name}.1-abcd" / "train"
    left.mkdir(parents=True)
    (left / "0001_000.jpg").write_bytes(b"half")
    assert contents(read_synthetic_retrieval(tmp_path / "b", **RETRIEVAL)) == contents(complete)


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    manifest = read_synthetic_retrieval(tmp_path, **RETRIEVAL)
    Path(manifest.paths[4]).unlink()
    with pytest.raises(DatasetError, match=rf"{manifest.root.name} lacks test/0003_000\.jpg: delete this folder"):
        read_synthetic_retrieval(tmp_path, **RETRIEVAL)


def test_readers_that_render_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        manifests = list(threads.map(lambda _: read_synthetic_retrieval(tmp_path, **RETRIEVAL), range(4)))
    assert len({manifest.root for manifest in manifests}) == 1
    assert len(list(folders(tmp_path))) == 1
    assert all(Path(path).is_file() for path in manifests[0].paths)


def test_the_slower_of_two_renderers_uses_the_other_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = read_synthetic_retrieval(tmp_path / "other", **RETRIEVAL)
    target = tmp_path / "mine" / other.root.name
    render_all = rendering._render_all

    def overtaken(*arguments: object) -> None:
        render_all(*arguments)
        other.root.rename(target)

    monkeypatch.setattr(rendering, "_render_all", overtaken)
    manifest = read_synthetic_retrieval(tmp_path / "mine", **RETRIEVAL)
    assert manifest.root == target
    assert list(folders(tmp_path / "mine")) == [target.name]


@pytest.mark.end_to_end
def test_a_script_without_a_main_guard_can_render(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from bdbnet.datasets.synthetic import readers, rendering\n"
        "rendering.IMAGES_PER_WORKER = 4\n"
        f"manifest = readers.read_synthetic_retrieval(Path({str(tmp_path / 'data')!r}), workers=2,\n"
        "    train_classes=2, test_classes=2, images_per_class=2, image_size=(16, 16))\n"
        "print(len(manifest.table))\n"
    )
    source = str(Path(readers.__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
        check=True,
    )
    assert done.stdout == "8\n"
    assert done.stderr == ""


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"can't render synthetic_reid into .*file/data: Not a directory.*writable"):
        read_synthetic_reid(tmp_path / "file" / "data", **REID)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_identities", 0), ("test_identities", -1), ("test_identities", 2.5), ("cameras", 1), ("cameras", True),
        ("images_per_camera", 1), ("distractors", -1), ("occlusion", 1.5), ("occlusion", "often"),
        ("occlusion", float("nan")), ("image_size", (128,)), ("image_size", 128), ("image_size", "128x64"),
        ("image_size", (128, 8)), ("image_size", (128.0, 64)), ("seed", -1), ("workers", -2),
    ],
)  # fmt: skip
def test_bad_options_of_people_are_named(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(DatasetError, match=f"option {option} must"):
        read_synthetic_reid(tmp_path, **REID | {option: value})
    assert list(folders(tmp_path)) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("train_classes", 0), ("test_classes", "2"), ("images_per_class", 1), ("image_size", (96, 4096))],
)
def test_bad_options_of_objects_are_named(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(DatasetError, match=f"option {option} must"):
        read_synthetic_retrieval(tmp_path, **RETRIEVAL | {option: value})


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), group=st.integers(0, 10_000))
def test_members_of_a_group_share_the_salient_cue_and_differ_in_weak_ones(seed: int, group: int) -> None:
    members = group_appearances(seed, group)
    assert len(members) == GROUP_SIZE + 1
    assert len({(member.upper, member.skin, member.group) for member in members}) == 1
    for one, other in combinations(members, 2):
        weak = ("hair", "hat", "lower", "shoes", "bag")
        assert sum(getattr(one, cue) != getattr(other, cue) for cue in weak) >= 2


def test_identities_fill_groups_in_order() -> None:
    groups = [identity_appearance(7, identity).group for identity in range(1, 2 * GROUP_SIZE + 1)]
    assert groups == [0] * GROUP_SIZE + [1] * GROUP_SIZE


def test_distractors_wear_the_upper_clothing_of_a_test_group() -> None:
    shot = Shot("", 0, 1, 3, "gallery")
    options = {"seed": 2, "size": (32, 16), "occlusion": 0.0}
    first, again = (render_person(shot, **options, distractor_groups=(5, 2)) for _ in range(2))
    other_group = render_person(shot, **options, distractor_groups=(4, 2))
    assert first.tobytes() == again.tobytes() != other_group.tobytes()


def test_sibling_objects_share_kind_color_and_pattern() -> None:
    siblings = [object_class(0, label) for label in range(1, SIBLINGS + 1)]
    assert len({(kind.family, kind.body, kind.pattern) for kind in siblings}) == 1
    assert len(set(siblings)) == SIBLINGS
    assert object_class(0, SIBLINGS + 1).family != siblings[0].family


def test_every_kind_of_object_is_visible() -> None:
    for group in range(5):
        label = 1 + group * SIBLINGS
        assert len({render_object(0, label, index, (32, 32)).tobytes() for index in range(3)}) == 3


def test_the_first_six_cameras_differ_in_scene_and_colors() -> None:
    cameras = [make_camera(3, number) for number in range(1, 7)]
    assert {camera.scene for camera in cameras} == set(SCENES)
    grey = Image.new("RGB", (16, 32), (128, 128, 128))
    means = [np.asarray(expose(grey, camera, np.random.default_rng(0))).mean((0, 1)) for camera in cameras]
    casts = [mean / mean.sum() for mean in means]
    assert min(np.abs(one - other).max() for one, other in combinations(casts, 2)) > 0.01


def test_scenes_have_the_size_asked_for() -> None:
    for number in range(1, 7):
        scene = draw_scene(3, number, 60, 48)
        assert (scene.shape, scene.dtype) == ((48, 60, 3), np.uint8)


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_every_occluder_hides_a_part_but_not_all(kind: str) -> None:
    image = Image.new("RGB", (64, 128), (255, 0, 255))
    draw_occluder(image, kind, np.random.default_rng(0))
    hidden = (np.asarray(image) != (255, 0, 255)).any(axis=2).mean()
    assert 0.05 < hidden < 0.7


def painted(identity: int, **pose: object) -> np.ndarray:
    canvas = np.zeros((128, 64, 3), np.float32)
    neutral = {"yaw": 0.0, "pitch": 0.1, "stride": 0.3, "phase": 1.0, "elbow": 0.3}
    paint_figure(Painter(canvas, (32, 122), 105, Pose(**neutral | pose), 0.3), identity_appearance(0, identity))
    return canvas


def test_a_figure_is_an_upright_person_inside_of_the_picture() -> None:
    rows, columns = np.nonzero(painted(1).any(axis=2))
    assert 5 < rows.min() < 25
    assert 115 < rows.max() < 128
    assert 10 < columns.min() < columns.max() < 54


def test_a_coat_hides_the_upper_clothing_and_a_turn_hides_the_parcel() -> None:
    chest = np.s_[45:55, 28:36]
    assert not np.allclose(painted(1)[chest], painted(5)[chest])  # two groups, two kinds of upper clothing
    coats = [painted(identity, cover="coat", cover_color="grey")[chest] for identity in (1, 3)]
    assert np.allclose(coats[0], coats[1])
    front, back = (painted(1, cover="parcel", yaw=yaw)[chest] for yaw in (0.0, np.pi))
    assert not np.allclose(front, painted(1)[chest])
    assert np.allclose(back, painted(1, yaw=np.pi)[chest])


def test_without_training_images_the_others_stay_the_same(tmp_path: Path) -> None:
    whole = read_synthetic_reid(tmp_path, **REID)
    test = read_synthetic_reid(tmp_path, **REID, test_only=True)
    assert set(test.table["split"]) == {"query", "gallery"}
    assert test.root != whole.root
    assert contents(test) == {path: pixels for path, pixels in contents(whole).items() if not path.startswith("train/")}
    with pytest.raises(DatasetError, match="option test_only must be true or false, not 'yes'"):
        read_synthetic_reid(tmp_path, **REID, test_only="yes")


def test_a_frame_holds_its_people_where_the_boxes_are() -> None:
    frame = render_frame([5, 9], 1, size=(120, 200))
    assert (frame.image.shape, frame.image.dtype) == ((120, 200, 3), np.uint8)
    empty = render_frame([], 1, size=(120, 200)).image.astype(int)
    changed = np.abs(frame.image - empty).max(2) > 60
    inside = np.zeros_like(changed)
    for left, top, right, bottom in frame.boxes.round().astype(int):
        box = np.s_[max(top, 0) : bottom, max(left, 0) : right]
        assert changed[box].mean() > 0.05
        inside[box] = True
    assert changed[inside].sum() > 0.95 * changed.sum()


def test_people_walk_and_keep_their_boxes() -> None:
    one, again, later = (render_frame([5, 9], 2, number, size=(60, 100)) for number in (0, 0, 3))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.boxes, again.boxes)
    assert not np.allclose(one.boxes, later.boxes)
