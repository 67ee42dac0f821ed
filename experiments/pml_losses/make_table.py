"""Print the table of README.md from the records beside this file."""

import json
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent

print("| loss | Rank-1 | mAP | seconds of training |\n|---|---|---|---|")
for folder in sorted(path for path in HERE.iterdir() if path.is_dir() and any(path.glob("seed=*/result.json"))):
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("seed=*/result.json"))]
    cells = []
    for name in ("rank1", "mAP"):
        values = [100 * result["metrics"][name] for result in results]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f}{spread} ({', '.join(f'{value:.1f}' for value in values)})")
    seconds = mean(result["seconds"]["train"] for result in results)
    print(f"| {folder.name} | {' | '.join(cells)} | {seconds:.0f} |")
