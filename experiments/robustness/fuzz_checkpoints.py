"""Damaged and hostile checkpoints, files of weights and saved folders."""

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz_commands import Ended, Place, copied
from fuzz_damage import damaged_bytes, damaged_json, damaged_tree, odd
from fuzz_meeting import Case, data_of, embed, evaluate, train


class Runs:
    """Code that would run if a checkpoint were simply unpickled."""

    def __init__(self, canary: Path, way: str) -> None:
        self.canary, self.way = canary, way

    def __reduce__(self) -> tuple[Any, ...]:
        if self.way == "system":
            return os.system, (f"touch {self.canary}",)
        if self.way == "eval":
            return eval, (f"open({str(self.canary)!r}, 'w')",)
        return Path.touch, (self.canary,)


def odd_tensor(rng: random.Random, like: Any = None) -> Any:
    """A tensor of a kind, type, shape or content that a network does not expect, or an odd value."""
    base = like if isinstance(like, torch.Tensor) else torch.rand(4, 3)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: base.to_sparse(),
        lambda: torch.rand(4, 3).to_sparse_csr(),
        lambda: base.to("meta"),
        lambda: torch.quantize_per_tensor(base.float(), 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(torch.rand(4, 3), torch.ones(4), torch.zeros(4), 0, torch.qint8),
        lambda: base.to(torch.float64), lambda: base.to(torch.float16), lambda: base.to(torch.bfloat16),
        lambda: base.to(torch.complex64), lambda: base.to(torch.int8), lambda: base.to(torch.bool),
        lambda: base.float().to(torch.float8_e4m3fn),
        lambda: torch.full_like(base.float(), float("nan")), lambda: torch.full_like(base.float(), float("inf")),
        lambda: base.float() * 1e30, lambda: base[:0], lambda: base.reshape(-1), lambda: base[None],
        lambda: torch.tensor(1.0), lambda: base.float().expand(2, *base.shape), lambda: torch.zeros(1).expand(100_000, 100_000),
        lambda: base.float().clone().requires_grad_(), lambda: torch.nn.Parameter(base.float()),
        lambda: torch.nested.nested_tensor([torch.rand(2, 2), torch.rand(1, 2)]),
        lambda: base.numpy() if not base.is_sparse else 1, lambda: torch.storage.UntypedStorage(8),
        lambda: odd(rng), lambda: odd(rng),
    )  # fmt: skip
    try:
        return rng.choice(ways)()
    except (RuntimeError, TypeError, NotImplementedError):  # not every tensor has every kind
        return odd(rng)


def checkpoint(rng: random.Random, place: Place) -> Case:
    file = place.inputs / rng.choice(("last.ckpt", "last.ckpt", "weights.pth", "weights.pth.tar"))
    way = rng.random()
    if way < 0.15:
        what = "bytes"
        file.write_bytes(damaged_bytes(rng, place.good.checkpoint.read_bytes(), (b"PK\x03\x04", b"\x80\x02.", b"{}")))
    elif way < 0.25:
        what = with_code(rng, place, file)
    elif way < 0.35:
        what = safetensors_file(rng, place, file := place.inputs / "weights.safetensors")
    else:
        what = altered(rng, place, file)
    return Case(f"{file.name}: {what}", meet_checkpoint(rng, place, file))


def meet_checkpoint(rng: random.Random, place: Place, file: Path) -> Ended:
    """One of the commands that read a checkpoint."""
    way = rng.random()
    if way < 0.5:
        size = rng.choice(((), ("image_size=[64,32]",)))
        return embed(place, *data_of(place), "split=gallery", *size, checkpoint=file)
    if way < 0.75:
        return evaluate(place, file, *rng.choice((data_of(place), ("seed=1",))))
    if way < 0.85:
        return train(place, *data_of(place), f"backbone.weights={file}")
    return train(place, *data_of(place), f"ckpt_path={file}")


def altered(rng: random.Random, place: Place, file: Path) -> str:
    """A checkpoint with edited entries, or bare weights with edited tensors."""
    content: Any = torch.load(place.good.checkpoint, map_location="cpu", weights_only=True)
    way = rng.random()
    if way < 0.4:
        done = ["bdbnet." + what for what in damaged_tree(rng, content["bdbnet"])]
    elif way < 0.5:
        config = content["bdbnet"]["config"]
        group = rng.choice(("dataset", "evaluation", "model", "backbone", "trainer"))
        done = [f"{group}." + what for what in damaged_tree(rng, config[group])]
    elif way < 0.6:
        done = damaged_tree(rng, content)
    elif way < 0.7:
        entry = rng.choice([key for key in content if isinstance(content[key], dict | list) and content[key]])
        done = [f"{entry}: {what}" for what in damaged_tree(rng, content[entry], lambda rng: odd_tensor(rng))]
    else:
        state = content["state_dict"]
        done = []
        for _ in range(rng.choice((1, 1, 3))):
            key = rng.choice(list(state))
            tensor = odd_tensor(rng, state[key])
            state[key] = tensor
            done.append(
                f"{key}: {type(tensor).__name__} {getattr(tensor, 'dtype', '')} {getattr(tensor, 'layout', '')}"
            )
        if rng.random() < 0.3:
            content = rng.choice(
                (state, {"state_dict": state}, {"model": state}, [state], list(state.values()), {"net": {"w": state}})
            )
            done.append("bare")
    protocol = rng.choice((2, 2, 2, 4))
    legacy = rng.random() < 0.2
    try:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    except Exception as error:  # what torch itself can't write
        torch.save({"state_dict": {}, "bdbnet": None}, file)
        done.append(f"not writable ({type(error).__name__})")
    return "; ".join(done)[:300]


def with_code(rng: random.Random, place: Place, file: Path) -> str:
    """A pickle that would run code: alone, in a checkpoint, or in its settings."""
    bad = Runs(place.canary, way := rng.choice(("system", "eval", "touch")))
    content: Any = torch.load(place.good.checkpoint, map_location="cpu", weights_only=True)
    where = rng.choice(("state_dict", "bdbnet", "hyper_parameters", "itself", "pickle", "config"))
    if where == "itself":
        torch.save(bad, file)
    elif where == "pickle":
        file.write_bytes(pickle.dumps(bad, protocol=rng.choice((0, 2, 5))))
    else:
        holder = content["bdbnet"]["config"] if where == "config" else content
        holder["x" if where == "config" else where] = bad
        torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    return f"code ({way}) in {where}"


def safetensors_file(rng: random.Random, place: Place, file: Path) -> str:
    """Weights in safetensors with another header, or damaged bytes."""
    data = (place.good.saved / "model.safetensors").read_bytes()
    data, what = damaged_safetensors(rng, data)
    file.write_bytes(data)
    return what


def damaged_safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged_bytes(rng, data, (b"\0" * 8, b"\xff" * 16, b"{}")), "bytes"
    length = int.from_bytes(data[:8], "little")
    header, what = damaged_json(rng, data[8 : 8 + length])
    if rng.random() < 0.1:
        length = rng.choice((0, 2**63, 2**40, len(header) - 1))
    else:
        length = len(header)
    return length.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :], what


def saved_folder(rng: random.Random, place: Place) -> Case:
    folder = copied(place.good.saved, place.inputs / "saved")
    if rng.random() < 0.8:
        data, what = damaged_json(rng, (folder / "bdbnet.json").read_bytes())
        (folder / "bdbnet.json").write_bytes(data)
        what = f"bdbnet.json: {what}"
    elif rng.random() < 0.8:
        what = f"model.safetensors: {safetensors_file(rng, place, folder / 'model.safetensors')}"
    else:
        name = rng.choice(("model.safetensors", "bdbnet.json", "README.md"))
        (folder / name).unlink()
        what = f"{name} is not there"
        if rng.random() < 0.5:
            (folder / name).mkdir()
            what = f"{name} is a folder"
    if rng.random() < 0.7:
        return Case(what, embed(place, checkpoint=folder))
    return Case(f"{what}, evaluated", evaluate(place, folder, *rng.choice((data_of(place), ("seed=1",)))))
