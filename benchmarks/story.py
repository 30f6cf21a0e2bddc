"""The sweep in RESULTS.md: four backbones x two target sets x three seeds on `tiny`, 10 epochs, as users run it.

    python -m benchmarks.story [--workspace DIR]

Starts the sweep (or continues an existing one), waits until it has ended, computes the baselines of the data set,
writes benchmarks/results/story.json and prints the part that RESULTS.md shows. The script can be stopped and started
again: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks import controls
from sousa_engine import report
from sousa_engine.analysis import baselines
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import DataConfig
from sousa_engine.core.records import RunStatus, Sweep
from sousa_engine.data import manifest as manifests
from sousa_engine.runs import ensure, sweep_orders
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

RESULTS = Path(__file__).with_name("results") / "story.json"
NAME = "Four backbones, two target sets"
SPEC = {
    "name": NAME,
    "base": {"data": {"dataset": "tiny"}, "training": {"max_epochs": 10}},
    "axes": {"model": controls.MINIS, "targets": ["core", "default"]},
    "seeds": [0, 1, 2],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs") / "story")
    workspace = Workspace(root=parser.parse_args().workspace.resolve())
    workspace.root.mkdir(parents=True, exist_ok=True)
    with Store.open(workspace) as store:
        made = train(store)
        RESULTS.write_text(json.dumps(record(store, made), indent=1) + "\n")
    print(summary())
    print(baseline_line())


def train(store: Store) -> Sweep:
    """The finished sweep; it is started if it does not exist."""
    made = next((found for found in store.sweeps.all() if found.name == NAME), None)
    made = made or sweep_orders.start(store.workspace, sweep_spec.build(SPEC), created_by="benchmark")
    follow(store, made)
    baselines.compute(manifests.open_dataset(DataConfig(dataset="tiny")), store.workspace)
    return made


def follow(store: Store, made: Sweep) -> None:
    with tqdm(total=sweep_spec.build(made.spec).run_count, desc="runs", unit="run") as bar:
        while True:
            ensure.ensure(store.workspace)
            runs = store.sweeps.runs(made.id)
            bar.n = sum(run.status.is_over for run in runs)
            bar.refresh()
            if bar.n == bar.total:
                return
            time.sleep(1)


def record(store: Store, made: Sweep) -> dict:
    """The part of the `analyze` report that RESULTS.md shows."""
    found = report.read(store, sweep=made)
    unfinished = [run for run in found.runs if run.status is not RunStatus.FINISHED]
    if unfinished:
        raise SystemExit(f"{len(unfinished)} runs did not finish: {[(run.title, run.reason) for run in unfinished]}")
    return {
        "runs": [
            {
                "id": run.id,
                "setting": found.label_of(run),
                "seed": run.config.seed,
                "weights": run.weights_label,
                "test_accuracy": result.test.value,
                "n": result.test.n,
                "valid_accuracy": result.best_valid.value,
            }
            for run, result in zip(found.runs, found.results, strict=True)
        ],
        "settings": [
            {
                "setting": row.label,
                "model": row.runs[0].config.model.variant,
                "targets": row.runs[0].config.lora.target_set,
                "mean": row.mean_test,
                "low": row.test_interval.low,
                "high": row.test_interval.high,
                "seeds": list(row.test),
                "n": row.clips,
                "trainable": row.trainable,
            }
            for row in sorted(found.rows, key=lambda row: -row.mean_test)
        ],
        "verdict": found.conclusion.verdict,
        "baselines": [
            {"name": one.short, "value": one.accuracy.value, "low": one.accuracy.low, "high": one.accuracy.high}
            for one in baselines.find(store.workspace, found.runs[0].config)
        ],
        "versions": found.runs[0].facts["versions"],
    }


def summary() -> str:
    """Table and verdict of RESULTS.md, from the results on disk, with a control on random weights for each family."""
    story = json.loads(RESULTS.read_text())
    lines = ["| setting | targets | trainable | test accuracy, three seeds | random weights |", "|---|---|---|---|---|"]
    for row in story["settings"]:
        seeds = f"{100 * min(row['seeds']):.1f} to {100 * max(row['seeds']):.1f}"
        lines.append(
            f"| {row['setting']} | {row['targets']} | {row['trainable']:,} | **{100 * row['mean']:.1f} %** "
            f"({100 * row['low']:.1f} to {100 * row['high']:.1f}; seeds {seeds}) "
            f"| {100 * control(row['model']):.1f} % |"
        )
    return "\n".join(lines) + f"\n\n> {story['verdict']}"


def baseline_line() -> str:
    """The baselines in RESULTS.md, from the results on disk."""
    found = json.loads(RESULTS.read_text())["baselines"]
    return ", ".join(
        f"{one['name']} {100 * one['value']:.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f})" for one in found
    )


def control(model: str) -> float:
    """Mean test accuracy of LoRA on the wide set from random weights, as benchmarks.controls measured it."""
    rows = json.loads((controls.RESULTS / f"controls-{model}.json").read_text())
    return next(row["mean"] for row in rows if row["row"] == "random")


if __name__ == "__main__":
    main()
