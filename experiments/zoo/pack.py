"""Pack a trained network into the folder of the zoo that travels with bdbnet: float16 weights, no paths of the machine.

    python experiments/zoo/pack.py outputs/train/zoo/last.ckpt bdb_osnet_x0_25_synthetic
    python experiments/zoo/pack.py FOLDER bdb_osnet_x0_25_synthetic RESULT

The second adds to a packed FOLDER what was measured of it: RESULT is the result.json of bdbnet.evaluate.
Prints size and SHA-256 for the entry in `bdbnet.zoo_entries`.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import bdbnet.models.zoo as zoo
from bdbnet.evaluation.conversion import convert
from bdbnet.evaluation.load import Wanted
from bdbnet.evaluation.saved import RECORD, WEIGHTS

PLACES = {"data_root": "data", "output_root": "outputs", "cache_root": "data/cache"}


def portable(value: Any, key: str = "") -> Any:
    """A configuration whose places are relative."""
    if isinstance(value, dict):
        return {name: portable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if key in PLACES:
        return PLACES[key]
    if key == "root" and value is not None:
        return f"data/{Path(value).name}"
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main(source: str, name: str, result: str | None = None) -> None:
    folder = Path(zoo.__file__).parent / name
    terms = zoo.ENTRIES[name].terms
    with tempfile.TemporaryDirectory() as place:
        # By way of a folder of the network's name, which is the card's title.
        convert(source, Path(place) / name, Wanted(), half=True)
        convert(
            str(Path(place) / name), folder, Wanted(), half=True, overwrite=folder.exists(), result=result, terms=terms
        )
    record = portable(json.loads((folder / RECORD).read_text()))
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    content = (folder / WEIGHTS).read_bytes()
    print(f"{folder}: size={len(content):_}, sha256={hashlib.sha256(content).hexdigest()!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
