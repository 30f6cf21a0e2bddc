"""How long a run would take here: builds its network with random weights and times some steps on noise.

    python -m sousa_engine.runs.timing ROOT CONFIG.json     # prints {"step_s": ..., "start_s": ..., ...}
    python -m sousa_engine.runs.timing ROOT CONFIGS.json --lock-fd N     # run by `start`: times each of several

Needs neither data nor weights. The timings are kept in the workspace, for the plans of sweeps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import RunError
from sousa_engine.workspace import Workspace, intake, processes, run_files

STEPS, WARM_UP = 6, 2


@dataclass(frozen=True, kw_only=True)
class Pace:
    """step_s: seconds per optimiser step. start_s: seconds from the start of the process to its first step."""

    step_s: float
    start_s: float
    peak_memory_mib: float


def key(config: RunConfig) -> str:
    """Equal for runs whose steps cost the same: ranks and rates hardly matter, nor which modules, only how many."""
    parts = (
        config.model.variant,
        config.lora.method,
        len(config.lora.targets),
        config.data.dataset,
        config.data.clip_s,
        config.training.batch_size,
        config.training.precision,
        config.device,
    )
    return json.dumps(parts)


def known(workspace: Workspace) -> dict[str, Pace]:
    """The timings of this workspace by `key`. Empty if there are none, or if the file is unreadable: it is a cache."""
    try:
        return {k: Pace(**values) for k, values in json.loads(_file(workspace).read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}


def measure(
    workspace: Workspace, configs: Sequence[RunConfig], tell: intake.Tell = lambda doing, done, total: None
) -> dict[str, Pace]:
    """Time one run of each kind that is not known yet, in sequence, each in a separate process.

    tell: called before each with its title, how many are done and how many there are. Returns all known timings.
    Raises RunError with the error of a timing that failed.
    """
    found = known(workspace)
    for done, config in enumerate(configs):
        if key(config) in found:
            continue
        tell(config.title, done, len(configs))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / run_files.CONFIG
            file.write_text(config.model_dump_json())
            command = [sys.executable, "-m", "sousa_engine.runs.timing", str(workspace.root), str(file)]
            timed = subprocess.run(
                command, env=processes.environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        if timed.returncode:
            last = (timed.stderr.strip().splitlines() or ["it printed no error message"])[-1]
            raise RunError(f"Timing {config.title} failed: {last}")
        found[key(config)] = Pace(**json.loads(timed.stdout.strip().splitlines()[-1]))
        _file(workspace).parent.mkdir(parents=True, exist_ok=True)
        run_files.write_json(_file(workspace), {k: asdict(pace) for k, pace in found.items()})
    return found


def start(workspace: Workspace, configs: Sequence[RunConfig]) -> bool:
    """`measure` in a process that outlives the caller; `intake.look(folder(workspace))` shows its progress.

    False if another process is already timing. Raises WorkspaceError if the workspace cannot be written to.
    """
    where = folder(workspace)
    asked = where / "asked.json"
    wanted = {"configs": [config.model_dump(mode="json") for config in configs]}
    command = [sys.executable, "-m", "sousa_engine.runs.timing", str(workspace.root), str(asked)]
    return intake.start_in(where, command, prepare=lambda: run_files.write_json(asked, wanted))


def folder(workspace: Workspace) -> Path:
    """Where the timing process holds a lock and notes its progress, as an intake of weights does."""
    return workspace.cache / "probes"


def _file(workspace: Workspace) -> Path:
    return workspace.cache / "probes.json"


def main(arguments: list[str]) -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m sousa_engine.runs.timing")
    parser.add_argument("root", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lock-fd", type=int)
    options = parser.parse_args(arguments)
    workspace = Workspace(root=options.root)
    if options.lock_fd is None:
        config = RunConfig.model_validate_json(options.file.read_text())
        print(json.dumps(asdict(_timed(config, workspace, began))))
        return
    with intake.taking_in(folder(workspace), lock_fd=options.lock_fd) as tell:
        configs = [RunConfig.model_validate(values) for values in json.loads(options.file.read_text())["configs"]]
        measure(workspace, configs, tell)


def _timed(config: RunConfig, workspace: Workspace, began: float) -> Pace:
    from sousa_engine.data.dataset import DataSet

    manifest = DataSet.open(config.data, workspace).manifest  # before imports that take seconds: it may not exist
    import numpy as np
    import torch
    from accelerate import Accelerator

    from sousa_engine import backbones, frontends
    from sousa_engine.training import adapters, precision

    accelerator = Accelerator(
        cpu=config.device == "cpu", mixed_precision="bf16" if config.training.precision == "bf16" else "no"
    )
    precision.use_fast_float32()
    classes = len(manifest.classes)
    network = backbones.open_network(
        config.model.variant, num_classes=classes, weights="random", workspace=workspace, seed=config.seed
    )
    samples = round(manifest.clip_s * network.spec.sample_rate_hz)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, samples), dtype=np.float32))
    features = frontends.log_mel(0.1 * noise, network.spec).repeat(config.training.batch_size, 1, 1)
    module: Any = adapters.attach(network, config.lora, total_steps=STEPS + WARM_UP)
    groups = adapters.parameter_groups(module, network.head_path, lr=1e-4, head_lr=1e-4, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    module, optimizer = accelerator.prepare(module, optimizer)
    features = features.to(accelerator.device)
    target = torch.arange(config.training.batch_size, device=accelerator.device) % classes
    module.train()
    start_s, times = 0.0, []
    for step in range(1, STEPS + WARM_UP + 1):
        at = time.monotonic()
        loss = torch.nn.functional.cross_entropy(module(features=features).float(), target)
        added = adapters.extra_loss(accelerator.unwrap_model(module))
        accelerator.backward(loss if added is None else loss + added)
        optimizer.step()
        adapters.after_step(accelerator.unwrap_model(module), step)
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for a GPU
        if step == WARM_UP:
            start_s = time.monotonic() - began
        elif step > WARM_UP:
            times.append(time.monotonic() - at)
    return Pace(step_s=float(np.median(times)), start_s=start_s, peak_memory_mib=processes.peak_memory_mib())


if __name__ == "__main__":
    main(sys.argv[1:])
