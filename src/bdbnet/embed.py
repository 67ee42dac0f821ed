"""``python -m bdbnet.embed``: embed images with a trained network and keep the embeddings, to be searched later."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from bdbnet.config import ConfigError, command, shown_path


@command("embed", again="Run the same command again; it resumes where it stopped.")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    dataset = config.get("dataset")
    if (config.images is None) == (dataset is None):
        raise ConfigError("set exactly one of images=FOLDER_OR_TABLE or dataset=NAME (with split=gallery, for example)")
    if (config.split is not None) and dataset is None:
        raise ConfigError("split= is a part of a dataset: leave it out with images=, or give dataset= instead")
    from bdbnet.evaluation.trainer import keep_freed_memory, quiet_libraries
    from bdbnet.gallery.embedding import build_embedder
    from bdbnet.gallery.shards import embed_into, ranks_of_environment
    from bdbnet.gallery.store import SKIPPED, EmbeddingStore
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
    outcome = embed_into(
        folder,
        embedder,
        images,
        shard_size=config.shard_size,
        batch_size=config.loading.test_batch_size,
        format=config.format,
        skip_unreadable=config.on_error == "skip",
        overwrite=config.overwrite,
        num_workers=config.loading.num_workers,
        ranks=ranks,
    )
    speed = f" in {outcome.seconds:.1f} s, {outcome.embedded / max(outcome.seconds, 1e-9):.0f} images/s"
    if outcome.missing:
        print(
            f"process {ranks.rank} of {ranks.world_size}: embedded {outcome.embedded:,} images{speed}; {outcome.missing:,} shards "
            f"of the other processes are still missing in {folder}, the last one to end puts all together"
        )
        return
    store = EmbeddingStore.open(folder)
    if outcome.embedded:
        print(f"embedded {outcome.embedded:,} images{speed}")
    else:
        print(f"nothing to do: {folder} was complete")
    if store.skipped:
        print(f"left out {store.skipped:,} images that can't be read: {folder / SKIPPED}")
    print(f"{len(store):,} embeddings of {store.dimensions:,} numbers in {folder}")
    print(f"search them with: python -m bdbnet.search {shlex.quote(f'index={folder}')} images=<file, folder or table>")


if __name__ == "__main__":
    main()
