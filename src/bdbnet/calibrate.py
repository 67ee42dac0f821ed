"""``python -m bdbnet.calibrate``: find the distance that means the same identity, and keep it with the network."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from bdbnet.config import ConfigError, command, shown_path


@command("calibrate")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    if config.get("dataset") is None:
        raise ConfigError(
            "dataset= is missing: a threshold is found on images whose identities are known, such as market1501"
        )
    from bdbnet.evaluation.saved import RECORD, require_place
    from bdbnet.evaluation.trainer import keep_freed_memory, quiet_libraries
    from bdbnet.gallery.calibrated import calibrate_embedder
    from bdbnet.reporting.calibration import calibration_text

    quiet_libraries()
    keep_freed_memory()
    folder = shown_path(Path(config.output).expanduser().absolute())
    if (folder / RECORD).exists() and not config.overwrite:
        raise ConfigError(f"output={folder}: holds a saved network already; give another folder, or overwrite=true")
    require_place(folder)  # before minutes of embedding
    calibration = calibrate_embedder(config, folder)
    print(f"\n{calibration_text(calibration)}\n\nnetwork with its threshold: {folder}")
    print(f"use it: python -m bdbnet.embed {shlex.quote(f'checkpoint={folder}')} images=<folder or table>")


if __name__ == "__main__":
    main()
