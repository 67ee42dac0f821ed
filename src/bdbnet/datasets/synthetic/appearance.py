"""Clothing of the synthetic identities: groups that share the upper clothing and differ in weak cues."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

GROUP_SIZE = 4
"""Identities that share the upper clothing. One more member of every group serves as a distractor."""
WEAK_CUES = ("hair", "hat", "lower", "shoes", "bag")
"""Fields of `Appearance` in which the members of a group may differ, any two of them in at least two."""
MINIMUM_DIFFERENCES = 2

COLORS: dict[str, Color] = {
    "black": (32, 32, 36), "white": (236, 236, 230), "grey": (128, 130, 134), "red": (196, 38, 44),
    "orange": (232, 122, 32), "yellow": (238, 204, 52), "green": (44, 138, 72), "olive": (106, 110, 54),
    "teal": (28, 138, 142), "sky": (112, 176, 226), "blue": (42, 82, 184), "navy": (32, 42, 92),
    "purple": (112, 58, 150), "pink": (234, 132, 170), "brown": (110, 70, 40), "beige": (208, 184, 144),
}  # fmt: skip
SKINS = ((244, 208, 178), (226, 180, 142), (190, 138, 98), (140, 94, 62), (96, 62, 42))
HAIR_COLORS: dict[str, Color] = {
    "black": (30, 26, 26), "brown": (88, 56, 34), "blond": (216, 178, 96), "ginger": (168, 78, 34),
    "silver": (182, 182, 186),
}  # fmt: skip
# Clothes below the waist keep to one family within a group, so that they rarely tell its members apart by colour alone.
FAMILIES = {"dark": ("black", "navy", "grey"), "light": ("beige", "white", "sky"), "earth": ("brown", "olive", "beige")}
STRONG = ("black", "white", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown")


@dataclass(frozen=True)
class Appearance:
    """What stays the same over all images of one identity. Each cue is (kind, colour, ...)."""

    group: int
    upper: tuple[str, ...]  # sleeves, colour, pattern, second colour
    hair: tuple[str, ...]
    hat: tuple[str, ...]
    lower: tuple[str, ...]  # kind, colour, pattern
    shoes: tuple[str, ...]
    bag: tuple[str, ...]
    skin: int
    height: float  # 1 is the average
    girth: float


def differing_cues(first: Appearance, second: Appearance) -> list[str]:
    """Names of the weak cues in which two identities differ."""
    return [cue for cue in WEAK_CUES if getattr(first, cue) != getattr(second, cue)]


def _draw_cue(rng: np.random.Generator, cue: str, family: str) -> tuple[str, ...]:
    def pick(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    if cue == "hair":
        return pick(("short", "short", "long", "ponytail", "bun")), pick(tuple(HAIR_COLORS))
    if cue == "hat":
        kind = pick(("none", "none", "cap", "beanie", "brimmed"))
        return kind, "" if kind == "none" else pick(STRONG)
    if cue == "lower":
        pattern = pick(("plain", "plain", "side stripe", "checks", "bands"))
        return pick(("trousers", "trousers", "shorts", "skirt")), pick(FAMILIES[family]), pattern
    if cue == "shoes":
        return pick(("sneakers", "sneakers", "boots")), pick(STRONG)
    kind = pick(("none", "backpack", "shoulder bag", "handbag"))
    return kind, "" if kind == "none" else pick(STRONG)


@lru_cache(maxsize=1024)
def group_appearances(seed: int, group: int) -> tuple[Appearance, ...]:
    """The members of one group, the distractor last: one upper clothing, at least two weak cues between any two."""
    rng = np.random.default_rng([seed, 11, group])
    family = tuple(FAMILIES)[int(rng.integers(len(FAMILIES)))]
    color, accent = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
    sleeves = str(rng.choice(["short", "long"]))
    pattern = str(rng.choice(["plain", "plain", "stripes", "checks", "logo", "block"]))
    skin = int(rng.integers(len(SKINS)))
    common = {cue: _draw_cue(rng, cue, family) for cue in WEAK_CUES}
    members: list[Appearance] = []
    while len(members) < GROUP_SIZE + 1:
        changed = [str(cue) for cue in rng.choice(WEAK_CUES, size=3, replace=False)]
        height, girth = float(rng.uniform(0.93, 1.05)), float(rng.uniform(0.88, 1.18))
        cues = common | {cue: _draw_cue(rng, cue, family) for cue in changed}
        member = Appearance(group, (sleeves, color, pattern, accent), **cues, skin=skin, height=height, girth=girth)
        if all(len(differing_cues(member, other)) >= MINIMUM_DIFFERENCES for other in members):
            members.append(member)
    return tuple(members)


def identity_appearance(seed: int, identity: int) -> Appearance:
    """Appearance of identity 1, 2, ...; each run of four identities is one group.

    >>> one, two = identity_appearance(0, 1), identity_appearance(0, 2)
    >>> one.upper == two.upper, len(differing_cues(one, two)) >= 2
    (True, True)
    """
    return group_appearances(seed, (identity - 1) // GROUP_SIZE)[(identity - 1) % GROUP_SIZE]
