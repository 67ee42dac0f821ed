"""From JPEG files to training batches on one core, against torchreid's transforms and bare decoding of the same files.

    pip install --no-deps torchreid==0.2.5 && pip install opencv-python-headless gdown tensorboard
    python experiments/benchmarks/input_pipeline.py --market data/market1501

Person images: Market-1501 (128 x 64 pixels; rendered ones of that size where it is absent) to batches of 384 x 128, from
the files and from a packed cache.  Photographs: rendered scenes of 500 x 375 pixels with a camera's grain to 224 x 224.
Both sides read the same files, flip and erase; torchreid resizes with Pillow, makes floats and normalises image by image.
The photographs are also padded, resized to 256 x 256 and cropped at random, as section 4.2.1 has it; torchreid's random
crop enlarges every other image by an eighth and crops it.
With `--card 2910`, the images/s at which a card trains, nothing of that is done: batches of person images come from the files by
one worker process per core, as in a training that has no cache, and their rate is divided by the card's.

Ours ends twice: with the 8-bit batch that goes to a GPU, and with the batch normalised on this same core.  Ours runs with
the setting of the C library that training makes on a CPU, torchreid without it, as it comes, and with it.  All in turn,
each in a process with one thread; medians are compared.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from bdbnet.datasets import Manifest, load_manifest
from bdbnet.datasets.checking import usable_cores
from bdbnet.datasets.images import read_file
from bdbnet.datasets.synthetic.objects import render_object
from bdbnet.evaluation.trainer import keep_freed_memory
from bdbnet.loading import (
    IdentityBatchSampler,
    ImageDataset,
    RandomErasing,
    Reading,
    ReIDDataModule,
    Sampling,
    normalize,
    open_or_pack,
    transforms_for,
)

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", type=Path, default=Path("data/market1501"), help="folder (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1280, help="person images in a round (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=256, help="photographs in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--card", type=float, help="images/s of a card: compare the loader on all cores with it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        persons = person_images(options.market, scratch)
        if options.card is not None:
            against_card(persons, (384, 128), options.images, options.rounds, options.card)
            return
        compare(
            f"{persons.name}, 128 x 64 to 384 x 128",
            persons,
            (384, 128),
            options.images,
            options.rounds,
            scratch,
        )
        photos = photographs(scratch / "photos", options.photos)
        size = statistics.mean(Path(path).stat().st_size for path in photos.paths) / 1024
        title = f"photographs, 500 x 375 ({size:.0f} KiB) to 224 x 224"
        compare(title, photos, (224, 224), options.photos, options.rounds, scratch)
        title = f"photographs, 500 x 375 ({size:.0f} KiB), padded, 256 x 256, random crop of 224 x 224"
        compare(title, photos, (224, 224), options.photos, options.rounds, scratch, crop_from=(256, 256))


def compare(
    title: str,
    manifest: Manifest,
    size: tuple[int, int],
    images: int,
    rounds: int,
    scratch: Path,
    *,
    crop_from: tuple[int, int] | None = None,
) -> None:
    protocol = "reid" if crop_from is None else "retrieval"
    train, _ = transforms_for(protocol, size, resize=crop_from, erasing=[RandomErasing()])
    labels = manifest.training_labels()
    from_files = ImageDataset(manifest, train, labels=labels)
    from_cache = ImageDataset(manifest, train, labels=labels)
    from_cache.packed = open_or_pack(
        scratch / "cache", manifest.name, manifest, train, from_files.prepare, decode_margin=2.0
    )
    sampler = IdentityBatchSampler(labels, BATCH // 4, 4)
    batches = []
    while len(batches) * BATCH < images:
        batches += list(sampler)
        sampler.set_epoch(sampler.epoch + 1)
    batches = batches[: images // BATCH]
    paths = [[manifest.paths[draw.index] for draw in batch] for batch in batches]
    peer = torchreid_batch(*size, crop=crop_from is not None)

    def ours(dataset: ImageDataset, *, normalized: bool) -> Callable[[int], object]:
        def make(number: int) -> object:
            batch = dataset.__getitems__(batches[number])
            return normalize(batch["image"], batch["erased"]) if normalized else batch

        return make

    def decode(number: int) -> object:
        return [simplejpeg.decode_jpeg(read_file(path), "RGB") for path in paths[number]]

    runs: dict[str, tuple[Callable[[int], object], bool]] = {"decoding alone": (decode, True)}
    if peer is not None:
        runs["torchreid"] = (lambda number: peer(paths[number]), False)
        runs["torchreid, freed memory kept"] = (lambda number: peer(paths[number]), True)
    runs |= {
        "files, 8-bit": (ours(from_files, normalized=False), True),
        "files, normalised": (ours(from_files, normalized=True), True),
        "packed cache, 8-bit": (ours(from_cache, normalized=False), True),
        "packed cache, normalised": (ours(from_cache, normalized=True), True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (make, keep) in runs.items():
            seconds[name].append(timed(make, len(batches), keep=keep) / (len(batches) * BATCH))
    print(f"\n{title}; {len(batches)} batches of {BATCH}, one core, median of {rounds}")
    bases = {name: statistics.median(seconds[name]) for name in [*runs][:-4]}
    print(f"{'':30s} {'images/s':>9s}" + "".join(f"   x {name}" for name in bases))
    for name, values in seconds.items():
        median = statistics.median(values)
        ratios = "".join(f"{base / median:{len(other) + 5}.2f}" for other, base in bases.items())
        print(f"{name:30s} {1 / median:9.0f}{ratios}")


def against_card(manifest: Manifest, size: tuple[int, int], images: int, rounds: int, card: float) -> None:
    """Print how fast a training's own loader reads files on all cores, and its ratio to a card's rate."""
    train, test = transforms_for("reid", size, erasing=[RandomErasing()])
    cores = usable_cores()
    sampling = Sampling(batch_size=BATCH, epoch="images")
    data = ReIDDataModule(manifest, train, test, sampling=sampling, reading=Reading(num_workers=cores))
    loader, seconds = data.train_dataloader(), []
    for _ in range(rounds):
        batches = iter(loader)
        for _ in range(2 * cores):  # until all workers are at work
            next(batches)
        began = time.perf_counter()
        count = sum(1 for _ in islice(batches, images // BATCH))
        seconds.append((time.perf_counter() - began) / (count * BATCH))
    rate = 1 / statistics.median(seconds)
    print(f"{manifest.name}, {size[0]} x {size[1]}, {cores} worker processes on {cores} cores, median of {rounds}")
    print(f"from files {rate:,.0f} images/s; the card {card:,.0f}; ratio {rate / card:.2f}, {rate / cores:,.0f} a core")


def timed(make: Callable[[int], object], count: int, *, keep: bool) -> float:
    """Seconds for `count` batches after a first one, in a process of its own: the setting of the C library is for good."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def work() -> None:
        if keep:
            keep_freed_memory()
        make(0)
        began = time.perf_counter()
        for number in range(count):
            make(number)
        sending.send(time.perf_counter() - began)

    process = context.Process(target=work)
    process.start()
    sending.close()
    seconds: float = receiving.recv()
    process.join()
    return seconds


def torchreid_batch(height: int, width: int, *, crop: bool) -> Callable[[list[str]], torch.Tensor] | None:
    """torchreid's own way from files to a batch: its reader, its transforms with flip, (crop) and erasing, stacked."""
    try:
        from torchreid.reid.data.transforms import build_transforms
        from torchreid.reid.utils import read_image
    except ImportError as error:
        print(f"without the peer torchreid ({error}); --help says how to install it")
        return None
    names = ["random_flip", *(["random_crop"] if crop else []), "random_erase"]
    transform, _ = build_transforms(height, width, transforms=names)
    return lambda paths: torch.stack([transform(read_image(path)) for path in paths])


def person_images(market: Path, scratch: Path) -> Manifest:
    if market.is_dir():
        return load_manifest("market1501", market).subset("train")
    print(f"no {market}: rendered persons stand in")
    return load_manifest("synthetic_reid", scratch / "persons").subset("train")


def photographs(folder: Path, count: int) -> Manifest:
    """Rendered scenes with grain, which gives JPEGs of the size that cameras write."""
    import pandas as pd

    folder.mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(count):
        scene = np.asarray(render_object(0, number // 8 + 1, number % 8, (375, 500))).astype(np.float32)
        grain = generator.normal(0, 7, scene.shape)
        image = Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=90)
        rows.append((f"{number}.jpg", number // 8, -1, "train"))
    return Manifest.from_table(pd.DataFrame(rows, columns=["path", "label", "camera", "split"]), folder, "photographs")


if __name__ == "__main__":
    main()
