"""``bdbnet COMMAND ...`` and ``python -m bdbnet COMMAND ...``: the same as ``python -m bdbnet.COMMAND ...``."""

import difflib
import runpy
import sys

#: What each command does, in the order of the work: the first line of its module.
COMMANDS = {
    "prepare": "set up a dataset and check it",
    "train": "train a network, evaluate it, and leave a run folder with everything that was measured",
    "evaluate": "evaluate a checkpoint on the dataset it was trained for, or on another, or anyone's embeddings",
    "report": "the page of a run or a sweep, or the comparison of two runs",
    "visualize": "show where trained networks look",
    "calibrate": "find the distance that means the same identity, and keep it with the network",
    "embed": "embed images with a trained network and keep the embeddings, to be searched later",
    "search": "find the images of a gallery that are nearest to given ones",
    "serve": "a web page and a JSON API over a gallery",
    "convert": "write the network in a file of another program, or in a checkpoint, into a folder of ours",
    "export": "a trained network as a file for ONNX Runtime, OpenVINO or torch.export, checked first",
    "reproduce": "reproduction of the paper's tables and figures; trains what is missing",
    "dashboard": "saved views of a W&B project: a run, the height ratio, and the paper's tables",
}


def usage() -> str:
    """The list of the commands."""
    listed = "\n".join(f"  {name:<10} {does}" for name, does in COMMANDS.items())
    return (
        f"usage: bdbnet COMMAND [KEY=VALUE ...]\n\n{listed}\n\nbdbnet COMMAND --help shows examples and all settings.\n"
        "bdbnet completion bash (or zsh, fish) prints what makes the Tab key complete commands, keys and choices."
    )


def main() -> None:
    """Run the command that the first argument names.

    The command becomes ``__main__``: a process that starts others, such as training on several devices, starts them as
    ``python -m bdbnet.COMMAND``.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version"):
        from bdbnet import __version__

        print(f"bdbnet {__version__}")
    elif name == "completion":
        _complete(arguments)
    elif name in COMMANDS:
        sys.argv[1:] = arguments
        runpy.run_module(f"bdbnet.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean bdbnet {near[0]}? " if near else ""
        print(f"error: bdbnet {name}: there is no such command; {advice}bdbnet --help lists them", file=sys.stderr)
        sys.exit(1)


def _complete(arguments: list[str]) -> None:
    """``completion SHELL`` prints the shell's script, ``completion words LINE`` the words that fit a line's last one."""
    from bdbnet.completion import SCRIPTS, START, fitting_words

    if arguments[:1] == ["words"] and len(arguments) == 2:
        print("\n".join(fitting_words(arguments[1], list(COMMANDS))))
    elif len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(SCRIPTS[arguments[0]])
    elif arguments in (["--help"], ["-h"]):
        lines = "\n".join(f"  {line}" for line in START.values())
        print(f"usage: bdbnet completion bash (or zsh, fish)\n\nTo have it in every shell:\n{lines}")
    else:
        typed = " ".join(["bdbnet completion", *arguments])
        lines = "\n".join(f"  {line}" for line in START.values())
        print(f"error: {typed}: name a shell, bash, zsh or fish. To have it in every shell:\n{lines}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
