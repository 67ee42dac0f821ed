"""Writes the embeddings of two folders of `bdbnet.embed` in every format and evaluates each with `bdbnet.evaluate features=`.

    python experiments/features/run.py outputs/embed/query outputs/embed/gallery data outputs/dumps

One process types all commands, so that the libraries are imported once; the seconds are those of a command without that.
"""

import contextlib
import io
import json
import shlex
import sys
import time
from pathlib import Path

import write_dumps

FORMATS = {
    ".npz": "features={dumps}/plain.npz",
    ".npy": "features={dumps}/plain.npy dataset=market1501 data_root={data}",
    ".pt": "features={dumps}/plain.pt",
    ".safetensors": "features={dumps}/plain.safetensors",
    ".parquet": "features={dumps}/table.parquet",
    "layumi's .mat": "features={dumps}/pytorch_result.mat",
    "torchreid's names, .pt": "features={dumps}/torchreid.pt",
    "open-metric-learning's cache and its table": (
        "features={dumps}/oml_inference_cache.pth dataset=table dataset.manifest={dumps}/oml_df.csv dataset.root=/"
    ),
    "... with the data set": "features={dumps}/oml_inference_cache.pth dataset=market1501 data_root={data}",
    "folders of bdbnet.embed": "features={gallery} queries={query}",
    "... with the data set ": "features={gallery} queries={query} dataset=market1501 data_root={data}",
}


def main(query: str, gallery: str, data: str, dumps: str) -> None:
    write_dumps.main(query, gallery, dumps)
    import bdbnet.evaluation.evaluate_features
    import bdbnet.reporting.terminal  # noqa: F401
    from bdbnet.evaluate import main as evaluate

    print("| format | Rank-1, % | mAP, % | seconds | of these ranking | command |\n|---|---|---|---|---|---|")
    for number, (name, settings) in enumerate(FORMATS.items()):
        arguments = shlex.split(settings.format(query=query, gallery=gallery, data=data, dumps=dumps))
        sys.argv = [
            "evaluate", *arguments, f"output_root={dumps}/outputs", f"run_name={number}", "overwrite=true", "evaluation.top_k=0",
        ]  # fmt: skip
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluate()
        seconds = time.perf_counter() - began
        result = json.loads((Path(dumps) / "outputs" / "evaluate" / str(number) / "result.json").read_text())
        found = result["metrics"]
        shown = settings.replace("{dumps}/", "").format(query="query", gallery="gallery", data="data")
        print(
            f"| {name.strip()} | {100 * found['rank1']:.1f} | {100 * found['mAP']:.1f} | {seconds:.1f} | "
            f"{result['seconds']['evaluate']:.1f} | `{shown}` |",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:5])
