"""The strongest simple control: a linear probe that has converged, on the frozen embedded backbones.

    python -m benchmarks.probe [--workspace DIR]

The rows "linear probe" of benchmarks.controls train the head with the recipe of a run, 10 epochs with augmentation,
which does not converge. This script fits a logistic regression to the standardised inputs of the head of each backbone
on the train clips of `tiny`. The regularisation is selected by valid accuracy, and test is evaluated once. There are no
seeds. Writes benchmarks/results/probe.json and prints the table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.controls import MINIS
from sousa_engine import backbones
from sousa_engine.analysis.significance import wilson
from sousa_engine.core.config import DataConfig
from sousa_engine.data.clips import Manifest
from sousa_engine.data.features import feature_cache
from sousa_engine.data.manifest import open_dataset
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = Path(__file__).with_name("results") / "probe.json"
CONTROLS = RESULTS.parent
STRENGTHS = [10.0**power for power in range(-4, 5)]  # C of scikit-learn: the inverse of the regularisation
BATCH = 32  # clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="where features are cached (default: a temporary folder)")
    options = parser.parse_args()
    manifest = open_dataset(DataConfig(dataset="tiny"))
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(root=(options.workspace or Path(folder)).resolve())
        rows = [fit(model, manifest, seen_by_head(model, manifest, workspace)) for model in MINIS]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(summary())


def seen_by_head(model: str, manifest: Manifest, workspace: Workspace) -> np.ndarray:
    """(clips, width) float32: the input of the head, for every clip, from the frozen network in eval mode.

    HTS-AT's head is a convolution over a map (channels, frequency, time) whose answers are averaged over time: there
    the map is averaged over time first.
    """
    import torch

    network = backbones.open_network(model, num_classes=len(manifest.classes), workspace=workspace)
    array = feature_cache(manifest, network.spec, workspace).array
    seen: list[np.ndarray] = []
    head = network.module.get_submodule(network.head_path)
    head.register_forward_pre_hook(lambda _, inputs: seen.append(_pooled(inputs[0]).numpy()))
    network.module.eval()
    with torch.no_grad():
        for start in range(0, len(array), BATCH):
            network.module(features=torch.from_numpy(array[start : start + BATCH].astype(np.float32)))
    return np.concatenate(seen)


def _pooled(seen: Tensor) -> Tensor:
    return seen.mean(-1).flatten(1) if seen.dim() == 4 else seen.flatten(1)


def fit(model: str, manifest: Manifest, seen: np.ndarray) -> dict:
    """Fitted on train, selected on valid (the strongest regularisation among equals), evaluated once on test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array([clip.label for clip in manifest.clips])
    rows = {name: np.array([clip.split == name for clip in manifest.clips]) for name in ("train", "valid", "test")}
    tried = {}
    for strength in STRENGTHS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=20_000))
        probe.fit(seen[rows["train"]], labels[rows["train"]])
        tried[strength] = (probe.score(seen[rows["valid"]], labels[rows["valid"]]), probe)
    chosen = max(tried, key=lambda strength: (tried[strength][0], -strength))
    probe = tried[chosen][1]
    right = int((probe.predict(seen[rows["test"]]) == labels[rows["test"]]).sum())
    found = wilson(right, int(rows["test"].sum()))
    return {
        "model": model,
        "width": seen.shape[1],
        "C": chosen,
        "converged": bool(max(probe[-1].n_iter_) < 20_000),
        "valid": {f"{strength:g}": accuracy for strength, (accuracy, _) in tried.items()},
        "test": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
    }


def summary() -> str:
    """The table of RESULTS.md, from the results on disk: the converged probe next to the results of runs."""
    lines = [
        "| backbone | head alone, 10 epochs | converged linear probe | LoRA r=8 on the wide set |",
        "|---|---|---|---|",
    ]
    for row in json.loads(RESULTS.read_text()):
        rows = json.loads((CONTROLS / f"controls-{row['model']}.json").read_text())
        means = {line["row"]: line for line in rows}
        cells = [_cell(line["mean"], line) for line in (means["probe"], row | {"mean": row["test"]}, means["lora"])]
        lines.append(f"| `{row['model']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(share: float, line: dict) -> str:
    return f"{100 * share:.1f} % ({100 * line['low']:.1f} to {100 * line['high']:.1f})"


if __name__ == "__main__":
    main()
