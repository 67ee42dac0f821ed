"""Writes the embeddings of two folders of `bdbnet.embed` in every format that `bdbnet.evaluate features=` reads.

    python experiments/features/write_dumps.py outputs/embed/query outputs/embed/gallery outputs/dumps

Each is written as the program that it stands for writes it: names, order and types of its own.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from scipy.io import savemat

from bdbnet.gallery.store import EmbeddingStore


def main(query: str, gallery: str, output: str) -> None:
    stores = {"query": EmbeddingStore.open(query), "gallery": EmbeddingStore.open(gallery)}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    of = {
        side: (
            np.array(store.embeddings),
            store.table["label"].to_numpy().copy(),
            store.table["camera"].to_numpy().copy(),
            store.table["path"],
        )
        for side, store in stores.items()
    }
    plain: dict[str, np.ndarray] = {}
    for side, (embeddings, labels, cameras, _) in of.items():
        plain |= {f"{side}_embeddings": embeddings, f"{side}_labels": labels, f"{side}_cameras": cameras}
    np.savez(folder / "plain.npz", **plain)
    safetensors.numpy.save_file(plain, folder / "plain.safetensors")
    torch.save({name: torch.from_numpy(values) for name, values in plain.items()}, folder / "plain.pt")
    # One array alone, in the order of the data set.
    np.save(folder / "plain.npy", np.concatenate([of["query"][0], of["gallery"][0]]))
    # layumi's Person_reID_baseline: rows of labels, as MATLAB has them.
    savemat(
        folder / "pytorch_result.mat",
        {
            f"{side}_{name}": value
            for side, (embeddings, labels, cameras, _) in of.items()
            for name, value in (("f", embeddings), ("label", labels.tolist()), ("cam", cameras.tolist()))
        },
    )
    # torchreid's names for what its engine compares: qf, q_pids, q_camids, gf, ...
    torch.save(
        {
            name: value
            for side, (embeddings, labels, cameras, _) in of.items()
            for name, value in (
                (f"{side[0]}f", torch.from_numpy(embeddings)),
                (f"{side[0]}_pids", labels),
                (f"{side[0]}_camids", cameras),
            )
        },
        folder / "torchreid.pt",
    )
    # open-metric-learning: its cache of an inference is one tensor, in the order of its table.
    torch.save(torch.from_numpy(np.concatenate([of["query"][0], of["gallery"][0]])), folder / "oml_inference_cache.pth")
    rows = [
        pd.DataFrame(
            {
                "path": [str((stores[side].root / path).absolute()) for path in paths], "label": labels, "category": cameras,
                "split": "validation", "is_query": side == "query", "is_gallery": side == "gallery", "sequence": cameras,
            }
        )
        for side, (_, labels, cameras, paths) in of.items()
    ]  # fmt: skip
    pd.concat(rows).to_csv(folder / "oml_df.csv", index=False)
    # A table with a row for each image.
    table = pd.concat(
        [
            pd.DataFrame({"path": paths, "label": labels, "camera": cameras, "split": side})
            for side, (_, labels, cameras, paths) in of.items()
        ]
    )
    embeddings = np.concatenate([of["query"][0], of["gallery"][0]])
    columns = pa.Table.from_pandas(table, preserve_index=False)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    pq.write_table(columns.append_column("embedding", lists), folder / "table.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:4])
