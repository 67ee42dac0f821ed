"""``python -m bdbnet.embed``: embed images with a trained network and keep the embeddings, to be searched later."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bdbnet.command_line import keys_of
from bdbnet.config import ConfigError, command, shown_path
from bdbnet.wording import counted

if TYPE_CHECKING:
    from bdbnet.gallery.updating import Update


@command("embed", again="Run the same command again; it resumes where it stopped.")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    dataset = config.get("dataset")
    if (config.images is None) == (dataset is None):
        raise ConfigError("set exactly one of images=FOLDER_OR_TABLE or dataset=NAME (with split=gallery, for example)")
    if (config.split is not None) and dataset is None:
        raise ConfigError("split= is a part of a dataset: leave it out with images=, or give dataset= instead")
    if config.mode != "new" and config.overwrite:
        raise ConfigError(f"overwrite=true deletes the gallery: leave it out with mode={config.mode}")
    from bdbnet.evaluation.trainer import keep_freed_memory, quiet_libraries
    from bdbnet.gallery.embedding import build_embedder
    from bdbnet.gallery.shards import embed_into, ranks_of_environment, unreadable_named
    from bdbnet.gallery.store import META, SKIPPED, EmbeddingStore
    from bdbnet.gallery.updating import update_store
    from bdbnet.loading.sources import dataset_images, find_images

    quiet_libraries()
    keep_freed_memory()
    ranks = ranks_of_environment()
    if dataset is None:
        images = find_images(config.images, root=config.root)
    else:
        images = dataset_images(dataset, "gallery" if config.split is None else config.split)
    embedder = build_embedder(config, local_rank=ranks.local_rank)
    folder = shown_path(Path(config.output).expanduser().absolute())
    if folder.is_file():
        raise ConfigError(f"output={folder} is a file: name a folder, which is made where it is not there")
    options = {
        "shard_size": config.shard_size,
        "batch_size": config.loading.test_batch_size,
        "skip_unreadable": config.on_error == "skip",
        "num_workers": config.loading.num_workers,
    }
    if config.mode != "new" and (folder / META).exists():
        if ranks.world_size > 1:
            raise ConfigError(f"mode={config.mode}: one process extends a gallery; start it without torchrun or srun")
        if config.mode == "sync" and config.images is not None:
            _require_several(config.images)
        _require_format(folder, config)
        with unreadable_named():
            update = update_store(folder, embedder, images, sync=config.mode == "sync", **options)
        _say_update(update)
    else:
        if config.mode != "new" and not folder.exists():
            print(f"{folder} was not there: mode={config.mode} makes a new gallery")
        with unreadable_named():
            outcome = embed_into(
                folder, embedder, images, format=config.format, overwrite=config.overwrite, ranks=ranks, **options
            )
        speed = _speed(outcome.embedded, outcome.seconds)
        if outcome.missing:
            print(
                f"process {ranks.rank} of {ranks.world_size}: embedded {counted(outcome.embedded, 'image')}{speed}; still missing "
                f"in {folder}: {counted(outcome.missing, 'shard')} of the other processes, the last one to end puts all together"
            )
            return
        if outcome.embedded:
            print(f"embedded {counted(outcome.embedded, 'image')}{speed}")
        else:
            print(f"nothing to do: {folder} was complete")
    store = EmbeddingStore.open(folder)
    if store.skipped:
        print(f"left out {counted(store.skipped, 'image')} that can't be read: {folder / SKIPPED}")
    print(f"{counted(len(store), 'embedding')} of {counted(store.dimensions, 'number')} in {folder}")
    print(f"search them with: python -m bdbnet.search {shlex.quote(f'index={folder}')} images=<file, folder or table>")


def _require_several(images: str) -> None:
    """A gallery can't be made equal to one image: that would remove all others."""
    path = Path(images).expanduser()
    if path.is_file() and path.suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise ConfigError(
            f"mode=sync removes all images but those named: images={images} is one image; mode=add adds it"
        )


def _require_format(folder: Path, config: DictConfig) -> None:
    """A gallery keeps its format: another one that was asked for is an error, the default says nothing."""
    from bdbnet.gallery.store import read_meta

    own = read_meta(folder)["format"]
    if config.format != own and "format" in keys_of(HydraConfig.get().overrides.task):
        raise ConfigError(
            f"format={config.format}: {folder} holds {own}, and what is added has its format: leave format= out with "
            f"mode={config.mode}, or build a gallery anew with output=<another folder>"
        )


def _say_update(update: "Update") -> None:
    if update.embedded:
        print(f"embedded {counted(update.embedded, 'image')}{_speed(update.embedded, update.seconds)}")
    if update.unknown:
        print(
            f"{update.unknown:,} of them were in the gallery, but not the size and time of their files: made by an earlier version"
        )
    print(f"added {counted(update.added, 'image')}, replaced {update.replaced:,}, removed {update.removed:,}")


def _speed(images: int, seconds: float) -> str:
    return f" in {seconds:.1f} s, {images / max(seconds, 1e-9):.0f} images/s"


if __name__ == "__main__":
    main()
