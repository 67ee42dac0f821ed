"""``python -m bdbnet.visualize``: show where trained networks look."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bdbnet.config import ConfigError, command, shown_path


@command("visualize")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    dataset = config.get("dataset")
    if (config.images is None) == (dataset is None):
        raise ConfigError("set exactly one of images=FOLDER_OR_TABLE or dataset=NAME")
    from bdbnet.evaluation.load import Wanted, open_embedder
    from bdbnet.evaluation.trainer import quiet_libraries
    from bdbnet.loading.datamodule import test_rows
    from bdbnet.loading.from_config import read_manifest, settle_protocol
    from bdbnet.loading.sources import find_images
    from bdbnet.reporting.image_choice import drawn_queries, shown_images
    from bdbnet.reporting.visualizing import names_of, visualize

    quiet_libraries()
    sources = [config.checkpoint] if isinstance(config.checkpoint, str) else [*config.checkpoint]
    names = names_of(sources, config.names)
    if dataset is None:
        images = shown_images(find_images(config.images, root=config.root), config.count)
        source = str(config.images)
    else:
        manifest = read_manifest(dataset)
        manifest.require("query", "gallery")
        settle_protocol(dataset, manifest, trained=True)
        images = drawn_queries(manifest, test_rows(manifest), config.count, config.seed)
        source = f"{manifest.name}, {len(images.labels):,} test images"
    padded = config.pad_to_square
    wanted = Wanted(
        model=config.get("model"),
        backbone=config.get("backbone"),
        image_size=config.image_size,
        pad_to_square=dataset.pad_test if padded is None and dataset is not None else padded,
        decode_margin=config.loading.decode_margin,
        distance=config.distance,
        fallback_size=None if dataset is None else dataset.test_size,
        classifiers="class" in config.what,
    )
    embedders = {
        name: open_embedder(place, wanted, device=config.accelerator)
        for name, place in zip(names, sources, strict=True)
    }
    folder = shown_path(HydraConfig.get().runtime.output_dir)
    for line in visualize(config, embedders, images, folder, source):
        print(line)


if __name__ == "__main__":
    main()
