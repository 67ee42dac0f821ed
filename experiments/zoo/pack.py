"""Pack a trained network into the folder of the zoo that travels with bdbnet: float16 weights, no paths of the machine.

    python experiments/zoo/pack.py outputs/train/zoo/last.ckpt bdb_osnet_x0_25_synthetic

Prints size and SHA-256 for its entry in `bdbnet.models.zoo`.
"""

import hashlib
import json
import sys
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


def main(checkpoint: str, name: str) -> None:
    folder = Path(zoo.__file__).parent / name
    convert(checkpoint, folder, Wanted(), half=True, overwrite=folder.exists())
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(portable(record), indent=2) + "\n")
    content = (folder / WEIGHTS).read_bytes()
    print(f"{folder}: size={len(content):_}, sha256={hashlib.sha256(content).hexdigest()!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
