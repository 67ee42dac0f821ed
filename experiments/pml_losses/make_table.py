"""Print the table of README.md from the records beside this file."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

results: dict[str, list[Any]] = defaultdict(list)
for path in sorted(Path(__file__).resolve().parent.glob("*/result.json")):
    result = json.loads(path.read_text())
    results[result["config"]["loss"]["name"]].append(result)

print("| loss | Rank-1 (seeds) | mAP (seeds) | seconds of training |\n|---|---|---|---|")
for name, runs in results.items():
    cells = []
    for metric in ("rank1", "mAP"):
        values = [100 * run["metrics"][metric] for run in runs]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f}{spread} ({', '.join(f'{value:.1f}' for value in values)})")
    print(f"| {name} | {' | '.join(cells)} | {mean(run['seconds']['train'] for run in runs):.0f} |")
