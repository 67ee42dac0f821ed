"""Files of embeddings: `.npz`, `.npy`, `.pt`, `.safetensors`, Parquet and `.mat`, as named arrays. Nothing in them is run."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bdbnet.evaluation.features import FeatureError
from bdbnet.missing import no_features
from bdbnet.models import CheckpointError, read_checkpoint
from bdbnet.regular_files import require_regular

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".pth.tar", ".safetensors", ".parquet", ".pq", ".mat")

_NUMBERED = re.compile(
    r"(?P<stem>[A-Za-z][A-Za-z_.]*?)[_.]?(?P<number>\d+)"
)  # a column for each dimension: emb_0, f12, x.3
_AGAIN = "write the file again"


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Every array of a file by its name; a file of one array without a name has it under "".

    Entries of nested mappings are named by their way down: `query.features`. A Parquet table has a row per image; columns such as
    `emb_0`, `emb_1`, ... together are one array `emb`.

    Raises:
        FeatureError: missing, damaged, of another kind, or with objects that code would have to make.
    """
    file = Path(path).expanduser()
    try:
        require_regular(file)
        if file.is_dir():
            raise FeatureError(f"{file}: a folder without meta.json, so none that bdbnet.embed made")
        if not file.is_file():
            raise FeatureError(no_features(file))
        if file.stat().st_size == 0:
            raise FeatureError(f"{file}: the file is empty; {_AGAIN}")
        suffix = file.suffix.lower()
        if suffix in (".npz", ".npy"):
            return _numpy(file)
        if suffix in (".pt", ".pth") or file.name.lower().endswith(".pth.tar"):
            return _torch(file)
        if suffix == ".safetensors":
            return {name: _array(tensor) for name, tensor in safetensors.torch.load_file(file).items()}
        if suffix in (".parquet", ".pq"):
            return _parquet(file)
        if suffix == ".mat":
            return _matlab(file)
    except (FeatureError, CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise FeatureError(f"{file}: could not be read ({error.strerror or error}); {_AGAIN}") from error
    except SafetensorError as error:
        raise FeatureError(f"{file}: damaged or no safetensors file ({error}); {_AGAIN}") from error
    except Exception as error:  # a damaged file can fail anywhere in a library's reader
        raise FeatureError(f"{file}: damaged or no {file.suffix} file ({_first_line(error)}); {_AGAIN}") from error
    raise FeatureError(f"{file}: {file.suffix or 'no suffix'} is not known; give one of {', '.join(SUFFIXES)}")


def _numpy(file: Path) -> dict[str, Any]:
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        with content:
            return {name: content[name] for name in content.files}
    except (ValueError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise FeatureError(
                f"{file}: refused: it holds Python objects, and loading them would run code from the file. Save numbers and texts "
                "alone, such as labels as np.array(labels, dtype=np.int64), paths as np.array(paths, dtype=str)"
            ) from error
        raise


def _torch(file: Path) -> dict[str, Any]:
    content = read_checkpoint(file)
    if isinstance(content, Tensor | np.ndarray):
        return {"": _array(content)}
    if not isinstance(content, Mapping):
        raise FeatureError(
            f"{file}: holds a {type(content).__name__}; expected a tensor or a dictionary, as "
            "torch.save({'query_embeddings': ..., 'query_labels': ...}, path) writes it"
        )
    return _flat(content, "")


def _flat(content: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, Tensor | np.ndarray):
            found[name] = _array(value)
        elif isinstance(value, list | tuple) and value:
            found[name] = _listed(value)
    return found


def _listed(values: Any) -> np.ndarray:
    if all(isinstance(value, Tensor) for value in values):
        same = len({tuple(value.shape) for value in values}) == 1
        return _array(torch.stack(list(values))) if same else np.array([None] * len(values), object)
    if all(isinstance(value, str) for value in values):
        return np.array(values, object)
    try:
        return np.asarray(values)
    except ValueError:  # rows of different lengths
        return np.array([None] * len(values), object)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy())
    return np.asarray(value)


def _parquet(file: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(file.read_bytes()))
    found: dict[str, Any] = {}
    numbered: dict[str, dict[int, str]] = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            found[name] = _lists(table.column(name), f"{file}: {name}")
        elif pa.types.is_floating(kind) and (match := _NUMBERED.fullmatch(name)):
            numbered.setdefault(match["stem"], {})[int(match["number"])] = name
        elif not pa.types.is_nested(kind):
            column = table.column(name)
            if column.null_count:
                row = column.is_null().index(True).as_py() + 1
                found[name] = _WithGaps(f"{file}: {name}, row {row}: is empty")
            else:
                found[name] = column.to_numpy()
    for stem, columns in numbered.items():
        first = min(columns)
        if [*sorted(columns)] == [*range(first, first + len(columns))] and len(columns) > 1:
            found[stem] = np.stack([table.column(columns[number]).to_numpy() for number in sorted(columns)], axis=1)
        else:
            found |= {name: table.column(name).to_numpy() for name in columns.values()}
    return found


class _WithGaps:
    """A column with missing values: an error only where it is used."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise FeatureError(self.problem)


def _lists(column: Any, name: str) -> np.ndarray:
    """A column of lists as (rows, D)."""
    import pyarrow.compute as pc

    values = column.combine_chunks()
    if values.null_count:
        raise FeatureError(f"{name}, row {values.is_null().index(True).as_py() + 1}: is empty")
    lengths = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise FeatureError(
            f"{name} has lists of {lengths[0]} to {lengths[-1]} numbers; expected the same number in each row"
        )
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(values), -1)


def _matlab(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(file)
    except NotImplementedError:  # version 7.3 is HDF5
        return _matlab_73(file)
    found = {}
    for name, value in content.items():
        if not name.startswith("__") and isinstance(value, np.ndarray):
            if value.dtype.kind == "O":  # a cell array of texts
                texts = [
                    cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell for cell in value.ravel()
                ]
                value = np.array(texts, object)
            elif value.dtype.kind == "U":  # a matrix of characters, padded
                value = np.array([text.rstrip() for text in value.ravel()], object)
            found[name] = value
    return found


def _matlab_73(file: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(file, "r") as content:  # columns are stored first
        return {
            name: np.asarray(value).T
            for name, value in content.items()
            if isinstance(value, h5py.Dataset) and value.dtype.kind in "iuf"
        }


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
