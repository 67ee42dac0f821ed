"""``python -m bdbnet.convert``: write the network in a file of another program, or in a checkpoint, into a folder of ours."""

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command


def _zoo_help() -> str:
    from bdbnet.models.zoo import zoo_help

    return zoo_help()


OmegaConf.register_new_resolver("zoo_help", _zoo_help, replace=True)


@command("convert")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a file of weights, for example checkpoint=model.pth.tar")
    if config.output is None:
        raise ConfigError("output= is missing: give the folder to write, for example output=model")
    if config.timm is not None and (named := [key for key in ("model", "backbone") if config.get(key) is not None]):
        raise ConfigError(
            f"timm={config.timm} names the whole network: leave out {' and '.join(f'{key}=' for key in named)}"
        )
    from bdbnet.evaluation.conversion import account, account_text, convert, preprocessing_text
    from bdbnet.evaluation.load import Wanted, require_source

    source = str(config.checkpoint)
    require_source(source)
    model = config.get("model") if config.timm is None else f"timm:{config.timm}"
    wanted = Wanted(
        model=model, backbone=config.get("backbone"), image_size=config.image_size, pad_to_square=config.pad_to_square
    )
    found = account(source, wanted)
    embedder = convert(
        source,
        config.output,
        wanted,
        half=config.half,
        overwrite=config.overwrite,
        result=config.result,
        terms=config.terms,
    )
    print(f"{source}: {account_text(found)}\n{preprocessing_text(embedder)}")
    print(f'written to {config.output}; use it as checkpoint={config.output}, or bdbnet.load("{config.output}")')


if __name__ == "__main__":
    main()
