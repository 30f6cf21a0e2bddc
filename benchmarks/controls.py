"""Does the embedded pre-training help? Trains the rows of a table in RESULTS.md as normal runs, three seeds each.

    python -m benchmarks.controls [--models beats-mini ...] [--rows lora random ...] [--seeds 0 1 2] [--workspace DIR]

Queues the missing runs, waits, writes benchmarks/results/controls-<model>.json and prints the table of RESULTS.md. The
runs are kept in a separate workspace, so the script can be stopped and started again: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from sousa_engine import backbones, targets
from sousa_engine.analysis.significance import wilson_of_mean
from sousa_engine.core import grammar
from sousa_engine.core.records import Run, RunStatus
from sousa_engine.runs import orders, prepare
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

RESULTS = Path(__file__).with_name("results")
MINIS = [name for name, variant in backbones.VARIANTS.items() if variant.embedded]
ROWS = {
    "probe": ("linear probe (head alone)", ["lora=probe"]),
    "few": ("LoRA r=8 on {few}", ["lora.targets={few}"]),
    "lora": ("LoRA r=8 on {all}", ["lora.targets={all}"]),
    "full": ("full fine-tuning", ["lora.method=full", "training.lr=5e-4"]),
    "random": ("LoRA r=8 on {all}, random weights (control)", ["lora.targets={all}", "model.weights=random"]),
}
TITLES = {
    "probe": "the head alone, 10 epochs",
    "few": "LoRA r=8 on attention, or SE",
    "lora": "LoRA r=8 on attention + MLP, or SE + pointwise",
    "full": "full fine-tuning",
    "random": "the same LoRA on random weights (control)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs") / "controls")
    parser.add_argument("--models", nargs="+", choices=MINIS, default=MINIS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    workspace = Workspace(root=options.workspace.resolve())
    wanted = {
        (model, row, seed): prepare.prepare(grammar.parse(words(model, row, seed))).config
        for model in options.models
        for row in options.rows
        for seed in options.seeds
    }
    found = train_all(workspace, wanted)
    RESULTS.mkdir(exist_ok=True)
    for model in options.models:
        table = [
            row_of(model, row, [found[model, row, seed] for seed in options.seeds], workspace) for row in options.rows
        ]
        (RESULTS / f"controls-{model}.json").write_text(json.dumps(table, indent=1) + "\n")
    print(summary([name for name in MINIS if (RESULTS / f"controls-{name}.json").exists()]))


def summary(models: list[str]) -> str:
    """The table of RESULTS.md, from the results on disk: a column per backbone; mean of seeds, interval, trainable."""
    tables = {model: json.loads((RESULTS / f"controls-{model}.json").read_text()) for model in models}
    lines = [f"| what trains | {' | '.join(f'`{model}`' for model in models)} |", "|---|" + "---|" * len(models)]
    for row, title in TITLES.items():
        cells = []
        for table in tables.values():
            line = next((line for line in table if line["row"] == row), None)
            cells.append(
                "–"
                if line is None
                else f"**{100 * line['mean']:.1f} %** ({100 * line['low']:.1f} to {100 * line['high']:.1f}), "
                f"{_thousands(line['trainable'])}"
            )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _thousands(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def words(model: str, row: str, seed: int) -> list[str]:
    sets = _sets(model)
    return [
        f"model={model}", "data=tiny", f"seed={seed}", f"name={model} {row}", *(w.format(**sets) for w in ROWS[row][1])
    ]  # fmt: skip


def _sets(model: str) -> dict[str, str]:
    """The smallest recommended set of a backbone, and the one a run gets by default."""
    outline = targets.load_outline(model)
    return {"few": next(iter(targets.recommended_sets(outline))), "all": targets.default_set(outline)}


def train_all(workspace: Workspace, wanted: dict) -> dict[tuple[str, str, int], Run]:
    """Queue the missing runs and wait for all of them. A run that did not finish ends the benchmark."""
    with Store.open(workspace) as store:
        runs = {run.config.model_copy(update={"device": "auto"}): run for run in store.runs.all()}
        mine = {
            key: runs[config] if config in runs else orders.start(workspace, config, created_by="benchmark")
            for key, config in wanted.items()
        }
        with tqdm(total=len(mine), desc="runs", unit="run") as bar:
            while True:
                mine = {key: store.runs.get(run.id) for key, run in mine.items()}
                over = [run for run in mine.values() if run.status.is_over]
                bar.n = len(over)
                bar.refresh()
                for run in over:
                    if run.status is not RunStatus.FINISHED:
                        raise SystemExit(f"run {run.id} ({run.title}) {run.status.value}: {run.reason}")
                if len(over) == len(mine):
                    return mine
                time.sleep(1)


def row_of(model: str, row: str, runs: list[Run], workspace: Workspace) -> dict:
    """Seeds share the test clips, so the pooled interval reflects clips, not seeds; each seed is listed."""
    with Store.open(workspace) as store:
        summaries = [store.metrics.summaries([run.id])[run.id]["test/accuracy"] for run in runs]
    accuracies = [summary.last for summary in summaries]
    n = summaries[0].n
    mean = sum(accuracies) / len(accuracies)
    interval = wilson_of_mean(mean, n)
    return {
        "row": row,
        "title": ROWS[row][0].format(**_sets(model)),
        "runs": [run.id for run in runs],
        "weights": runs[0].weights_label,
        "versions": runs[0].facts["versions"],
        "trainable": runs[0].facts["parameters"]["trainable"],
        "accuracies": accuracies,
        "mean": mean,
        "low": interval.low,
        "high": interval.high,
        "n": n,
        "train_s": math.fsum(run.facts["train_s"] for run in runs) / len(runs),
    }


if __name__ == "__main__":
    main()
