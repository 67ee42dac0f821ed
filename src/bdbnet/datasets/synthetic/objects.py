"""Synthetic objects for retrieval: cars, mugs, lamps, birds and fish; a class is a shape, its colours, a pattern."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FAMILIES = ("car", "mug", "lamp", "bird", "fish")
PATTERNS = ("plain", "stripes", "bands", "dots", "two-tone", "checks")
PALETTE = (
    (38, 40, 46), (232, 230, 222), (128, 132, 138), (194, 44, 46), (232, 124, 40), (238, 202, 60), (52, 142, 78),
    (112, 116, 60), (36, 142, 146), (116, 176, 224), (48, 88, 184), (116, 64, 152), (230, 136, 170), (118, 76, 46),
)  # fmt: skip
SUPERSAMPLING = 2
SIBLINGS = 4
"""Classes that share family, main colour and pattern."""

Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class ObjectClass:
    """What all images of one class share. `shape` are four proportions in 0..1, read by each family in its own way."""

    family: str
    shape: tuple[float, float, float, float]
    body: Color
    accent: Color
    trim: Color
    pattern: str


def object_class(seed: int, label: int) -> ObjectClass:
    """Appearance of class 1, 2, ...: siblings share family, main colour and pattern; the rest is each one's own."""
    group = (label - 1) // SIBLINGS
    shared = np.random.default_rng([seed, 41, group])
    own = np.random.default_rng([seed, 41, group, label])
    body = int(shared.integers(len(PALETTE)))
    pattern = PATTERNS[int(shared.integers(len(PATTERNS)))]
    accent, trim = (PALETTE[index] for index in own.permutation([k for k in range(len(PALETTE)) if k != body])[:2])
    a, b, c, d = (float(value) for value in own.uniform(0, 1, 4))
    return ObjectClass(FAMILIES[group % len(FAMILIES)], (a, b, c, d), PALETTE[body], accent, trim, pattern)


class Sheet:
    """A transparent drawing whose coordinates (-1..1, y down) pass through a similarity transform."""

    def __init__(self, side: tuple[int, int], center: Point, scale: float, angle: float) -> None:
        height, width = side
        self.image = Image.new("RGBA", (width, height))
        self.draw = ImageDraw.Draw(self.image)
        self.origin = (width * (0.5 + center[0]), height * (0.5 + center[1]))
        unit = scale * min(height, width) / 2
        self.matrix = unit * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self.unit = unit

    def place(self, points: Sequence[Point] | np.ndarray) -> list[Point]:
        """Points (n, 2) of the drawing, x and y, in pixels."""
        moved = np.asarray(points, float) @ self.matrix + self.origin
        return [(float(x), float(y)) for x, y in moved]

    def polygon(self, points: Sequence[Point] | np.ndarray, color: Color) -> None:
        """Fill an outline through points (n, 2)."""
        self.draw.polygon(self.place(points), fill=(*color, 255))

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, turn: float = 0.0) -> None:
        """Fill an ellipse of half axes `rx` and `ry`, turned by `turn`."""
        self.polygon(_ellipse(x, y, rx, ry, turn), color)

    def line(self, points: Sequence[Point] | np.ndarray, color: Color, width: float) -> None:
        """Draw a line through points (n, 2), of a width in the drawing's own unit."""
        placed = self.place(points)
        self.draw.line(placed, fill=(*color, 255), width=max(1, round(width * self.unit)), joint="curve")

    def patterned(self, points: Sequence[Point] | np.ndarray, kind: ObjectClass, count: float) -> None:
        """A filled outline through points (n, 2) that carries the pattern of the class; `count` is its density."""
        outline = self.place(points)
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        height, width = mask.height, mask.width
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) - np.array(self.origin)
        x, y = np.moveaxis(grid @ np.linalg.inv(self.matrix), -1, 0)
        second = _pattern(kind.pattern, x, y, count)
        color = np.where(second[..., None], np.array(kind.accent, np.uint8), np.array(kind.body, np.uint8))
        self.image.paste(Image.fromarray(color), (0, 0), mask)


def _pattern(name: str, x: np.ndarray, y: np.ndarray, count: float) -> np.ndarray:
    second = np.zeros(x.shape, bool)
    if name == "stripes":
        second = np.floor(x * count).astype(int) % 2 == 1
    elif name == "bands":
        second = np.floor(y * count).astype(int) % 2 == 1
    elif name == "checks":
        second = (np.floor(x * count).astype(int) + np.floor(y * count).astype(int)) % 2 == 1
    elif name == "dots":
        second = (x * count % 1 - 0.5) ** 2 + (y * count % 1 - 0.5) ** 2 < 0.09
    elif name == "two-tone":
        second = y > 0.1
    return second


def _ellipse(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, start: float = 0.0, end: float = 2 * np.pi
) -> np.ndarray:
    t = np.linspace(start, end, 40)
    u, v = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)


def _dim(color: Color, factor: float) -> Color:
    red, green, blue = (int(min(255, channel * factor)) for channel in color)
    return red, green, blue


def _car(sheet: Sheet, kind: ObjectClass) -> float:
    long, roof, cabin, wheel = kind.shape
    half, top = 0.72 + 0.2 * long, -0.28 - 0.3 * roof
    front, back = half * (0.15 + 0.5 * cabin), -half * (0.95 - 0.5 * (1 - cabin))
    glass: Color = (64, 84, 98)
    sheet.polygon([(back, 0), (back + 0.12, top), (front - 0.28, top), (front, 0)], _dim(kind.body, 0.9))
    sheet.polygon(
        [(back + 0.08, -0.04), (back + 0.17, top + 0.07), (front - 0.32, top + 0.07), (front - 0.1, -0.04)], glass
    )
    middle = (back + front) / 2 - 0.06
    sheet.polygon(
        [(middle - 0.03, 0), (middle - 0.03, top), (middle + 0.03, top), (middle + 0.03, 0)], _dim(kind.body, 0.9)
    )
    nose = half - 0.04
    sheet.patterned(
        [(-half, 0.3), (-half, 0.0), (-half + 0.06, -0.05), (nose - 0.1, -0.03), (half, 0.08), (half, 0.3)], kind, 6
    )
    sheet.polygon([(-half, 0.3), (half, 0.3), (half - 0.03, 0.37), (-half + 0.03, 0.37)], kind.trim)
    sheet.ellipse(half - 0.05, 0.13, 0.05, 0.06, (252, 240, 180))
    sheet.ellipse(-half + 0.03, 0.1, 0.03, 0.06, (200, 30, 30))
    radius = 0.15 + 0.07 * wheel
    for x in (-0.58 * half, 0.6 * half):
        sheet.ellipse(x, 0.36, radius, radius, (26, 26, 28))
        sheet.ellipse(x, 0.36, 0.55 * radius, 0.55 * radius, kind.trim)
        sheet.ellipse(x, 0.36, 0.2 * radius, 0.2 * radius, (60, 60, 62))
    return 0.36 + radius


def _mug(sheet: Sheet, kind: ObjectClass) -> float:
    tall, flare, handle, rim = kind.shape
    height, top, bottom = 0.45 + 0.35 * tall, 0.42 + 0.18 * flare, 0.5 - 0.2 * flare
    reach, grip = 0.28 + 0.14 * handle, 0.28 + 0.3 * handle
    ring = _ellipse(top - 0.06, -0.05, reach, grip * height / 0.6, 0.0, -np.pi / 2, np.pi / 2)
    sheet.line(ring, kind.trim, 0.13)
    lower = _ellipse(0, height, bottom, 0.1, 0.0, 0.0, np.pi)
    sheet.patterned(np.concatenate([[(-top, -height), (top, -height)], lower]), kind, 4.5)
    sheet.ellipse(0, -height, top, 0.12, kind.trim if rim > 0.5 else _dim(kind.body, 0.85))
    sheet.ellipse(0, -height + 0.01, top - 0.06, 0.085, (70, 44, 28))
    return height + 0.08


def _lamp(sheet: Sheet, kind: ObjectClass) -> float:
    wide, deep, stem, foot = kind.shape
    top, bottom, low = 0.16 + 0.26 * stem, 0.45 + 0.3 * wide, -0.25 + 0.35 * deep
    thick = 0.035 + 0.05 * foot
    sheet.polygon([(-thick, low), (thick, low), (thick, 0.82), (-thick, 0.82)], kind.trim)
    if stem > 0.5:
        for y in (0.25, 0.45, 0.65):
            sheet.ellipse(0, y + 0.06, 0.12 + 0.08 * foot, 0.1, _dim(kind.trim, 0.9))
    base = 0.28 + 0.25 * foot
    sheet.polygon(
        np.concatenate([_ellipse(0, 0.86, base, 0.12, 0.0, np.pi, 2 * np.pi), [(base, 0.9), (-base, 0.9)]]), kind.trim
    )
    lower = _ellipse(0, low, bottom, 0.07, 0.0, 0.0, np.pi)
    sheet.patterned(np.concatenate([[(-top, -0.85), (top, -0.85)], lower]), kind, 5)
    sheet.ellipse(0, -0.85, top, 0.045, _dim(kind.body, 0.75))
    return 0.9


def _bird(sheet: Sheet, kind: ObjectClass) -> float:
    long, round_, tail, crest = kind.shape
    rx, ry = 0.46 + 0.12 * long, 0.3 + 0.12 * round_
    for x in (-0.02, 0.14):
        sheet.line([(x, ry * 0.8), (x + 0.03, ry + 0.32), (x + 0.14, ry + 0.34)], (206, 136, 48), 0.045)
    end = -rx - 0.25 - 0.25 * tail
    sheet.polygon(
        [(-rx * 0.7, -0.08), (end, 0.06 + 0.2 * tail), (end + 0.06, 0.2 + 0.2 * tail), (-rx * 0.6, 0.16)],
        _dim(kind.accent, 0.85),
    )
    sheet.patterned(_ellipse(0, 0.08, rx, ry, -0.25), kind, 5)
    head = (rx * 0.72, -0.32 - 0.1 * round_)
    size = 0.2 + 0.06 * (1 - long)
    sheet.polygon([(head[0] + size * 0.7, head[1] - 0.09), (head[0] + size + 0.2 + 0.15 * crest, head[1] + 0.03),
                   (head[0] + size * 0.7, head[1] + 0.09)], (232, 168, 48))  # fmt: skip
    if crest > 0.45:
        sheet.polygon(
            [
                (head[0] - 0.1, head[1] - 0.1),
                (head[0] - 0.22, head[1] - 0.42 * crest - 0.1),
                (head[0] + 0.08, head[1] - 0.16),
            ],
            kind.trim,
        )
    sheet.ellipse(*head, size, size, kind.trim)
    sheet.ellipse(head[0] + 0.07, head[1] - 0.03, 0.05, 0.05, (250, 250, 246))
    sheet.ellipse(head[0] + 0.085, head[1] - 0.03, 0.028, 0.028, (20, 20, 20))
    sheet.ellipse(-0.1, 0.04, rx * 0.58, ry * 0.5, _dim(kind.accent, 0.9), 0.2)
    sheet.ellipse(-0.06, 0.0, rx * 0.46, ry * 0.36, kind.accent, 0.2)
    return ry + 0.34


def _fish(sheet: Sheet, kind: ObjectClass) -> float:
    long, high, fin, tail = kind.shape
    rx, ry = 0.56 + 0.16 * long, 0.26 + 0.2 * high
    spread = 0.25 + 0.25 * tail
    sheet.polygon([(-rx * 0.8, 0), (-rx - 0.3, -spread), (-rx - 0.16, 0), (-rx - 0.3, spread)], kind.trim)
    peak = -ry - 0.12 - 0.25 * fin
    sheet.polygon(
        [(-0.4 * rx, -ry * 0.75), (-0.25 * rx - 0.1 * fin, peak), (0.3 * rx, peak + 0.1), (0.5 * rx, -ry * 0.7)],
        kind.trim,
    )
    sheet.polygon([(-0.1, ry * 0.8), (-0.25, ry + 0.12 + 0.15 * fin), (0.16, ry * 0.9)], kind.trim)
    sheet.patterned(_ellipse(0, 0, rx, ry), kind, 5.5)
    sheet.polygon(
        np.concatenate(
            [
                _ellipse(rx * 0.45, 0, 0.1, ry * 0.8, 0.0, -np.pi / 2, np.pi / 2),
                _ellipse(rx * 0.42, 0, 0.06, ry * 0.8, 0.0, np.pi / 2, -np.pi / 2),
            ]
        ),
        _dim(kind.body, 0.7),
    )
    sheet.polygon([(0.05, 0.05), (-0.2, 0.0), (-0.22, 0.22)], kind.trim)
    sheet.ellipse(rx * 0.68, -0.25 * ry, 0.075, 0.075, (250, 250, 244))
    sheet.ellipse(rx * 0.7, -0.25 * ry, 0.04, 0.04, (20, 20, 24))
    return 0.85


# Each paints one family and returns the height (y) at which the object stands.
_PAINTERS: dict[str, Callable[[Sheet, ObjectClass], float]] = {
    "car": _car, "mug": _mug, "lamp": _lamp, "bird": _bird, "fish": _fish,
}  # fmt: skip


def _shaded(layer: Image.Image, light: float, unit: float) -> Image.Image:
    """Roundness and light: the blurred outline stands in for the height of the surface."""
    pixels = np.asarray(layer, np.float32)
    relief = np.asarray(layer.getchannel("A").filter(ImageFilter.GaussianBlur(unit * 0.09)), np.float32) / 255
    down, right = np.gradient(relief * unit * 0.09)
    shade = 0.7 + 0.32 * relief + 1.3 * (right * np.cos(light) + down * np.sin(light))
    pixels[..., :3] *= np.clip(shade, 0.4, 1.4)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A wall, a floor and a few things out of focus."""
    wall, floor = (_dim(PALETTE[int(rng.integers(len(PALETTE)))], 0.55) for _ in range(2))
    tint = float(rng.uniform(60, 130))
    image = Image.new("RGB", (width, height), tuple(int(channel * 0.6 + tint) for channel in wall))
    draw = ImageDraw.Draw(image)
    edge = rng.uniform(0.62, 0.8) * height
    for _ in range(int(rng.integers(2, 7))):
        color = PALETTE[int(rng.integers(len(PALETTE)))]
        x, y = rng.uniform(-0.1, 1) * width, rng.uniform(0, 0.7) * height
        w, h = rng.uniform(0.1, 0.45) * width, rng.uniform(0.1, 0.5) * height
        shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        shape([x, y, x + w, y + h], fill=_dim(color, 0.85))
    draw.rectangle([0, edge, width, height], fill=tuple(int(channel * 0.6 + tint * 0.8) for channel in floor))
    return image.filter(ImageFilter.GaussianBlur(height / 45))


def render_object(seed: int, label: int, index: int, size: tuple[int, int]) -> Image.Image:
    """Image `index` of class `label`, (height, width) pixels; a function of its arguments alone."""
    rng = np.random.default_rng([seed, 42, label, index])
    kind = object_class(seed, label)
    height, width = (SUPERSAMPLING * side for side in size)
    image = _background(rng, height, width)
    center = (float(rng.normal(0, 0.035)), float(rng.normal(0.03, 0.035)))
    sheet = Sheet((height, width), center, float(rng.uniform(0.68, 0.86)), float(rng.normal(0, 0.12)))
    ground = _PAINTERS[kind.family](sheet, kind)
    x, y = sheet.place([(0.0, ground)])[0]
    shadow = Image.new("L", (width, height))
    ImageDraw.Draw(shadow).ellipse(
        [x - 0.7 * sheet.unit, y - 0.12 * sheet.unit, x + 0.7 * sheet.unit, y + 0.14 * sheet.unit], fill=110
    )
    image.paste((20, 20, 24), (0, 0), shadow.filter(ImageFilter.GaussianBlur(0.08 * sheet.unit)))
    light = float(rng.uniform(0, 2 * np.pi))
    layer = _shaded(sheet.image, light, sheet.unit)
    image.paste(layer, (0, 0), layer)
    if rng.random() < 0.45:  # another object in front, at the edge
        other = object_class(seed, 1_000_000 + int(rng.integers(500)))
        side = float(rng.choice([-1, 1]))
        front = Sheet(
            (height, width),
            (side * float(rng.uniform(0.26, 0.44)), float(rng.uniform(0.2, 0.4))),
            0.6,
            float(rng.normal(0, 0.2)),
        )
        _PAINTERS[other.family](front, other)
        layer = _shaded(front.image, light, front.unit)
        image.paste(layer, (0, 0), layer)
    pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX), np.float32) / 255
    gain = rng.uniform(0.7, 1.2) * rng.uniform(0.82, 1.18, 3)
    pixels = 0.5 + float(rng.uniform(0.75, 1.15)) * (
        pixels ** float(rng.uniform(0.8, 1.25)) * gain.astype(np.float32) - 0.5
    )
    noise = rng.normal(0, rng.uniform(1, 6), pixels.shape)
    return Image.fromarray(np.clip(255 * pixels + noise, 0, 255).astype(np.uint8))
