"""Painter of synthetic people: articulated figures in the clothing of an identity.

A figure is a small three-dimensional skeleton, turned, projected and painted limb by limb from far to near. A limb is
a tube with rounded ends whose surface carries a texture, so that a logo stays on the chest and a backpack on the back.
Lengths are in body heights: x to the person's left, y up from the ground, z forward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bdbnet.datasets.synthetic.appearance import COLORS, HAIR_COLORS, SKINS, Appearance, Color

Vector = np.ndarray
"""A point (x, y, z) of the body."""
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(position along the tube 0..1, angle around the body, 0 = front) -> colours (h, w, 3)."""
Paint = Color | Texture


@dataclass(frozen=True)
class Pose:
    """How one image shows the body. Angles in radians; yaw 0 faces the camera."""

    yaw: float
    pitch: float
    stride: float
    phase: float
    elbow: float
    cover: str = "none"  # "coat": a plain coat over the upper clothing; "parcel": a box carried in front of the chest
    cover_color: str = "grey"


class Painter:
    """Paints shaded tubes on a float canvas (H, W, 3) in 0..255, through one projection."""

    def __init__(
        self, canvas: np.ndarray, foot: tuple[float, float], scale: float, pose: Pose, light: float, girth: float = 1.0
    ) -> None:
        self.canvas, self.foot, self.scale, self.pose, self.light, self.girth = canvas, foot, scale, pose, light, girth
        self.cos, self.sin = float(np.cos(pose.yaw)), float(np.sin(pose.yaw))
        self.parts: list[tuple[float, Callable[[], None]]] = []

    def project(self, point: Vector) -> tuple[float, float, float]:
        """Image x, y in pixels and the depth (larger is nearer)."""
        x, y, z = float(point[0]) * self.girth, float(point[1]), float(point[2])
        across, depth = x * self.cos + z * self.sin, z * self.cos - x * self.sin
        pitch = self.pose.pitch
        row = self.foot[1] - self.scale * (y * float(np.cos(pitch)) - depth * float(np.sin(pitch)))
        return self.foot[0] + self.scale * across, row, depth

    def width(self, side: float, front: float) -> float:
        """Half the visible width in body heights of an elliptic cross-section."""
        return self.girth * float(np.hypot(side * self.cos, front * self.sin))

    def add(
        self, start: Vector, end: Vector, radii: tuple[float, ...], paint: Paint,
        *, cap: float = 1.0, bias: float = 0.0,
    ) -> None:  # fmt: skip
        """Queue a tube; `radii` (body heights) are spread evenly along it, `cap` flattens the rounded ends."""
        (x0, y0, near0), (x1, y1, near1) = self.project(start), self.project(end)
        self.parts.append(
            ((near0 + near1) / 2 + bias, lambda: self._tube(x0, y0, x1, y1, np.asarray(radii) * self.scale, paint, cap))
        )

    def paint(self) -> None:
        """Draw what was queued, the farthest first."""
        for _, draw in sorted(self.parts, key=lambda part: part[0]):
            draw()
        self.parts.clear()

    def _tube(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        radii: np.ndarray,
        paint: Paint,
        cap: float,
    ) -> None:
        height, width = self.canvas.shape[:2]
        reach = float(radii.max()) + 1.5
        left, right = max(0, int(min(x0, x1) - reach)), min(width, int(max(x0, x1) + reach) + 1)
        top, bottom = max(0, int(min(y0, y1) - reach)), min(height, int(max(y0, y1) + reach) + 1)
        if left >= right or top >= bottom:
            return
        length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-3)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        dx = np.arange(left, right, dtype=np.float32)[None, :] - x0
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y0
        along = dx * ux + dy * uy
        across = dx * uy - dy * ux  # positive to the right of a tube that points down
        inside = np.clip(along, 0, length)
        position = inside / length
        if len(radii) == 2:
            half = radii[0] + (radii[1] - radii[0]) * position
        else:
            half = np.interp(position, np.linspace(0, 1, len(radii)), radii)
        over = (along - inside) / cap
        alpha = np.clip(half + 0.5 - np.sqrt(across * across + over * over), 0, 1)
        # Light comes from a side of the image, independent of the direction of the tube.
        normal = np.clip(across / half, -1, 1) * (1 if uy >= 0 else -1)
        facing = np.sqrt(1 - normal * normal)
        shade = 0.5 + 0.5 * np.clip(normal * self.light + facing * 0.85, 0, 1.2)
        if callable(paint):
            angle = (np.arcsin(normal) - self.pose.yaw + np.pi) % (2 * np.pi) - np.pi
            color = paint(position, angle)
        else:
            color = np.asarray(paint, dtype=np.float32)
        region = self.canvas[top:bottom, left:right]
        region += alpha[..., None] * (shade[..., None] * color - region)


def _float(color: Color) -> np.ndarray:
    return np.asarray(color, np.float32)


def _cloth(color: str, pattern: str, accent: str) -> Paint:
    """Texture of a garment in tube coordinates, so that it bends with the limb."""
    main, second = _float(COLORS[color]), _float(COLORS[accent])

    def blend(mask: np.ndarray) -> np.ndarray:
        return np.where(mask[..., None], second, main)

    if pattern == "stripes":
        return lambda t, angle: blend((t * 9).astype(int) % 2 == 1)
    if pattern == "checks":
        return lambda t, angle: blend(((t * 8).astype(int) + np.floor(angle * 2.6).astype(int)) % 2 == 1)
    if pattern == "bands":
        return lambda t, angle: blend((t * 5).astype(int) % 2 == 1)
    if pattern == "logo":
        return lambda t, angle: blend((np.abs(angle) / 0.55) ** 2 + ((t - 0.36) / 0.15) ** 2 < 1)
    if pattern == "block":
        return lambda t, angle: blend(t < 0.42)
    if pattern == "side stripe":
        return lambda t, angle: blend(np.abs(np.abs(angle) - np.pi / 2) < 0.42)
    return COLORS[color]


def _split(upper: Paint, lower: Paint, at: float) -> Texture:
    """One paint before a position along the tube, another after it."""

    def texture(t: np.ndarray, angle: np.ndarray) -> np.ndarray:
        first = upper(t, angle) if callable(upper) else _float(upper)
        second = lower(t, angle) if callable(lower) else _float(lower)
        return np.where((t < at)[..., None], first, second)

    return texture


def _face(skin: Color, hair: Color) -> Texture:
    skin_color, hair_color = _float(skin), _float(hair)

    def texture(t: np.ndarray, angle: np.ndarray) -> np.ndarray:
        # t runs from the crown down to the chin.
        face = (np.abs(angle) < 1.15 - 0.25 * (t < 0.25)) & (t > 0.06)
        eyes = (np.abs(np.abs(angle) - 0.38) < 0.14) & (np.abs(t - 0.36) < 0.1)
        mouth = (np.abs(angle) < 0.3) & (np.abs(t - 0.93) < 0.06)
        color = np.where(face[..., None], skin_color, hair_color)
        return np.where((eyes | mouth)[..., None], skin_color * np.array((0.45, 0.35, 0.35), np.float32), color)

    return texture


def _darker(color: Color) -> Color:
    red, green, blue = (int(0.7 * channel) for channel in color)
    return red, green, blue


def _at(x: float, y: float, z: float = 0.0) -> Vector:
    return np.array([x, y, z])


def _swing(joint: Vector, length: float, angle: float, out: float = 0.0) -> Vector:
    """End of a limb that hangs from a joint, swung forward by `angle` and sideways by `out` (radians)."""
    return joint + length * np.array([np.sin(out), -np.cos(angle) * np.cos(out), np.sin(angle)])


def paint_figure(painter: Painter, who: Appearance) -> None:
    """Paint one person; the painter's projection gives place, size and pose."""
    pose = painter.pose
    skin = SKINS[who.skin]
    sleeves, color, pattern, accent = who.upper
    if pose.cover == "coat":
        sleeves, color, pattern = "long", pose.cover_color, "plain"
    upper = _cloth(color, pattern, accent)
    # A logo is on the chest alone, a block of colour ends above the elbow.
    sleeve = _cloth(color, "plain" if pattern == "logo" else pattern, accent)
    cuff = _cloth(color, "plain" if pattern in ("logo", "block") else pattern, accent)
    arm = (_split(sleeve, skin, 0.62), skin) if sleeves == "short" else (sleeve, cuff)
    for side in (-1, 1):
        _leg(painter, who, side, side * pose.stride * float(np.sin(pose.phase)), skin)
        _arm(painter, who, side, arm, skin)
    lower_kind, lower_color, lower_pattern = who.lower
    lower = _cloth(lower_color, lower_pattern, _contrast(lower_color))
    w = painter.width
    painter.add(_at(0, 0.55), _at(0, 0.49), (w(0.088, 0.07), w(0.098, 0.078)), lower, cap=0.4, bias=0.01)
    if lower_kind == "skirt":
        widths = tuple(w(*size) for size in ((0.085, 0.072), (0.112, 0.098), (0.132, 0.12)))
        painter.add(_at(0, 0.55), _at(0, 0.3), widths, lower, cap=0.15, bias=0.055)
    hem = 0.36 if pose.cover == "coat" else 0.5
    sizes = [(0.104, 0.05), (0.122, 0.072), (0.108, 0.076), (0.096, 0.074), (0.106, 0.082)]
    if pose.cover == "coat":
        sizes.append((0.128, 0.105))
    painter.add(_at(0, 0.803), _at(0, hem), tuple(w(*size) for size in sizes), upper, cap=0.34, bias=0.06)
    painter.add(_at(0, 0.88, 0.005), _at(0, 0.825), (0.034, 0.04), skin, bias=0.03)
    _head(painter, who, skin)
    _bag(painter, who)
    if pose.cover == "parcel":
        painter.add(_at(0, 0.73, 0.16), _at(0, 0.58, 0.16), (w(0.12, 0.08),) * 2, _parcel, cap=0.08, bias=0.05)
    painter.paint()


def _contrast(color: str) -> str:
    return "white" if sum(COLORS[color]) < 330 else "navy"


def _parcel(t: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.where((np.abs(angle) < 0.2)[..., None], _float((224, 206, 160)), _float((176, 132, 84)))


def _leg(painter: Painter, who: Appearance, side: int, swing: float, skin: Color) -> None:
    kind, color, pattern = who.lower
    cloth = _cloth(color, pattern, _contrast(color))
    hip = _at(side * 0.05, 0.5)
    # The knee bends most while the leg is brought forward, and never the wrong way.
    bend = 0.08 + max(
        0.0, painter.pose.stride * (0.9 * float(np.cos(painter.pose.phase)) * side - 0.25 * np.sign(swing))
    )
    knee = _swing(hip, 0.235, swing)
    ankle = _swing(knee, 0.22, swing - bend)
    bare = kind in ("shorts", "skirt")
    painter.add(hip, knee, (0.06, 0.046), _split(cloth, skin, 0.92) if bare else cloth)
    boots = who.shoes[0] == "boots"
    shoe = COLORS[who.shoes[1]]
    shin = skin if bare else cloth
    slim = 0.031 if bare else 0.036
    painter.add(knee, ankle, (0.043 if bare else 0.046, slim), _split(shin, shoe, 0.5) if boots else shin)
    tilt = 0.5 * (swing - bend)
    heel = ankle + np.array([0, -0.022 - 0.02 * np.sin(tilt), -0.022])
    toe = heel + 0.105 * np.array([side * 0.25, np.sin(tilt) * 0.6, np.cos(tilt)])
    sole = (48, 40, 36) if boots or who.shoes[1] == "white" else (240, 240, 236)
    drop = _at(0, -0.014)
    painter.add(heel + drop, toe + drop, (0.027, 0.024), sole, bias=0.012)
    painter.add(heel, toe, (0.033, 0.025), shoe, bias=0.015)


def _arm(painter: Painter, who: Appearance, side: int, paints: tuple[Paint, Paint], skin: Color) -> None:
    pose = painter.pose
    swing = -side * 0.75 * pose.stride * float(np.sin(pose.phase))
    bend = pose.elbow
    out = 0.12
    if pose.cover == "parcel":
        swing, bend, out = 0.35, 1.25, 0.0
    elif who.bag[0] == "handbag" and side == 1:
        swing, bend = 0.3 * swing, 0.1
    shoulder = _at(side * 0.108, 0.785)
    elbow = _swing(shoulder, 0.165, swing, side * out)
    wrist = _swing(elbow, 0.145, swing + bend, side * (out - 0.1))
    painter.add(shoulder, elbow, (0.041, 0.033), paints[0], bias=0.065)
    painter.add(elbow, wrist, (0.032, 0.024), paints[1], bias=0.067)
    hand = _swing(wrist, 0.025, swing + bend)
    painter.add(wrist, hand, (0.021, 0.023), skin, bias=0.068)
    if who.bag[0] == "handbag" and side == 1 and pose.cover != "parcel":
        color = COLORS[who.bag[1]]
        w = painter.width
        for offset in (-0.035, 0.035):
            painter.add(hand, hand + np.array([0.01, -0.075, offset]), (0.006, 0.006), color, bias=0.07)
        painter.add(
            hand + _at(0.01, -0.085),
            hand + _at(0.01, -0.155),
            (w(0.035, 0.062), w(0.045, 0.08)),
            color,
            cap=0.25,
            bias=0.08,
        )


def _head(painter: Painter, who: Appearance, skin: Color) -> None:
    style, hair_name = who.hair
    hair = HAIR_COLORS[hair_name]
    w = painter.width
    crown, chin = _at(0, 0.955, 0.012), _at(0, 0.898, 0.018)
    if style == "long":
        painter.add(
            _at(0, 0.95, -0.02),
            _at(0, 0.79, -0.045),
            (w(0.062, 0.05), w(0.07, 0.05), w(0.075, 0.03)),
            hair,
            cap=0.5,
            bias=0.04,
        )
    elif style == "ponytail":
        painter.add(_at(0, 0.95, -0.06), _at(0, 0.83, -0.1), (0.024, 0.028, 0.014), hair, bias=0.04)
    elif style == "bun":
        painter.add(_at(0, 0.985, -0.05), _at(0, 0.995, -0.05), (0.034, 0.034), hair, bias=0.03)
    painter.add(_at(0, 0.962, -0.004), _at(0, 0.925, -0.012), (w(0.058, 0.066), w(0.056, 0.062)), hair, bias=0.04)
    painter.add(crown, chin, (w(0.053, 0.056), w(0.054, 0.057), w(0.041, 0.046)), _face(skin, hair), cap=0.9, bias=0.05)
    kind, name = who.hat
    if kind == "none":
        return
    color = COLORS[name]
    dark = _darker(color)
    crown_width = w(0.063, 0.07)
    painter.add(_at(0, 1.0, 0.0), _at(0, 0.966, 0.0), (crown_width * 0.86, crown_width), color, cap=0.75, bias=0.07)
    if kind == "cap":
        painter.add(
            _at(0, 0.975, 0.055), _at(0, 0.966, 0.105), (w(0.056, 0.016), w(0.046, 0.014)), dark, cap=0.3, bias=0.06
        )
    elif kind == "beanie":
        painter.add(_at(0, 0.972), _at(0, 0.958), (crown_width * 1.06,) * 2, dark, cap=0.2, bias=0.08)
        painter.add(_at(0, 1.048), _at(0, 1.05), (0.022, 0.022), dark, bias=0.08)
    else:
        painter.add(_at(0, 0.967), _at(0, 0.962), (w(0.115, 0.115),) * 2, dark, cap=0.16, bias=0.08)


def _bag(painter: Painter, who: Appearance) -> None:
    kind, name = who.bag
    w = painter.width
    if kind == "backpack":
        color = COLORS[name]
        dark = _darker(color)
        body = _split(color, dark, 0.58)
        widths = (w(0.075, 0.04), w(0.098, 0.058), w(0.1, 0.064))
        painter.add(_at(0, 0.79, -0.11), _at(0, 0.575, -0.115), widths, body, cap=0.3, bias=-0.02)
        for side in (-1, 1):
            if np.cos(painter.pose.yaw + 0.8 * side) > 0.3:  # this side of the chest is in view
                painter.add(
                    _at(side * 0.066, 0.815, 0.045), _at(side * 0.074, 0.64, 0.055), (0.014, 0.013), color, bias=0.07
                )
    elif kind == "shoulder bag":
        color = COLORS[name]
        layer = 0.065 if painter.cos >= 0 else -0.065
        # The strap is drawn on the side that faces the camera.
        painter.add(_at(0.075, 0.825, layer * 0.6), _at(-0.11, 0.53, layer), (0.011, 0.011), color, bias=0.06)
        painter.add(
            _at(-0.14, 0.54, -0.01),
            _at(-0.145, 0.44, -0.01),
            (w(0.04, 0.085), w(0.045, 0.095)),
            color,
            cap=0.25,
            bias=0.03,
        )
