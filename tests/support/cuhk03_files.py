"""Generated files in the authors' layout of CUHK03."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

KINDS = {"cuhk03_detect": "detected", "cuhk03_label": "labeled"}
# Two camera pairs: person 2 of pair 1 trains, person 1 of each pair tests.
FILES = ("1_001_1_01.png", "1_001_2_06.png", "1_002_1_05.png", "1_002_2_10.png", "2_001_1_02.png", "2_001_2_07.png")


def pixels(file: str) -> np.ndarray:
    """A picture (5, 3, 3) that says which image it is, and in which order its rows and columns come."""
    pair, person, _, number = file.removesuffix(".png").split("_")
    image = np.zeros((5, 3, 3), np.uint8)
    image[..., 0] = int(pair) * 16 + int(number)
    image[..., 1] = int(person) % 256
    image[..., 2] = np.arange(15).reshape(5, 3)
    return image


def write_images(path: Path, kind: str, files: Sequence[str]) -> None:
    """`files` as the authors' cuhk-03.mat stores them, as MATLAB 7.3 does: columns first, cells as references."""
    path.parent.mkdir(parents=True, exist_ok=True)
    people: dict[int, dict[tuple[int, int], str]] = {}
    for file in files:
        pair, person, _, number = map(int, file.removesuffix(".png").split("_"))
        people.setdefault(pair, {})[number - 1, person - 1] = file
    with h5py.File(path, "w") as content:
        empty = content.create_dataset("#refs#/a", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = 1
        pairs = np.zeros((1, max(people)), h5py.ref_dtype)
        for pair, cells in people.items():
            refs = np.full((10, 1 + max(person for _, person in cells)), empty.ref, h5py.ref_dtype)
            for place, file in cells.items():
                refs[place] = content.create_dataset(f"#refs#/{file}", data=pixels(file).transpose(2, 1, 0)).ref
            pairs[0, pair - 1] = content.create_dataset(f"#refs#/pair{pair}", data=refs).ref
        content.create_dataset(kind, data=pairs)


def write_old(root: Path, *splits: Sequence[tuple[int, int]], kind: str = "detected") -> Path:
    """The authors' file with six images and, 20 times over, the (camera pair, person) that a split tests."""
    write_images(root / "cuhk03_release" / "cuhk-03.mat", kind, FILES)
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "a") as content:
        refs = np.zeros((1, 20), h5py.ref_dtype)
        for number in range(20):
            tested = np.array(splits[number % len(splits)], np.float64).T
            refs[0, number] = content.create_dataset(f"#refs#/split{number}", data=tested).ref
        content.create_dataset("testsets", data=refs)
    return root
