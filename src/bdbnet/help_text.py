"""What ``--help`` of a command prints: its template, the choices of every group and its settings.

Hydra's own listing copies its whole registry for every group, which takes longer than all the rest of a start.
"""

from collections.abc import Sequence
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf, open_dict

FLAGS = frozenset({"--help", "-h"})


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help, and sets nothing but settings.

    >>> asks_for_help(["--help", "model=pcb"]), asks_for_help(["model=pcb"]), asks_for_help(["--help", "--resolve"])
    (True, False, False)
    """
    options = [argument for argument in arguments if argument.startswith("-") or argument.startswith("hydra")]
    return bool(options) and FLAGS.issuperset(options)


def help_text(command: str, overrides: Sequence[str], conf: Path) -> str:
    """The text for a command under its overrides.

    Args:
        command: name of its configuration.
        overrides: settings that were typed.
        conf: folder of the groups.

    Raises:
        HydraException: an override fits nothing.
    """
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose(command, [*overrides], return_hydra_config=True)
        choices: dict[str, set[str]] = {}
        for source in GlobalHydra.instance().config_loader().get_sources():
            for group in source.list("", ObjectType.GROUP):
                choices.setdefault(group, set()).update(source.list(group, ObjectType.CONFIG))
    template = str(config.hydra.help.template)
    with open_dict(config):
        del config["hydra"]
    del choices["hydra"]
    listed = "".join(f"{group}: {', '.join(sorted(choices[group]))}\n" for group in sorted(choices))
    return Template(template).substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(config))
