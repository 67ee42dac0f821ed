"""Saved embedders on a model hub, through the package huggingface_hub."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdbnet.evaluation.saved import CARD, RECORD, WEIGHTS, is_saved, save_embedder
from bdbnet.models import CheckpointError
from bdbnet.zoo_entries import HUB

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class HubError(RuntimeError):
    """A model that could not be uploaded or downloaded; the message says what to do."""


def push_to_hub(embedder: "Embedder", name: str, *, private: bool, token: str | None, message: str) -> str:
    """Upload an embedder as `save` writes it; returns its address.

    Raises:
        HubError: the package is not installed, or the hub refuses.
        CheckpointError: see `save_embedder`; a name that is not `user/name`.
    """
    repo, revision = _parsed(f"{HUB}:{name.removeprefix(f'{HUB}:')}")
    hub = _package()
    with tempfile.TemporaryDirectory(prefix="bdbnet-hub-") as folder:
        place = save_embedder(embedder, Path(folder) / "model")
        try:
            api = hub.HfApi(token=token)
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=place, commit_message=message, revision=revision)
        except Exception as error:  # the client's errors are of many kinds
            raise HubError(
                f"{name} could not be uploaded ({type(error).__name__}: {_first_line(error)}). Log in with `hf auth login`, or "
                "give token=, and write the name as user/name"
            ) from error
    return address


def downloaded(source: str) -> Path:
    """The folder of `hub:user/name` or `hub:user/name@revision`, downloaded once; without a network that of the cache.

    Raises:
        HubError: the package is not installed; no such model, no network and not in the cache.
        CheckpointError: a name of another form, or a model that `Embedder.save` did not write.
    """
    repo, revision = _parsed(source)
    hub = _package()
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[RECORD, WEIGHTS, CARD]))
    except Exception as error:  # the client's errors are of many kinds
        raise HubError(
            f"{source} could not be downloaded ({type(error).__name__}: {_first_line(error)}). A private model needs `hf auth "
            "login`; without a network it has to be in the cache already"
        ) from error
    if not is_saved(folder):
        raise CheckpointError(
            f"{source}: holds no {RECORD}, so it is no embedder that bdbnet saved. A model of timm on the hub is timm:hf_hub:{repo}"
        )
    return folder


def _parsed(source: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(source.removeprefix(f"{HUB}:"))
    if match is None:
        raise CheckpointError(f"{source}: write {HUB}:user/name, or {HUB}:user/name@revision")
    return match["repo"], match["revision"]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError("the package huggingface_hub is not installed: pip install 'bdbnet[hub]'") from error
    return huggingface_hub
