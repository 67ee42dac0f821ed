"""Embeddings that any program made, with their labels and cameras: which array is what, and whether they fit together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

#: Role of an array -> the names that it is known by, first the one of the documentation.
KINDS: Mapping[str, tuple[str, ...]] = {
    "embeddings": (
        "embeddings", "embedding", "embs", "emb", "features", "feature", "feats", "feat", "f", "vectors", "vector", "x",
    ),
    "labels": (
        "labels", "label", "pids", "pid", "person_ids", "person_id", "identities", "identity", "ids", "id", "targets", "target",
        "classes", "class", "y",
    ),
    "cameras": ("cameras", "camera", "camids", "camid", "cams", "cam", "camera_ids", "camera_id", "cam_ids", "cam_id"),
    "paths": (
        "paths", "path", "img_paths", "img_path", "image_paths", "image_path", "impaths", "impath", "files", "file", "filenames",
        "filename", "file_names", "file_name", "names", "name",
    ),
    "is_query": ("is_query", "isquery"),
    "is_gallery": ("is_gallery", "isgallery"),
    "split": ("split", "splits", "role", "roles", "set"),
}  # fmt: skip
_SIDES = {"query": ("query", "queries", "probe", "q"), "gallery": ("gallery", "galleries", "reference", "g")}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
_SIDE_OF = {name: side for side, names in _SIDES.items() for name in names}
_OF_WHOLE = ("is_query", "is_gallery", "split")  # they divide the images themselves
_SHOWN = 12

NAMES = (
    "query_embeddings (Q, D), query_labels (Q,), query_cameras (Q,) and the same with gallery_; or embeddings, labels, cameras and "
    "is_query, a row for each image"
)


class FeatureError(ValueError):
    """Embeddings that can't be evaluated; the message names file and array."""


class Role(NamedTuple):
    """What an array is: of which side, "" for both, and one of `KINDS`."""

    side: str
    kind: str


@dataclass(frozen=True)
class Side:
    """Embeddings of one side, with what is known of them.

    Attributes:
        embeddings: (N, D) float32 or float64.
        known: `labels`, `cameras`, `paths`, `is_query`, `is_gallery`, `split` (N,) of any kind, as far as the source has them.
        source: file or folder, for messages.
        names: role -> name of the array in the source.
        others: names of the source's arrays that are of no use here.
    """

    embeddings: np.ndarray
    known: Mapping[str, np.ndarray]
    source: str
    names: Mapping[str, str]
    others: Sequence[str] = ()

    def name_of(self, kind: str) -> str:
        """An array as messages name it."""
        return f"{self.source}: {self.names.get(kind, kind)}"

    def unused(self) -> str:
        """The arrays of no use, for the end of a message: one of them may be misspelt. "" where there are none."""
        more = ", ..." if len(self.others) > _SHOWN else ""
        return f". The file also holds {', '.join(self.others[:_SHOWN])}{more}" if self.others else ""


def role_of(name: str) -> Role | None:
    """What an array of this name is; None where that is not known.

    >>> role_of("gallery_f"), role_of("q_camids"), role_of("qf")
    (Role(side='gallery', kind='embeddings'), Role(side='query', kind='cameras'), Role(side='query', kind='embeddings'))
    >>> role_of("query.features"), role_of("labels"), role_of("logits")
    (Role(side='query', kind='embeddings'), Role(side='', kind='labels'), None)
    """
    parts = [part for part in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if part]
    whole = "_".join(parts)
    if whole in _KIND_OF:
        return Role("", _KIND_OF[whole])
    for side, rest in ((parts[0], parts[1:]), (parts[-1], parts[:-1])) if len(parts) > 1 else ():
        if side in _SIDE_OF and "_".join(rest) in _KIND_OF:
            return Role(_SIDE_OF[side], _KIND_OF["_".join(rest)])
    if len(parts) == 1 and whole[0] in "qg" and whole[1:] in _KIND_OF:
        return Role(_SIDE_OF[whole[0]], _KIND_OF[whole[1:]])
    return None


def sides_of(arrays: Mapping[str, Any], source: str) -> tuple[dict[str, Side], list[str]]:
    """The sides `query` and `gallery`, or "" for all images together, of named arrays, and notes for the user.

    Raises:
        FeatureError: no array, or more than one, may be the embeddings; an array of another kind or length than its role needs.
    """
    roles: dict[Role, str] = {}
    left_out: list[str] = []
    for name in arrays:
        role = Role("", "embeddings") if name == "" else role_of(name)
        if role is None:
            left_out.append(name)
        elif role in roles:
            raise FeatureError(
                f"{source}: {roles[role]} and {name} may both be the {_shown(role)}: remove or rename one"
            )
        else:
            roles[role] = name
    found = [side for side in ("", "query", "gallery") if Role(side, "embeddings") in roles]
    if not found:
        there = ", ".join([*arrays][:_SHOWN]) or "nothing"
        raise FeatureError(f"{source}: holds no embeddings, but {there}. Name the arrays {NAMES}")
    if "" in found and len(found) > 1:
        raise FeatureError(
            f"{source}: {roles[Role('', 'embeddings')]} are embeddings of all images, "
            f"{roles[Role(found[1], 'embeddings')]} of one side: keep either"
        )
    sides = {side: _side(side, arrays, roles, source) for side in found}
    used = {name for role, name in roles.items() if role.side in found}
    left_out += [name for name in roles.values() if name not in used]
    sides = {side: replace(of, others=tuple(left_out)) for side, of in sides.items()}
    return sides, _notes(roles, used, left_out)


def _notes(roles: Mapping[Role, str], used: set[str], left_out: Sequence[str]) -> list[str]:
    read = [
        f"{name} as {_shown(role)}" for role, name in roles.items() if name in used and name not in ("", _plainly(role))
    ]
    notes = [f"read {', '.join(read)}"] if read else []
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        notes.append(f"left out {', '.join(left_out[:_SHOWN])}{more}")
    return notes


def _shown(role: Role) -> str:
    return f"{role.side} {role.kind}".strip()


def _plainly(role: Role) -> str:
    """The name that the documentation gives to a role."""
    return f"{role.side}_{role.kind}".strip("_")


def _side(side: str, arrays: Mapping[str, Any], roles: Mapping[Role, str], source: str) -> Side:
    names = {role.kind: name or "the array" for role, name in roles.items() if role.side == side}
    if side:
        names = {kind: name for kind, name in names.items() if kind not in _OF_WHOLE}
    embeddings = check_embeddings(arrays[roles[Role(side, "embeddings")]], f"{source}: {names['embeddings']}")
    known = {}
    for kind, name in names.items():
        if kind == "embeddings":
            continue
        values = np.asarray(arrays[name])
        values = values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values  # MATLAB knows no other
        if values.ndim != 1:
            raise FeatureError(f"{source}: {name} has shape {values.shape}; expected one value for each image")
        if len(values) != len(embeddings):
            raise FeatureError(
                f"{source}: {name} has {len(values):,} values, but {names['embeddings']} has {len(embeddings):,} rows: both "
                "must be of the same images"
            )
        known[kind] = values
    return Side(embeddings, known, source, names)


def check_embeddings(values: Any, name: str) -> np.ndarray:
    """Embeddings (N, D) float32, or float64 where they are.  Raises FeatureError that names them for anything else."""
    array = np.asarray(values)
    if array.dtype.kind == "O":
        raise FeatureError(
            f"{name} holds rows of different lengths or other objects; expected numbers (images, dimensions)"
        )
    if array.ndim != 2:
        raise FeatureError(f"{name} has shape {array.shape}; expected (images, dimensions)")
    if array.dtype.kind != "f":
        raise FeatureError(f"{name} is {array.dtype}; expected floating-point numbers, float32 for example")
    if 0 in array.shape:
        raise FeatureError(f"{name} is empty: shape {array.shape}")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise FeatureError(
            f"{name}, row {bad[0] + 1}: holds NaN or infinity"
            + (f" (and so do {len(bad) - 1:,} more rows)" if len(bad) > 1 else "")
        )
    return array
