"""Time of a re-ranked evaluation with ranking lists and error analysis beside re-ranking alone.

    python experiments/benchmarks/evaluation_passes.py
    python experiments/benchmarks/evaluation_passes.py --embeddings outputs/embed/market

Lists and the facts that the analysis needs come from the pass over the re-ranked distances that gives the metrics, so the
images are re-ranked once. Beyond that an evaluation ranks by plain distances, whose metrics stand beside the re-ranked
ones, counts the distances of all pairs, draws confidence intervals and writes the files.

FOLDER is what `python -m bdbnet.embed dataset=market1501 split=test output=FOLDER` wrote: the queries, then the gallery.
Without it the embeddings are clusters of Market-1501's size, as in reranking.py. Both ways take turns, so that other load
on the machine hits both alike; medians are given.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from reranking import Case, embeddings
from retrieval_metrics import seconds
from safetensors.numpy import load_file

from bdbnet.evaluation.error_analysis import analyse
from bdbnet.evaluation.ranking_lists import write_ranking_lists
from bdbnet.evaluation.test_set import TestSet
from bdbnet.results import Protocol, Result
from bdbnet.retrieval import KReciprocal, ReIDMetrics, reranked_blocks


def stored(folder: Path, query: int) -> tuple[np.ndarray, pd.DataFrame]:
    table = pd.read_parquet(folder / "manifest.parquet")
    table["split"] = np.where(np.arange(len(table)) < query, "query", "gallery")
    return load_file(folder / "embeddings.safetensors")["embeddings"], table


def made(query: int, gallery: int, dimensions: int) -> tuple[np.ndarray, pd.DataFrame]:
    queries, images, matches = embeddings(Case(query, gallery, dimensions, torch.get_num_threads(), None))
    split = ["query"] * query + ["gallery"] * gallery
    table = pd.DataFrame({"path": [f"{name}/{row}.jpg" for row, name in enumerate(split)], "split": split})
    table["label"] = np.concatenate([matches.query_labels, matches.gallery_labels])
    table["camera"] = np.concatenate([matches.query_cameras, matches.gallery_cameras])
    return np.concatenate([queries, images]), table


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A re-ranked evaluation with lists and analysis beside re-ranking alone."
    )
    parser.add_argument("--embeddings", type=Path, metavar="FOLDER", help="stored embeddings of queries and gallery")
    parser.add_argument("--query", type=int, default=3368, help="queries, which come first among stored embeddings")
    parser.add_argument("--gallery", type=int, default=15913)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.embeddings is None:
        rows, table = made(options.query, options.gallery, options.dimensions)
    else:
        rows, table = stored(options.embeddings, options.query)
    is_query = (table["split"] == "query").to_numpy()
    labels, cameras = (table[name].to_numpy() for name in ("label", "camera"))

    def rerank() -> None:
        for _ in reranked_blocks(rows[is_query], rows[~is_query], KReciprocal()):
            pass

    def evaluate() -> None:
        test = TestSet(ReIDMetrics(rerank=KReciprocal()), table, top_k=options.top_k, facts=True)
        batch = {"label": labels, "camera": cameras, "is_query": is_query, "index": np.arange(len(rows))}
        test.add(torch.tensor(rows), {name: torch.tensor(values) for name, values in batch.items()})
        evaluated = test.evaluate()
        result = Result(
            kind="evaluate", metrics=evaluated.metrics, protocol=Protocol("reid", "benchmark", (256, 128)), seed=0,
            checkpoint="last", data={"name": "benchmark", "fingerprint": ""}, config={},
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            write_ranking_lists(evaluated, table, Path(folder))
            analyse(test, Path(folder), result)

    taken: dict[str, list[float]] = {"re-ranking alone": [], "evaluation with lists and analysis": []}
    for _ in range(options.repeats):
        for name, call in zip(taken, (rerank, evaluate), strict=True):
            taken[name].append(seconds(call))
    print(f"{is_query.sum()} x {(~is_query).sum()} x {rows.shape[1]} {rows.dtype}, {options.top_k} images a list")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    alone, whole = (statistics.median(values) for values in taken.values())
    for name, values in taken.items():
        print(f"{name:35s} median {statistics.median(values):7.2f} s   best {min(values):7.2f} s")
    print(f"ratio {whole / alone:.2f}")


if __name__ == "__main__":
    main()
