"""Synthetic cameras: background scenes, occluders, and the camera's colours, sharpness and noise."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bdbnet.datasets.synthetic.appearance import Color

SCENES = ("street", "park", "hall", "car park", "platform", "plaza")
OCCLUDERS = ("bin", "sign", "car", "pole", "bush", "bench", "umbrella")
# One colour cast each: evening sun, overcast, fluorescent tube, sodium lamp, shade, old sensor.
CASTS = (
    (1.18, 0.98, 0.76),
    (0.82, 0.96, 1.2),
    (0.88, 1.12, 0.9),
    (1.14, 0.92, 1.06),
    (0.76, 1.0, 1.08),
    (1.08, 1.08, 0.78),
)
VIEWS = (0.0, np.pi, np.pi / 2, -np.pi / 2)


@dataclass(frozen=True)
class Camera:
    """Properties that all images of one camera share."""

    scene: str
    gain: tuple[float, float, float]
    contrast: float
    gamma: float
    saturation: float
    blur: float  # Gaussian sigma in hundredths of the image height
    noise: float  # standard deviation in 0..255
    pitch: float
    yaw: float
    light: float
    horizon: float


@lru_cache(maxsize=64)
def make_camera(seed: int, camera: int) -> Camera:
    """Camera 1, 2, ...: the first six differ in scene and colour cast, the first four in the usual view of people."""
    order = np.random.default_rng([seed, 21])
    scenes, casts, views = order.permutation(len(SCENES)), order.permutation(len(CASTS)), order.permutation(len(VIEWS))
    rng = np.random.default_rng([seed, 22, camera])
    exposure = rng.uniform(0.86, 1.16)
    red, green, blue = (
        float(exposure * value * rng.uniform(0.94, 1.06)) for value in CASTS[casts[camera % len(CASTS)]]
    )
    return Camera(
        scene=SCENES[scenes[camera % len(SCENES)]],
        gain=(red, green, blue),
        contrast=float(rng.uniform(0.8, 1.2)),
        gamma=float(rng.uniform(0.8, 1.2)),
        saturation=float(rng.uniform(0.75, 1.2)),
        blur=float(rng.uniform(0.15, 0.55)),
        noise=float(rng.uniform(2, 8)),
        pitch=float(rng.uniform(0.08, 0.3)),
        yaw=float(VIEWS[views[camera % len(VIEWS)]]),
        light=float(rng.choice([-1, 1]) * rng.uniform(0.3, 0.6)),
        horizon=float(rng.uniform(0.48, 0.62)),
    )


def _shift(color: Color, amount: float) -> Color:
    """Lighter (amount > 0) or darker by a share of the full range."""
    red, green, blue = (int(min(255, max(0, channel + 255 * amount))) for channel in color)
    return red, green, blue


@lru_cache(maxsize=16)
def draw_scene(seed: int, camera: int, width: int, height: int) -> np.ndarray:
    """The empty scene of a camera, uint8 (height, width, 3), several crops wide."""
    settings = make_camera(seed, camera)
    rng = np.random.default_rng([seed, 23, camera])
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    horizon = int(settings.horizon * height)
    walls = {
        "street": _street,
        "park": _park,
        "hall": _hall,
        "car park": _car_park,
        "platform": _platform,
        "plaza": _plaza,
    }
    walls[settings.scene](draw, rng, width, height, horizon)
    image = image.filter(ImageFilter.GaussianBlur(height / 240))
    coarse = rng.normal(0, 5, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    fine = rng.normal(0, 3, (height, width)).astype(np.float32)
    mottle = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) + fine
    scene: np.ndarray = np.clip(np.asarray(image, np.float32) + mottle[..., None], 0, 255).astype(np.uint8)
    return scene


def _floor(
    draw: ImageDraw.ImageDraw, width: int, height: int, horizon: int, color: Color, joint: Color | None, step: float
) -> None:
    """Ground from the horizon to the lower edge, with tile joints in perspective where `joint` is given."""
    for row in range(horizon, height):
        nearness = (row - horizon) / (height - horizon)
        draw.line([(0, row), (width, row)], fill=_shift(color, 0.1 * nearness - 0.06))
    if joint is None:
        return
    line = max(1, height // 160)
    for k in range(1, 9):
        depth = horizon + (height - horizon) * (k / 8) ** 1.8
        draw.line([(0, depth), (width, depth)], fill=joint, width=line)
    spacing = step * height
    for k in range(int(width / spacing) + 1):
        # Vanishing points repeat along the wide scene, so that every crop shows converging joints.
        x = k * spacing
        lean = ((x % height) / height - 0.5) * spacing * 1.6
        draw.line([(x, horizon), (x + lean, height)], fill=joint, width=line)


def _street(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    brick: Color = (150, 84, 66)
    draw.rectangle([0, 0, width, horizon], fill=brick)
    course = max(3, height // 28)
    for level, row in enumerate(range(0, horizon, course)):
        draw.line([(0, row), (width, row)], fill=(176, 126, 108), width=max(1, height // 256))
        for left in range((level % 2) * course, width, 2 * course):
            if rng.random() < 0.3:
                shade = _shift(brick, rng.uniform(-0.07, 0.07))
                draw.rectangle([left, row + 1, left + 2 * course, row + course - 1], fill=shade)
            draw.line([(left, row), (left, row + course)], fill=(176, 126, 108), width=max(1, height // 256))
    x = 0.1 * height
    while x < width:
        wide = rng.uniform(0.3, 0.5) * height
        frame = [(62, 74, 70), (44, 58, 92), (110, 38, 38), (226, 222, 208)][int(rng.integers(4))]
        draw.rectangle([x, 0.1 * height, x + wide, horizon - 0.03 * height], fill=frame)
        edge = 0.02 * height
        glass = [x + edge, 0.1 * height + edge, x + wide - edge, horizon - 0.06 * height]
        draw.rectangle(glass, fill=(74, 92, 104))
        draw.polygon([(glass[0], glass[3]), (glass[0] + wide * 0.5, glass[1]), (glass[0] + wide * 0.68, glass[1]),
                      (glass[0] + wide * 0.18, glass[3])], fill=(120, 142, 152))  # fmt: skip
        awning = _shift(frame, 0.12)
        draw.rectangle([x - edge, 0.06 * height, x + wide + edge, 0.13 * height], fill=awning)
        x += wide + rng.uniform(0.2, 0.6) * height
    _floor(draw, width, height, horizon, (150, 148, 144), (118, 116, 112), 0.14)


def _park(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    for row in range(horizon):
        draw.line([(0, row), (width, row)], fill=_shift((168, 202, 226), 0.12 * row / horizon))
    for _ in range(width * 14 // height):
        x, y, r = rng.uniform(0, width), rng.uniform(0.02, 1) * horizon, rng.uniform(0.05, 0.13) * height
        draw.ellipse([x - r, y - r, x + r, y + r], fill=_shift((62, 108, 52), rng.uniform(-0.12, 0.12)))
    for _ in range(width * 2 // height + 2):
        x, w = rng.uniform(0, width), rng.uniform(0.02, 0.05) * height
        draw.polygon(
            [(x - w, horizon + w), (x - 0.6 * w, 0), (x + 0.6 * w, 0), (x + w, horizon + w)], fill=(84, 66, 50)
        )
    _floor(draw, width, height, horizon, (96, 138, 66), None, 0)
    for _ in range(width):
        x, y = rng.uniform(0, width), rng.uniform(horizon, height)
        blade = 0.012 * height
        draw.line(
            [(x, y), (x + rng.uniform(-blade, blade), y - blade)], fill=_shift((104, 150, 72), rng.uniform(-0.12, 0.1))
        )
    draw.polygon(
        [(0, 0.78 * height), (width, 0.74 * height), (width, 0.93 * height), (0, 0.97 * height)], fill=(186, 168, 136)
    )


def _hall(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    draw.rectangle([0, 0, width, horizon], fill=(214, 206, 190))
    draw.rectangle([0, 0, width, 0.05 * height], fill=(238, 238, 234))
    x = 0.0
    while x < width:
        kind, wide = int(rng.integers(3)), rng.uniform(0.22, 0.34) * height
        if kind == 0:
            draw.rectangle([x, 0.12 * height, x + wide, horizon], fill=(128, 88, 58))
            draw.rectangle(
                [x + 0.03 * height, 0.15 * height, x + wide - 0.03 * height, 0.3 * height], fill=(150, 110, 76)
            )
            knob = 0.35 * height
            draw.ellipse(
                [x + wide * 0.8, knob, x + wide * 0.8 + 0.02 * height, knob + 0.02 * height], fill=(220, 200, 120)
            )
        elif kind == 1:
            poster = [(60, 120, 170), (200, 90, 60), (80, 140, 90), (228, 196, 80)][int(rng.integers(4))]
            draw.rectangle([x, 0.15 * height, x + wide, 0.4 * height], fill=poster)
            draw.rectangle([x + wide * 0.15, 0.2 * height, x + wide * 0.85, 0.24 * height], fill=(240, 238, 230))
            draw.rectangle([x + wide * 0.15, 0.3 * height, x + wide * 0.6, 0.32 * height], fill=(240, 238, 230))
        else:
            draw.rectangle([x, 0, x + wide * 0.45, horizon], fill=(176, 166, 150))
            draw.rectangle([x, 0, x + wide * 0.12, horizon], fill=(196, 188, 172))
        x += wide + rng.uniform(0.12, 0.35) * height
    draw.rectangle([0, horizon - 0.03 * height, width, horizon], fill=(120, 110, 100))
    _floor(draw, width, height, horizon, (196, 190, 182), (160, 152, 146), 0.2)


def _car_park(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    draw.rectangle([0, 0, width, horizon], fill=(152, 152, 148))
    draw.rectangle([0, 0, width, 0.14 * height], fill=(112, 114, 116))
    for x in np.arange(0, width, 0.6 * height):
        draw.rectangle([x, 0, x + 0.08 * height, horizon], fill=(180, 178, 170))
        draw.rectangle([x, 0.3 * height, x + 0.08 * height, 0.36 * height], fill=(222, 184, 48))
    _floor(draw, width, height, horizon, (92, 94, 98), None, 0)
    x = 0.1 * height
    while x < width:
        paint = [(150, 36, 40), (206, 208, 210), (40, 62, 110), (60, 62, 64), (190, 160, 90)][int(rng.integers(5))]
        _draw_car(draw, x, horizon + 0.06 * height, 0.55 * height, paint)
        x += rng.uniform(0.65, 0.85) * height
    for x in np.arange(0, width, 0.45 * height):
        draw.line(
            [(x, horizon + 0.1 * height), (x - 0.12 * height, height)], fill=(214, 212, 200), width=max(2, height // 70)
        )


def _platform(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    draw.rectangle([0, 0, width, horizon], fill=(38, 92, 128))
    draw.rectangle([0, 0, width, 0.08 * height], fill=(66, 70, 76))
    draw.rectangle([0, 0.37 * height, width, 0.41 * height], fill=(232, 230, 222))
    x = 0.0
    while x < width:
        wide = 0.3 * height
        draw.rounded_rectangle([x, 0.14 * height, x + wide, 0.33 * height], radius=0.03 * height, fill=(48, 58, 66))
        glint = [(x + 0.06 * height, 0.33 * height), (x + 0.15 * height, 0.14 * height)]
        glint += [(x + 0.2 * height, 0.14 * height), (x + 0.11 * height, 0.33 * height)]
        draw.polygon(glint, fill=(92, 108, 116))
        if rng.random() < 0.4:
            door = x + wide + 0.04 * height
            draw.rectangle([door, 0.11 * height, door + 0.2 * height, horizon], fill=(206, 172, 60))
            draw.rectangle(
                [door + 0.04 * height, 0.15 * height, door + 0.16 * height, 0.34 * height], fill=(48, 58, 66)
            )
            x += 0.26 * height
        x += wide + 0.07 * height
    _floor(draw, width, height, horizon, (140, 136, 134), (116, 112, 110), 0.24)
    draw.rectangle([0, horizon, width, horizon + 0.025 * height], fill=(40, 40, 42))
    draw.rectangle([0, horizon + 0.07 * height, width, horizon + 0.11 * height], fill=(232, 200, 56))


def _plaza(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    for row in range(horizon):
        draw.line([(0, row), (width, row)], fill=_shift((132, 168, 184), 0.22 * (1 - row / horizon)))
    pane = 0.17 * height
    for column, x in enumerate(np.arange(0, width, pane)):
        for level in range(int(horizon / pane) + 1):
            tint = _shift((128, 164, 182), rng.uniform(-0.12, 0.14))
            box = [x, level * pane, x + pane, min((level + 1) * pane, horizon)]
            draw.rectangle(box, fill=tint, outline=(70, 80, 88), width=max(1, height // 120))
        if column % 5 == 4:
            draw.rectangle([x, 0, x + 0.07 * height, horizon], fill=(214, 212, 206))
    _floor(draw, width, height, horizon, (178, 170, 158), (146, 138, 128), 0.18)
    for _ in range(width // height + 1):
        x, base = rng.uniform(0, width), horizon + 0.06 * height
        draw.polygon([(x, base), (x + 0.03 * height, base + 0.1 * height), (x + 0.19 * height, base + 0.1 * height),
                      (x + 0.22 * height, base)], fill=(104, 92, 84))  # fmt: skip
        for _ in range(9):
            cx, cy, r = x + rng.uniform(0, 0.22) * height, base - rng.uniform(0, 0.12) * height, 0.05 * height
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=_shift((74, 122, 62), rng.uniform(-0.1, 0.1)))


def _draw_car(draw: ImageDraw.ImageDraw, x: float, ground: float, length: float, paint: Color) -> None:
    """A car from the side; `ground` is the row of its tyres' lower edge."""
    h = 0.42 * length
    body = ground - 0.12 * length

    def slope(
        left: float, top_left: float, top_right: float, right: float, foot: float, top: float
    ) -> list[tuple[float, float]]:
        corners = ((left, foot), (top_left, top), (top_right, top), (right, foot))
        return [(x + across * length, ground - up * h) for across, up in corners]

    draw.polygon(slope(0.17, 0.3, 0.7, 0.86, 0.55, 1.0), fill=_shift(paint, 0.06))
    draw.polygon(slope(0.23, 0.325, 0.675, 0.79, 0.57, 0.92), fill=(58, 74, 86))
    draw.rectangle([x + 0.485 * length, ground - h, x + 0.515 * length, ground - 0.5 * h], fill=paint)
    draw.rounded_rectangle([x, ground - 0.6 * h, x + length, body + 0.06 * length], radius=0.06 * length, fill=paint)
    draw.rectangle([x + 0.02 * length, body, x + 0.98 * length, body + 0.05 * length], fill=_shift(paint, -0.14))
    draw.ellipse([x + 0.92 * length, ground - 0.5 * h, x + 0.985 * length, ground - 0.38 * h], fill=(250, 240, 190))
    for wheel in (0.2, 0.78):
        r = 0.085 * length
        cx, cy = x + wheel * length, ground - r
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=(28, 28, 30))
        draw.ellipse([cx - 0.5 * r, cy - 0.5 * r, cx + 0.5 * r, cy + 0.5 * r], fill=(170, 172, 176))


def draw_occluder(image: Image.Image, kind: str, rng: np.random.Generator) -> None:
    """Draw an object between camera and person; most kinds hide a horizontal band of the body."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    paints: tuple[Color, ...] = (
        (52, 92, 62),
        (60, 66, 74),
        (150, 44, 44),
        (198, 170, 60),
        (52, 82, 140),
        (206, 206, 202),
    )
    paint = paints[int(rng.integers(len(paints)))]
    if kind == "bin":
        top, left, wide = rng.uniform(0.52, 0.68) * height, rng.uniform(0.05, 0.45) * width, 0.55 * width
        draw.polygon(
            [(left, top), (left + wide, top), (left + 0.92 * wide, height), (left + 0.08 * wide, height)], fill=paint
        )
        lit = [(left, top), (left + 0.22 * wide, top), (left + 0.26 * wide, height), (left + 0.08 * wide, height)]
        draw.polygon(lit, fill=_shift(paint, 0.08))
        for k in (0.4, 0.58, 0.76):
            draw.line(
                [(left + k * wide, top), (left + (0.5 + (k - 0.5) * 0.84) * wide, height)],
                fill=_shift(paint, -0.1),
                width=3,
            )
        lid = [left - 0.04 * wide, top - 0.05 * height, left + 1.04 * wide, top + 0.01 * height]
        draw.rounded_rectangle(lid, radius=0.02 * height, fill=_shift(paint, -0.08))
    elif kind == "sign":
        top, deep = rng.uniform(0.22, 0.4) * height, rng.uniform(0.2, 0.28) * height
        left, right = rng.uniform(-0.2, 0.12) * width, rng.uniform(0.88, 1.2) * width
        for x in (left + 0.15 * width, right - 0.15 * width):
            draw.rectangle([x - 0.02 * width, top + deep, x + 0.02 * width, height], fill=(96, 98, 102))
        draw.rectangle([left, top, right, top + deep], fill=(232, 232, 226))
        edge = 0.016 * height
        draw.rectangle([left + edge, top + edge, right - edge, top + deep - edge], fill=paint)
        for k, share in ((0.3, 0.75), (0.6, 0.5)):
            row = top + k * deep
            draw.rectangle([left + 0.15 * width, row, left + share * width, row + 0.025 * height], fill=(238, 238, 232))
    elif kind == "car":
        _draw_car(draw, rng.uniform(-1.4, -0.4) * width, rng.uniform(1.0, 1.1) * height, 2.4 * width, paint)
    elif kind == "pole":
        x, w = rng.uniform(0.25, 0.65) * width, rng.uniform(0.1, 0.16) * width
        draw.rectangle([x, 0, x + w, height], fill=(104, 106, 110))
        draw.rectangle([x + 0.15 * w, 0, x + 0.4 * w, height], fill=(140, 142, 146))
        draw.rectangle([x + 0.8 * w, 0, x + w, height], fill=(78, 80, 84))
    elif kind == "bush":
        top = rng.uniform(0.55, 0.72) * height
        for _ in range(70):
            x, y, r = rng.uniform(-0.05, 1.05) * width, rng.uniform(top, height), rng.uniform(0.05, 0.1) * width
            green = _shift((70, 112, 54), rng.uniform(-0.12, 0.1) - 0.08 * (y - top) / height)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=green)
    elif kind == "bench":
        top = rng.uniform(0.5, 0.62) * height
        for k in range(3):
            row = top + k * 0.06 * height
            draw.rectangle([0, row, width, row + 0.042 * height], fill=_shift((150, 104, 62), 0.04 * (1 - k)))
        draw.rectangle([0, top + 0.22 * height, width, top + 0.26 * height], fill=(132, 90, 54))
        for x in (0.12, 0.82):
            draw.rectangle([x * width, top, (x + 0.06) * width, height], fill=(50, 50, 54))
    else:  # umbrella: hides head and hat
        cx, cy = rng.uniform(0.35, 0.65) * width, rng.uniform(0.2, 0.28) * height
        rx, ry = rng.uniform(0.45, 0.6) * width, 0.2 * height
        draw.rectangle([cx - 0.012 * width, cy - ry, cx + 0.012 * width, cy + 0.2 * height], fill=(50, 50, 54))
        draw.pieslice([cx - rx, cy - ry, cx + rx, cy + ry], 180, 360, fill=paint)
        for k in (-0.62, 0.0, 0.62):
            scallop = [cx + (k - 0.36) * rx, cy - 0.035 * height, cx + (k + 0.36) * rx, cy + 0.035 * height]
            draw.pieslice(scallop, 180, 360, fill=_shift(paint, -0.12))
            draw.line([(cx, cy - ry), (cx + k * rx, cy)], fill=_shift(paint, -0.1), width=2)


def expose(image: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Camera model at the final image size: blur, colour cast, random exposure, noise."""
    height = image.size[1]
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * height / 100 * float(rng.uniform(0.5, 1.5))))
    pixels = np.asarray(image, np.float32) / 255
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + camera.saturation * (pixels - grey)
    # Random exposure of the image (sun, clouds), on top of the camera's own.
    gain = (
        np.asarray(camera.gain, np.float32)
        * float(rng.uniform(0.85, 1.15))
        * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    )
    pixels = 0.5 + camera.contrast * (np.clip(pixels, 0, 1) ** camera.gamma * gain - 0.5)
    ramp = np.linspace(-0.06, 0.06, image.size[0], dtype=np.float32)[None, :, None] * np.sign(camera.light)
    noise = rng.normal(0, camera.noise, pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(255 * (pixels + ramp) + noise, 0, 255).astype(np.uint8))
