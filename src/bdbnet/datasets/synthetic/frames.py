"""Frames of a synthetic camera: several people in one scene, with the boxes that a detector would draw around them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from bdbnet.datasets.synthetic.appearance import identity_appearance
from bdbnet.datasets.synthetic.people import Pose
from bdbnet.datasets.synthetic.readers import SUPERSAMPLING, stand
from bdbnet.datasets.synthetic.scenes import draw_scene, expose, make_camera

_STEP = 0.04  # body heights that people walk from one frame to the next
_BOX = 1.22  # height of a box in body heights: as loose as the images of `synthetic_reid`


class Frame(NamedTuple):
    """A frame uint8 RGB (H, W, 3) and a box float64 (N, 4) for each identity: left, top, right, bottom in pixels."""

    image: np.ndarray
    boxes: np.ndarray


def render_frame(
    identities: Sequence[int], camera: int, number: int = 0, *, seed: int = 0, size: tuple[int, int] = (270, 480)
) -> Frame:
    """Frame `number` of a synthetic camera in which people walk, evenly spread over its width.

    Args:
        identities: who is seen, as `synthetic_reid` numbers them: 1, 2, ...; the same under every camera.
        camera: 1, 2, ...
        number: of the frame, from 0; people walk on from one to the next.
        seed: of the people, their ways and the cameras.
        size: (height, width) in pixels.
    """
    height, width = (SUPERSAMPLING * side for side in size)
    settings = make_camera(seed, camera)
    canvas = draw_scene(seed, camera, width, height).astype(np.float32)
    places = np.random.default_rng([seed, 41, camera]).permutation(len(identities))
    people = []
    for identity, place in zip(identities, places.tolist()):
        rng = np.random.default_rng([seed, 42, camera, identity])
        pose = Pose(
            yaw=float(rng.normal(settings.yaw, 0.35)), pitch=settings.pitch, stride=float(rng.uniform(0.25, 0.45)),
            phase=float(rng.uniform(0, 2 * np.pi)) + 0.9 * number, elbow=float(rng.uniform(0.1, 0.7)),
        )  # fmt: skip
        feet = height * (float(rng.uniform(0.84, 0.93)) + 0.3 * _STEP * number * np.cos(pose.yaw) / 3)
        body = 0.62 * feet
        across = width * (place + 0.5) / len(identities) + _STEP * number * body * np.sin(pose.yaw)
        people.append((feet, across, body, pose, identity))
    boxes = {}
    for feet, across, body, pose, identity in sorted(people, key=lambda person: person[0]):  # far to near
        stand(canvas, identity_appearance(seed, identity), pose, (across, feet), body, settings.light)
        tall, bottom = _BOX * body, feet + 0.06 * body
        boxes[identity] = (across - tall / 4, bottom - tall, across + tall / 4, bottom)
    placed = np.array([boxes[identity] for identity in identities], np.float64).reshape(-1, 4) / SUPERSAMPLING
    rng = np.random.default_rng([seed, 43, camera])  # one exposure for all frames of a camera
    small = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.BOX)
    return Frame(np.asarray(expose(small, settings, rng)), placed)
