"""``python -m bdbnet.search``: find the images of a gallery that are nearest to given ones."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bdbnet.config import ConfigError, command, shown_path


@command("search")
def main(config: DictConfig) -> None:
    if config.index is None:
        raise ConfigError("index= is missing: give the folder that python -m bdbnet.embed made")
    from bdbnet.gallery.searching import FOUND, PAGE, results_text, search

    folder = shown_path(HydraConfig.get().runtime.output_dir)
    found = search(config, folder)
    for name, fact in found.facts.items():
        print(f"{name + ':':10}{fact}")
    print(f"\n{results_text(found, config.printed)}\n")
    print(f"all that was found: {folder / FOUND}\npage with pictures: {folder / PAGE}")


if __name__ == "__main__":
    main()
