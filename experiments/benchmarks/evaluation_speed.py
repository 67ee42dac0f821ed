"""A whole evaluation against the forward passes in it, the first time and when the images are prepared already.

    python experiments/benchmarks/evaluation_speed.py dataset=market1501                                      on one GPU
    python experiments/benchmarks/evaluation_speed.py dataset=market1501 evaluation.precision=bf16-mixed
    python experiments/benchmarks/evaluation_speed.py backbone=osnet_x0_25 loading.cache=packed               on a CPU

Arguments are settings of `bdbnet.train` (default: rendered people); the network has random weights. An evaluation is what
training does every so many epochs: all test images to embeddings, ranking, metrics. The first packs nothing (the cache is
made before), reads the packed cache and, with `loading.cache=device`, leaves the images on the GPU, where the later ones find
them. The floor is the embedder's own pass over one batch that lies on the device, as often as there are batches. Evaluation
and floor take turns; medians are given, and the time for the ranking lists, which follow the last evaluation of a training.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from bdbnet.config import config_dir
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.evaluate import build_test_set
from bdbnet.evaluation.load import settings_of
from bdbnet.evaluation.module import EvaluationModule
from bdbnet.evaluation.network import build_network
from bdbnet.evaluation.ranking_lists import write_ranking_lists
from bdbnet.evaluation.trainer import build_trainer, keep_freed_memory, quiet_libraries, seed_everything
from bdbnet.loading import Preprocessing
from bdbnet.loading.from_config import build_data, build_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="later evaluations (default: %(default)s)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    quiet_libraries()
    keep_freed_memory()
    warnings.filterwarnings("ignore", ".*embedding of zeros.*")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(
            "train", ["run_name=none", "backbone.weights=none", "trainer.precision=32-true", *options.settings]
        )
    seed_everything(config.seed)
    manifest = build_manifest(config)
    data = build_data(config, manifest, channels_last=True)
    network, _ = build_network(config, 0)
    preprocessing = Preprocessing(data.test_transform.image_size, data.test_transform.pad_to_square)
    embedder = Embedder(network, preprocessing, settings_of(config.evaluation), channels_last=True)
    test = build_test_set(config, manifest, top_k=config.evaluation.top_k)
    module, folder = EvaluationModule(embedder, [test]), Path(tempfile.mkdtemp())
    config.trainer.channels_last = True
    trainer = build_trainer(config, folder, [])
    device = trainer.strategy.root_device
    count, size = len(data.test_table), config.loading.test_batch_size
    batch = torch.zeros(size, *data.test_transform.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def passes() -> None:
        with torch.inference_mode():
            moved = batch.to(device)
            for begin in range(0, count, size):
                embeddings = embedder.embed_prepared(moved[: count - begin])
        embeddings.cpu()  # waits for a GPU

    def evaluate() -> None:
        trainer.validate(module, data, verbose=False)

    embedder.network.to(device).eval()
    data.trainer = trainer
    data.test_dataloader()  # packs where nothing is packed yet
    passes()
    first, floor, later = seconds(evaluate), [], []
    for _ in range(options.rounds):
        embedder.network.to(device).eval()  # which Lightning takes back
        floor.append(seconds(passes))
        later.append(seconds(evaluate))
    lists = seconds(lambda: write_ranking_lists(test.evaluated, test.table, folder))  # type: ignore[arg-type]
    alone, again = statistics.median(floor), statistics.median(later)
    print(
        f"{manifest.name}: {count:,} images, batches of {size}, {config.evaluation.precision}, cache {data.cache}, on {device}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"forward passes    {alone:7.2f} s   {count / alone:7,.0f} images/s")
    print(f"first evaluation  {first:7.2f} s   ratio {first / alone:.2f}")
    print(f"later evaluation  {again:7.2f} s   ratio {again / alone:.2f}")
    print(f"ranking lists     {lists:7.2f} s")


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
