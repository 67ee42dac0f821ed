"""The zoo: trained networks by name, one that travels with bdbnet, others downloaded once, checked and kept."""

import hashlib
import http
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bdbnet.files import locked
from bdbnet.models.weights import CheckpointError
from bdbnet.zoo_entries import ENTRIES, Entry

#: Environment variable of the folder that downloads are kept in.
CACHE = "BDBNET_CACHE"
_BLOCK = 1 << 16  # bytes read at once
_TIMEOUT = 30.0  # seconds without a byte after which a server is given up


def zoo() -> pd.DataFrame:
    """The networks that `bdbnet.load` knows by name: a row for each, indexed by name."""
    rows = {
        name: {
            "trained_on": entry.trained_on,
            "image_size": entry.image_size,
            "distance": entry.distance,
            "published": ", ".join(f"{metric} {value:g}" for metric, value in entry.published.items()),
            "size_mb": round(entry.size / 1e6, 2),
            "where": "with bdbnet" if entry.bundled else entry.url or entry.obtain,
            "terms": entry.terms,
        }
        for name, entry in ENTRIES.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def zoo_help() -> str:
    """The zoo's names for a command's help."""
    lines = ["Networks of the zoo, checkpoint=NAME:"]
    for name, row in zoo().iterrows():
        size = " x ".join(map(str, row.image_size))
        told = f"; {row.published}" if row.published else ""
        lines.append(f"  {name}: {row.trained_on}, {size}, {row.size_mb} MB{told}\n    {row['where']}\n    {row.terms}")
    return "\n".join(lines)


def cache_folder() -> Path:
    """Where downloads are kept: `BDBNET_CACHE`, else `~/.cache/bdbnet`."""
    return Path(os.environ.get(CACHE) or Path("~/.cache/bdbnet")).expanduser()


def zoo_path(name: str) -> Path:
    """The file or folder of a network of the zoo, downloaded if it is not there yet, its digest checked.

    A download that was interrupted resumes. What is in the cache is used without a network.

    Raises:
        KeyError: the zoo has no such name.
        CheckpointError: it is not there and can't be downloaded, or is not the file that it should be.
    """
    entry = ENTRIES[name]
    if entry.bundled:
        folder = Path(__file__).parent / name
        _check(folder / entry.file, entry, f"install bdbnet again, its copy of {name} is damaged")
        return folder
    folder = cache_folder()
    file = folder / entry.file
    if file.is_file() and (entry.url is None or _is_right(file, entry)):
        _check(file, entry, f"get the file again ({entry.obtain}) and put it there")
        return file
    if entry.url is None:
        raise CheckpointError(
            f"{name}: no address is known from which it can be downloaded. Get {entry.file} ({entry.obtain}) and put it here: "
            f"{file} ({entry.size:,} bytes, SHA-256 {entry.sha256}). {CACHE} sets another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):  # another process may be downloading it
            if not (file.is_file() and _is_right(file, entry)):
                _download(name, entry, entry.url, file)
    except OSError as error:
        raise CheckpointError(
            f"{name}: {folder}, the folder that downloads are kept in, can't be written ({error.strerror or error}). "
            f"Set {CACHE} to another folder, or leave it out for ~/.cache/bdbnet"
        ) from error
    return file


def _download(name: str, entry: Entry, url: str, file: Path) -> None:
    part = file.with_name(f"{file.name}.part")
    if part.is_file() and part.stat().st_size > entry.size:
        part.unlink()
    advice = f"or get the file in another way and put it here: {file}"
    try:
        if not part.is_file() or part.stat().st_size < entry.size:
            _receive(name, entry, url, part)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # the server's file ends before what is here: the next call starts anew
        kept = part.stat().st_size if part.is_file() else 0
        resumes = f"{kept:,} of {entry.size:,} bytes are kept, the next call resumes; " if kept else ""
        raise CheckpointError(
            f"{name}: could not be downloaded from {url} ({getattr(error, 'reason', None) or error}). "
            f"{resumes}try again with a network, {advice}"
        ) from error
    found = part.stat().st_size
    if found < entry.size:
        raise CheckpointError(
            f"{name}: {url} broke off after {found:,} of {entry.size:,} bytes, which are kept; the next call resumes, {advice}"
        )
    if not _is_right(part, entry):
        digest = _digest(part)
        part.unlink()
        raise CheckpointError(
            f"{name}: what {url} gave is not the file of the zoo (SHA-256 {digest}, expected {entry.sha256}): it was removed "
            f"unread. Try again, {advice}"
        )
    part.replace(file)


def _receive(name: str, entry: Entry, url: str, part: Path) -> None:
    """Append to `part` what is still missing, at most one byte more than there should be.

    Raises:
        CheckpointError: the server gives something else, as its headers say; `part` stays as it is.
    """
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "bdbnet"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        have = have if resumed else 0  # a server without ranges sends all of it
        length = answer.headers.get("Content-Length")
        web_page = answer.headers.get_content_type() == "text/html"
        if web_page or (length is not None and length.strip() != str(entry.size - have)):
            what = "a web page" if web_page else f"{length} bytes instead of {entry.size - have}"
            raise CheckpointError(
                f"{name}: what {url} gives is not the file of the zoo but {what}; nothing of it was kept. Get the file in another "
                f"way{f' ({entry.obtain})' if entry.obtain else ''} and put it here: {part.with_suffix('')}"
            )
        bar: Any = tqdm(total=entry.size, initial=have, desc=f"downloading {name}", unit="B", unit_scale=True, delay=1)
        with part.open("ab" if resumed else "wb") as file, bar:
            while have <= entry.size and (block := answer.read(min(_BLOCK, entry.size + 1 - have))):
                file.write(block)
                have += len(block)
                bar.update(len(block))


def _check(file: Path, entry: Entry, advice: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; {advice}")
    if not _is_right(file, entry):
        raise CheckpointError(
            f"{file}: {file.stat().st_size:,} bytes with SHA-256 {_digest(file)}; expected {entry.size:,} and {entry.sha256}: "
            f"half downloaded or altered, so it was not read; {advice}"
        )


def _is_right(file: Path, entry: Entry) -> bool:
    return file.stat().st_size == entry.size and _digest(file) == entry.sha256


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
