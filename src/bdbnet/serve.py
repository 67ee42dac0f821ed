"""``python -m bdbnet.serve``: a web page and a JSON API over a gallery."""

import importlib.util

from omegaconf import DictConfig

from bdbnet.config import ConfigError, command

_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


@command("serve", again="Start the server again with the same command.")
def main(config: DictConfig) -> None:
    if config.index is None:
        raise ConfigError("index= is missing: give the folder that python -m bdbnet.embed made")
    absent = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ConfigError(f'the page needs {", ".join(absent)}: pip install "bdbnet[serve]"')
    from bdbnet.serving.address import listening, token_of

    token = token_of(config)
    with listening(str(config.host), config.port) as sock:  # before the libraries are imported, which takes seconds
        from bdbnet.evaluation.trainer import keep_freed_memory, quiet_libraries
        from bdbnet.serving.running import serve

        quiet_libraries()
        keep_freed_memory()
        serve(config, sock, token)


if __name__ == "__main__":
    main()
