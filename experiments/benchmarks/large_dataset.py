"""A dataset of Stanford Online Products' size: seconds to its manifest, memory and time to check every image.

    python experiments/benchmarks/large_dataset.py

Lists and a tree of 120,053 rendered images (hard links) in the authors' format.  The floor of the manifest is what cannot
be left out: reading both lists as text and listing the twelve folders.  The check runs in a process of its own, as
`python -m bdbnet.prepare` does, whose peak memory is printed; its floor is the bare decoding on the same number of threads.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg

from bdbnet.datasets import load_manifest
from bdbnet.datasets.checking import check_images, usable_cores
from bdbnet.datasets.synthetic.objects import render_object

SPLITS = {"train": (1, 11_318, 59_551), "test": (11_319, 11_316, 60_502)}
LINKS = 40_000  # of one file; file systems allow some 65,000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="part of the dataset, for a quick look")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.check:
        check(options.check)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "Stanford_Online_Products"
        images = write(root, options.share)
        manifest_times, floor_times = [], []
        for _ in range(options.rounds):
            began = time.perf_counter()
            for name in SPLITS:
                (root / f"Ebay_{name}.txt").read_text()
            for place in [entry for entry in root.iterdir() if entry.is_dir()]:
                os.listdir(place)  # noqa: PTH208
            floor_times.append(time.perf_counter() - began)
            began = time.perf_counter()
            load_manifest("sop", root)
            manifest_times.append(time.perf_counter() - began)
        took, floor = statistics.median(manifest_times), statistics.median(floor_times)
        print(
            f"manifest of {images:,} images: {took:.2f} s; lists and folders alone {floor:.2f} s: {took / floor:.1f} times"
        )
        command = [sys.executable, __file__, "--check", str(root)]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"checking {images:,} images of 375 x 500 on {usable_cores()} cores: {done['seconds']:.0f} s, peak memory "
            f"{done['mib']:.0f} MiB; bare decoding {done['floor']:.0f} s: {done['seconds'] / done['floor']:.2f} times"
        )


def check(root: Path) -> None:
    manifest = load_manifest("sop", root)
    began = time.perf_counter()
    checked = check_images(manifest, progress=False)
    seconds = time.perf_counter() - began
    assert not checked.unreadable
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the floor, which must not raise it
    part = manifest.paths[:: max(len(manifest.paths) // 6_000, 1)]
    began = time.perf_counter()
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda path: simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB"), part):
            pass
    floor = (time.perf_counter() - began) * len(manifest.paths) / len(part)
    print(json.dumps({"seconds": seconds, "mib": peak, "floor": floor}))


def write(root: Path, share: float) -> int:
    """The dataset's lists at the published counts, and its images."""
    kinds = [f"kind{number}_final" for number in range(12)]
    for kind in kinds:
        (root / kind).mkdir(parents=True)
    written = 0
    for name, (first, classes, images) in SPLITS.items():
        lines = ["image_id class_id super_class_id path"]
        classes, images = int(classes * share), int(images * share)
        for number in range(images):
            label = first + number % classes
            path = f"{kinds[label % 12]}/{label}_{number // classes}.JPG"
            if written % LINKS == 0:
                source = root / path
                render_object(0, 1 + written // LINKS, 0, (375, 500)).save(source, "JPEG", quality=92)
            else:
                os.link(source, root / path)
            written += 1
            lines.append(f"{written} {label} {label % 12 + 1} {path}")
        (root / f"Ebay_{name}.txt").write_text("\n".join(lines) + "\n")
    return written


if __name__ == "__main__":
    main()
