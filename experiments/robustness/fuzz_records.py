"""Damaged records of runs, reproductions and galleries, and odd settings."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fuzz_checkpoints import damaged_safetensors
from fuzz_commands import EMBEDDED, SEARCHED, Place, copied, reproduced
from fuzz_damage import damaged_bytes, damaged_csv, damaged_json, damaged_parquet, frame_bytes
from fuzz_meeting import Case, data_of, train

RESULT_FILES = (
    "result.json",
    "result.json",
    "result.json",
    "history.csv",
    "topk.parquet",
    "topk.parquet",
    "analysis.json",
    "per_query.parquet",
)


def damage_file(rng: random.Random, file: Path) -> str:
    """Damage a file in place, by its format."""
    data = file.read_bytes()
    damage = {
        ".json": damaged_json,
        ".csv": damaged_csv,
        ".parquet": damaged_parquet,
        ".safetensors": damaged_safetensors,
    }
    if file.suffix in damage:
        changed, what = damage[file.suffix](rng, data)
    else:
        changed, what = damaged_bytes(rng, data), "bytes"
    file.write_bytes(changed)
    return f"{file.name}: {what}"


def result(rng: random.Random, place: Place) -> Case:
    way = rng.random()
    if way < 0.1:
        return reproduction(rng, place)
    name = rng.choice(RESULT_FILES)
    source = (
        place.good.run
        if name in ("history.csv",) or (name in ("result.json", "topk.parquet") and rng.random() < 0.6)
        else place.good.evaluation(1)
    )
    folder = copied(source, place.out / "runs" / "a")
    if name == "result.json" and rng.random() < 0.15:
        what = foreign_dataset(rng, place, folder / name)
    elif name == "topk.parquet" and rng.random() < 0.15:
        what = foreign_pictures(rng, place, folder / name)
    else:
        what = damage_file(rng, folder / name)
    if way < 0.2 and name == "result.json":
        copied(place.good.run, place.out / "runs" / "b")
        return Case(f"sweep, {what}", place.run("report", f"run={place.out / 'runs'}"))
    if name == "per_query.parquet" or (
        name in ("analysis.json", "result.json") and source != place.good.run and way < 0.6
    ):
        other = copied(place.good.evaluation(2), place.out / "b")
        sides = [folder, other]
        rng.shuffle(sides)
        return Case(f"compared, {what}", place.run("report", f"run={sides[0]}", f"compare={sides[1]}"))
    return Case(what, place.run("report", f"run={folder}"))


def foreign_dataset(rng: random.Random, place: Place, file: Path) -> str:
    """A result whose data set is elsewhere: a reader must neither write there nor take for ever."""
    record = json.loads(file.read_text())
    name = rng.choice(
        ("synthetic_reid", "synthetic_retrieval", "market1501", "cuhk03_detect", "table", "x", "../table")
    )
    options: dict[str, Any] = rng.choice(
        (
            {},
            {"train_identities": 10**9},
            {"seed": -1},
            {"workers": "x"},
            {"check_counts": []},
            {"manifest": [5]},
            {"x": 1},
        )
    )
    root = rng.choice((str(place.inputs), str(place.root / "new"), "/nowhere/x", ".", "", "~", "~nobody", "a\0b"))
    record["config"]["dataset"] = {"name": name, "root": root, "options": options}
    file.write_text(json.dumps(record))
    return f"dataset {name} in {root} with {options}"


def foreign_pictures(rng: random.Random, place: Place, file: Path) -> str:
    """Ranking lists whose pictures are elsewhere."""
    table = pd.read_parquet(file)
    column = rng.choice(("query_path", "gallery_path"))
    relative = os.path.relpath(place.secret, place.good.images)
    path = rng.choice((str(place.secret), relative, f"./x/../{relative}"))
    table[column] = path
    file.write_bytes(frame_bytes(table))
    return f"{column} {path}"


def reproduction(rng: random.Random, place: Place) -> Case:
    """A training of a table whose record is damaged."""
    folder = copied(place.good.reproduction, place.out / "r")
    run = next((folder / "runs").glob("*/*/seed=1"))
    file = rng.choice((run / "result.json", run / "result.json", run.parent / "cell.json", run / "failure.json"))
    if file.name == "failure.json":
        file.write_text('{"reason": "x", "trace": "", "created": "2026"}')
        (run / "result.json").unlink()
    elif file.name == "cell.json" and rng.random() < 0.7:  # of another version: its settings are read
        run.parent.rename(run.parent.with_name("other"))
        file = run.parent.with_name("other") / "cell.json"
    what = damage_file(rng, file)
    return Case(f"reproduce, {what}", place.run("reproduce", *reproduced(folder), "list=true"))


# Galleries


def store(rng: random.Random, place: Place) -> Case:
    folder = copied(place.good.gallery, place.out / "gallery")
    way = rng.random()
    if way < 0.15:
        return interrupted(rng, place, folder)
    engine = ()
    if way < 0.25:
        file = rng.choice(sorted(folder.glob("faiss-ivf.*")))
        engine = ("engine=faiss_ivf",)
    else:
        file = folder / rng.choice(
            ("meta.json", "meta.json", "meta.json", "manifest.parquet", "manifest.parquet", "embeddings.safetensors")
        )
    what = damage_file(rng, file)
    if file.name != "meta.json" and rng.random() < 0.7:  # so that more than the size is looked at
        meta = json.loads((folder / "meta.json").read_text())
        meta["files"] = {name: (folder / name).stat().st_size for name in meta["files"]}
        (folder / "meta.json").write_text(json.dumps(meta))
        what += ", with its size in meta.json"
    out = (f"output_root={place.out}", "run_name=s", *engine)
    way = rng.random()
    if way < 0.4 or engine:  # which keeps its files in the gallery
        ended = place.run("search", f"index={folder}", f"queries={place.good.gallery}", *SEARCHED, *out)
    elif way < 0.55:
        ended = place.run("search", f"index={place.good.gallery}", f"queries={folder}", *SEARCHED, *out)
    elif way < 0.9:
        extra = rng.choice(((), (), ("after=5",), ("same_camera=false",)))
        ended = place.run("search", f"index={folder}", f"images={place.good.table}", *SEARCHED, *out, *extra)
    else:
        ended = place.run(
            "embed",
            f"checkpoint={place.good.checkpoint}",
            *data_of(place),
            "split=gallery",
            *EMBEDDED,
            f"output={folder}",
        )
    return Case(what, ended)


def parts(rng: random.Random, place: Place) -> Case:
    """A gallery to which images were added, and of which some were removed, with an index that has grown with it."""
    folder = copied(place.good.grown, place.out / "gallery")
    meta = folder / "meta.json"
    index = sorted(folder.glob("faiss-ivf.*"))
    file = rng.choice((meta, meta, *sorted((folder / "parts").iterdir()), *index))
    what = f"{damage_file(rng, file)} of {file.relative_to(folder)}"
    if file != meta and file not in index and rng.random() < 0.7:  # so that more than the size is looked at
        record = json.loads(meta.read_text())
        for part in record["parts"]:
            part["sizes"] = {name: (folder / name).stat().st_size for name in part["sizes"]}
        meta.write_text(json.dumps(record))
        what += ", with its size in meta.json"
    out = (f"output_root={place.out}", "run_name=s")
    way = rng.random()
    if way < 0.6 or file in index:
        engine = ("engine=faiss_ivf",) if file in index or rng.random() < 0.3 else ()
        verify = () if rng.random() < 0.7 else ("verify=false",)
        arguments = (f"index={folder}", f"queries={place.good.gallery}", *SEARCHED, *out, *engine, *verify)
        return Case(what, place.run("search", *arguments))
    embedded = (f"checkpoint={place.good.checkpoint}", *data_of(place), "split=gallery", *EMBEDDED, f"output={folder}")
    return Case(what, place.run("embed", *embedded, f"mode={rng.choice(('add', 'sync'))}"))


def interrupted(rng: random.Random, place: Place, folder: Path) -> Case:
    """A gallery that is half done, with a damaged plan or part."""
    for name in ("meta.json", "manifest.parquet", "embeddings.safetensors"):
        (folder / name).unlink(missing_ok=True)
    arguments = (f"checkpoint={place.good.checkpoint}", *data_of(place), "split=gallery", *EMBEDDED, f"output={folder}")
    plan = folder / "plan.json"
    shard = folder / "shards" / "000000.safetensors"
    if rng.random() < 0.5:
        what = damage_file(rng, plan)
    else:
        import safetensors.numpy

        shard.parent.mkdir(exist_ok=True)
        rows, numbers = np.arange(8), np.zeros((8, 512), np.float32)
        parts: dict[str, Any] = {"rows": rows, "embeddings": numbers}
        way = rng.randrange(5)
        if way == 0:
            parts["embeddings"] = rng.choice(
                (numbers[:, :5], numbers.astype(np.float64), numbers[:3], numbers.reshape(-1))
            )
        elif way == 1:
            parts["rows"] = rng.choice(
                (rows[:3], rows.astype(np.float32), rows + 5, rows.reshape(2, -1), np.zeros(8, np.int64))
            )
        elif way == 2:
            parts.pop(rng.choice(("rows", "embeddings")))
        words = rng.choice(('{"0": "x"}', "{}", "x", "[]", '{"a": 1}', "null", "5"))
        shard.write_bytes(safetensors.numpy.save(parts, {"unreadable": words}))
        what = f"shard {way}, unreadable {words}" if way < 4 else damage_file(rng, shard)
    return Case(f"resumed, {what}", place.run("embed", *arguments))


# Settings


TARGETS = (
    *("os.system", "builtins.eval", "subprocess.run", "os.path.join", "torch.load", "pickle.loads"),
    *("bdbnet.models.BDBNetwork", "bdbnet.models", "bdbnet.results.write_atomically", "torch.optim.SGD", "torch.nn.Identity"),
    *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.callbacks.Callback", "x", "", ".", "..a", "os."),
    *("pytorch_lightning.callbacks.early_stopping.EarlyStopping",),
    *("bdbnet.losses.HardTripletLoss", "pytorch_lightning.callbacks.ModelCheckpoint", "[os.system]", "{a: 1}", "null", "5", "???"),
)  # fmt: skip


def settings(rng: random.Random, place: Place) -> Case:
    """Callbacks, loggers, losses and so on that a command line builds."""
    target = rng.choice(TARGETS)
    argument = rng.choice(
        ("", ", command: 'touch CANARY'", ", monitor: mAP", ", x: 1", ", _partial_: true", ", _args_: [1]")
    )
    node = f"{{_target_: {target if target[:1] in ('[', '{') else repr(target)}{argument}}}".replace(
        "CANARY", str(place.canary)
    )
    key = rng.choice(
        ("callbacks.extra=[{}]", "callbacks.extra=[{}]", "callbacks.extra={}", "+logger.x={}", "logger.logger={}",
         "augmentation.erasing=[{}]", "+optimizer.x={}", "+loss.metric={}", "dropping={}", "+schedule.x={}",
         "callbacks.extra=[[{}]]", "callbacks.extra=[[os.system]]")
    )  # fmt: skip
    typed = key.replace("{}", node)
    return Case(typed, train(place, *data_of(place), typed))
