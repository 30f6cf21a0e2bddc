"""The ratios in RESULTS.md; each pair is measured side by side, since only ratios are comparable across machines.

    python -m benchmarks.run            # `make bench`

Measures CPU time of this process, best of several interleaved tries per side. Writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sousa_engine.workspace import processes

RESULTS = Path(__file__).with_name("results") / "speed.json"
TRIES = 5


def main() -> None:
    os.environ.update(processes.environment())  # before PyTorch's threads: time spent spinning is not work
    rows = [cached_features(), matched_input(), outline(), live_poll()]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(summary())


def summary() -> str:
    """The table of RESULTS.md, from the results on disk."""
    lines = ["| instead of | the engine does | times cheaper |", "|---|---|---:|"]
    for row in json.loads(RESULTS.read_text()):
        lines.append(f"| {row['instead_of']} | {row['does']} | {row['factor']:.2g} |")
    return "\n".join(lines)


def factor(slow: Callable[[], object], fast: Callable[[], object], tries: int = TRIES) -> float:
    """CPU time of `slow` divided by that of `fast`; the best try of each counts."""
    times: dict[Callable, list[float]] = {slow: [], fast: []}
    for _ in range(tries):
        for side in (slow, fast):
            began = time.process_time()
            side()
            times[side].append(time.process_time() - began)
    return min(times[slow]) / max(min(times[fast]), 1e-6)


def cached_features() -> dict:
    import torch

    from sousa_engine import backbones, frontends
    from sousa_engine.core.config import DataConfig
    from sousa_engine.data import audio
    from sousa_engine.data.features import feature_cache
    from sousa_engine.data.manifest import open_dataset
    from sousa_engine.workspace import Workspace

    spec = backbones.variant("ast-mini").front_end
    manifest = open_dataset(DataConfig(dataset="micro"))
    with tempfile.TemporaryDirectory() as folder:
        array = feature_cache(manifest, spec, Workspace(root=Path(folder))).array
        rows = np.random.default_rng(0).permutation(len(manifest.clips))[:16]
        waves = [audio.waveform(manifest, manifest.clips[row]) for row in rows]

        def compute():
            return frontends.log_mel(torch.from_numpy(np.stack(waves)), spec)

        def read():
            return torch.from_numpy(array[rows].astype(np.float32))

        return {
            "instead_of": "computing log-mel of a batch of 16 clips at each step",
            "does": "reads them from the memory map",
            "factor": factor(compute, read, 20),
        }


def matched_input() -> dict:
    import torch

    from sousa_engine import backbones
    from sousa_engine.core.config import LoraConfig
    from sousa_engine.targets import load_outline
    from sousa_engine.training import adapters
    from sousa_engine.workspace import default_workspace

    outline = load_outline("ast-base")
    targets = outline.targets([node.path for node in outline.nodes if node.role.startswith(("attention.", "mlp."))])
    network = backbones.open_network("ast-base", num_classes=40, weights="random", workspace=default_workspace())
    module = adapters.attach(network, LoraConfig(targets=targets))

    def step(frames: int):
        features = torch.zeros(2, frames, network.spec.mel_bins)
        module(features=features).logsumexp(-1).sum().backward()

    return {
        "instead_of": "AST-base with LoRA, a step on 2 s clips padded to 1024 frames",
        "does": "the same step on the 198 frames there are",
        "factor": factor(lambda: step(1024), lambda: step(198), 2),
    }


def outline() -> dict:
    def child(code: str) -> Callable[[], float]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    def seconds(code: str) -> float:
        began = time.perf_counter()
        child(code)()
        return time.perf_counter() - began

    live = "from sousa_engine import backbones; backbones.build('ast-base', num_classes=40)"
    stored = "from sousa_engine.targets import load_outline; load_outline('ast-base')"
    pairs = [(seconds(live), seconds(stored)) for _ in range(3)]
    return {
        "instead_of": "building AST-base in a fresh process to show its tree",
        "does": "reads the stored outline in a fresh process (wall time)",
        "factor": min(a for a, _ in pairs) / min(b for _, b in pairs),
    }


def live_poll() -> dict:
    from sousa_engine.core.config import RunConfig
    from sousa_engine.store import Store
    from sousa_engine.store.ledger import Ledger
    from sousa_engine.workspace import Workspace
    from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

    with tempfile.TemporaryDirectory() as folder, Store.open(Workspace(root=Path(folder))) as store:
        run = store.runs.enqueue(RunConfig())
        points = [SpoolPoint("train/loss", step, 1 / step, 1, 16, step) for step in range(1, 20_001)]
        Ledger(store).ingest(run.id, SpoolBatch(start=0, end=1, points=points))
        return {
            "instead_of": "reading all 20,000 points of a curve for a chart",
            "does": "reads some 500 buckets prepared at ingest",
            "factor": factor(
                lambda: store.metrics.curve(run.id, "train/loss", max_points=1_000_000),
                lambda: store.metrics.curve(run.id, "train/loss", max_points=500),
            ),
        }


if __name__ == "__main__":
    main()
