"""Readers of the synthetic datasets, which are rendered on first use and stored; no download, no real people.

`synthetic_reid` is built so that the most salient cue does not decide: identities come in groups that share the upper
clothing, that clothing is often hidden, and hair, hat, trousers, shoes and bag tell the members apart.
`synthetic_retrieval` has classes of roughly aligned objects for zero-shot retrieval.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bdbnet.datasets.manifest import DatasetError, Manifest
from bdbnet.datasets.synthetic.appearance import GROUP_SIZE, Appearance, group_appearances, identity_appearance
from bdbnet.datasets.synthetic.objects import render_object
from bdbnet.datasets.synthetic.people import Painter, Pose, paint_figure
from bdbnet.datasets.synthetic.rendering import Shot, rendered, require_integers, require_possible
from bdbnet.datasets.synthetic.scenes import OCCLUDERS, draw_occluder, draw_scene, expose, make_camera

SUPERSAMPLING = 2
COAT_COLORS = ("black", "grey", "beige", "navy", "olive")
# Passers-by are taken from groups that no dataset reaches.
FIRST_STRANGER_GROUP = 1_000_000


def read_synthetic_reid(
    root: Path,
    *,
    train_identities: int = 120,
    test_identities: int = 72,
    cameras: int = 4,
    images_per_camera: int = 3,
    distractors: int = 72,
    occlusion: float = 0.4,
    image_size: Sequence[int] = (128, 64),
    seed: int = 0,
    workers: int | None = None,
    test_only: bool = False,
    stored_only: bool = False,
) -> Manifest:
    """Synthetic people under several cameras, rendered below `root` unless they are there already.

    Train identities are 1, 2, ...; test identities follow in new groups. The first test image of every identity and
    camera is a query, the others and the distractors (label 0, in a test group's upper clothing) are the gallery.
    `occlusion` is the share of images in which a thing, a passer-by, a coat or a parcel hides part of the body;
    `image_size` is (height, width) in pixels; `workers` (None: one per core, at most 8) does not change any image.
    With `test_only` the training images are left out, for a network that is trained already; the others stay the same.
    With `stored_only` nothing is rendered: for options that a file says, not the user.
    Raises DatasetError on a bad option or a folder that can't be written.
    """
    require_integers(1, train_identities=train_identities, test_identities=test_identities)
    require_integers(2, cameras=cameras, images_per_camera=images_per_camera)
    require_integers(0, distractors=distractors, seed=seed)
    require_possible((train_identities + test_identities) * cameras * images_per_camera + distractors)
    if isinstance(occlusion, bool) or not isinstance(occlusion, int | float) or not 0 <= occlusion <= 1:
        raise DatasetError(f"option occlusion must be a number from 0 to 1, not {occlusion!r}")
    if not isinstance(test_only, bool):
        raise DatasetError(f"option test_only must be true or false, not {test_only!r}")
    size = _checked_size(image_size)
    first_test = -(-train_identities // GROUP_SIZE) * GROUP_SIZE + 1
    shots = []
    for start, count, test in ((1, 0 if test_only else train_identities, False), (first_test, test_identities, True)):
        for identity in range(start, start + count):
            for camera in range(1, cameras + 1):
                for index in range(images_per_camera):
                    split = ("query" if index == 0 else "gallery") if test else "train"
                    path = f"{split}/{identity:04d}_c{camera}_{index:03d}.jpg"
                    shots.append(Shot(path, identity, camera, index, split))
    for index in range(distractors):
        camera = 1 + index % cameras
        shots.append(Shot(f"gallery/0000_c{camera}_{index:03d}.jpg", 0, camera, index, "gallery"))
    groups = (first_test // GROUP_SIZE, -(-test_identities // GROUP_SIZE))
    render = partial(render_person, seed=seed, size=size, occlusion=float(occlusion), distractor_groups=groups)
    options = {"train": train_identities, "test": test_identities, "cameras": cameras, "images": images_per_camera,
               "distractors": distractors, "occlusion": float(occlusion), "size": size, "seed": seed}  # fmt: skip
    if test_only:  # folders are named by their options: those rendered before stay what they are
        options["test_only"] = True
    return rendered(Path(root), "synthetic_reid", options, shots, render, workers, stored_only=stored_only)


def read_synthetic_retrieval(
    root: Path,
    *,
    train_classes: int = 40,
    test_classes: int = 40,
    images_per_class: int = 12,
    image_size: Sequence[int] = (96, 96),
    seed: int = 0,
    workers: int | None = None,
    stored_only: bool = False,
) -> Manifest:
    """Synthetic objects of disjoint train and test classes, rendered below `root` unless they are there already.

    A class is one shape with its part colours and pattern; its images vary in light, background, small shifts,
    scale, rotation and occlusion. There are no cameras (-1); every test image is both query and gallery.
    `image_size` is (height, width) in pixels. With `stored_only` nothing is rendered: for options that a file says, not the
    user. Raises DatasetError on a bad option or a folder that can't be written.
    """
    require_integers(1, train_classes=train_classes, test_classes=test_classes)
    require_integers(2, images_per_class=images_per_class)
    require_integers(0, seed=seed)
    require_possible((train_classes + test_classes) * images_per_class)
    size = _checked_size(image_size)
    shots = []
    for label in range(1, train_classes + test_classes + 1):
        split = "train" if label <= train_classes else "test"
        for index in range(images_per_class):
            shots.append(Shot(f"{split}/{label:04d}_{index:03d}.jpg", label, -1, index, split))
    options = {"train": train_classes, "test": test_classes, "images": images_per_class, "size": size, "seed": seed}
    render = partial(_render_object_shot, seed=seed, size=size)
    return rendered(Path(root), "synthetic_retrieval", options, shots, render, workers, stored_only=stored_only)


def _render_object_shot(shot: Shot, *, seed: int, size: tuple[int, int]) -> Image.Image:
    return render_object(seed, shot.label, shot.number, size)


def render_person(
    shot: Shot, *, seed: int, size: tuple[int, int], occlusion: float, distractor_groups: tuple[int, int] = (0, 1)
) -> Image.Image:
    """One image: the camera's scene, the person in a random pose, occluders, then the camera's colours and sharpness.

    `distractor_groups` (first, count) are the groups whose spare member appears as label 0.
    """
    rng = np.random.default_rng([seed, 31, shot.label, shot.camera, shot.number])
    if shot.label:
        who = identity_appearance(seed, shot.label)
    else:
        who = group_appearances(seed, distractor_groups[0] + shot.number % distractor_groups[1])[GROUP_SIZE]
    camera = make_camera(seed, shot.camera)
    height, width = (SUPERSAMPLING * side for side in size)
    scene = draw_scene(seed, shot.camera, 6 * width, int(1.16 * height))
    left, top = int(rng.integers(scene.shape[1] - width)), int(rng.integers(scene.shape[0] - height))
    canvas = scene[top : top + height, left : left + width].astype(np.float32)

    hidden = "nothing"
    if rng.random() < occlusion:
        hidden = str(rng.choice(["thing", "coat", "parcel", "passer-by"], p=[0.5, 0.2, 0.15, 0.15]))
    if rng.random() < 0.12:  # someone far behind
        place = (width * float(rng.uniform(0.0, 1.0)), height * float(rng.uniform(0.72, 0.8)))
        pose = _draw_pose(rng, camera.yaw, camera.pitch)
        stand(canvas, _stranger(seed, rng), pose, place, 0.42 * height, camera.light)
    cover = hidden if hidden in ("coat", "parcel") else "none"
    pose = _draw_pose(rng, camera.yaw, camera.pitch, cover)
    place = (width * float(np.clip(rng.normal(0.5, 0.06), 0.36, 0.64)), height * float(rng.uniform(0.92, 0.985)))
    stand(canvas, who, pose, place, height * float(rng.uniform(0.76, 0.88)), camera.light)
    if hidden == "passer-by":
        side = float(rng.choice([-1, 1]))
        place = (width * (0.5 + side * float(rng.uniform(0.26, 0.42))), height * float(rng.uniform(1.02, 1.15)))
        pose = _draw_pose(rng, camera.yaw, camera.pitch)
        stand(canvas, _stranger(seed, rng), pose, place, 1.0 * height, camera.light)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if hidden == "thing":
        draw_occluder(image, str(rng.choice(OCCLUDERS)), rng)
    return expose(image.resize((size[1], size[0]), Image.Resampling.BOX), camera, rng)


def _stranger(seed: int, rng: np.random.Generator) -> Appearance:
    return group_appearances(seed, FIRST_STRANGER_GROUP + int(rng.integers(100)))[int(rng.integers(GROUP_SIZE))]


def _draw_pose(rng: np.random.Generator, yaw: float, pitch: float, cover: str = "none") -> Pose:
    """Walking or standing; people mostly cross a camera's view in its usual direction."""
    usual = rng.random() < 0.7
    return Pose(
        yaw=float(rng.normal(yaw, 0.45) if usual else rng.uniform(-np.pi, np.pi)),
        pitch=pitch,
        stride=float(rng.uniform(0.2, 0.52) if rng.random() < 0.75 else rng.uniform(0.0, 0.1)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        elbow=float(rng.uniform(0.1, 0.7)),
        cover=cover,
        cover_color=str(rng.choice(COAT_COLORS)),
    )


def stand(
    canvas: np.ndarray, who: Appearance, pose: Pose, place: tuple[float, float], body: float, light: float
) -> None:
    """Paint a person and the shadow into `canvas` (H, W, 3) at `place` (x, y of the feet); `body` is the average height in
    pixels."""
    scale = body * who.height
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    x, y = place[0] - 0.08 * light * scale, place[1]
    distance = ((columns - x) / (0.17 * scale)) ** 2 + ((rows - y) / (0.035 * scale)) ** 2
    canvas *= (1 - 0.5 * np.exp(-distance.astype(np.float32)))[..., None]
    paint_figure(Painter(canvas, place, scale, pose, light, who.girth), who)


def _checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    sides = list(image_size) if isinstance(image_size, Sequence) and not isinstance(image_size, str) else []
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 16 <= side <= 1024 for side in sides)
    if len(sides) != 2 or not whole:
        raise DatasetError(f"option image_size must be [height, width] with 16 to 1024 pixels each, not {image_size!r}")
    return sides[0], sides[1]
