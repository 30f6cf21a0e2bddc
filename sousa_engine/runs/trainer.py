"""`python -m sousa_engine.runs.trainer RUN_DIR`: one run, then exit. The only file that joins floors 1 and 2.

Reads config.json, writes spool.jsonl (metrics, progress, events, facts), predictions.jsonl, adapter/, checkpoints/,
best/ and result.json. In a folder with checkpoints it goes on from the newest good one. Never opens runs.db. Exit
codes: 0 finished, 3 stopped after a checkpoint, 2 a user's mistake, 4 a full disk, 1 anything else; the reason stands
in result.json.
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sousa_engine import __version__
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import DISK_FULL, DataError, PreflightError, SousaError, UserError
from sousa_engine.core.records import Prediction, Progress
from sousa_engine.training import reporters, resume
from sousa_engine.workspace import Workspace, run_files, spool

if TYPE_CHECKING:
    from sousa_engine.data.clips import Manifest
    from sousa_engine.training.loop import Outcome
    from sousa_engine.training.resume import ResumePoint

EXIT_CRASHED = 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sousa_engine.runs.trainer", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    folder: Path = parser.parse_args(argv).run_dir.resolve()

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    try:
        run_config = RunConfig.model_validate_json((folder / run_files.CONFIG).read_text())
        outcome = run(folder, run_config, stop=lambda: bool(stopping))
    except _StopRequested:
        again = resume.has_checkpoints(folder)
        reason = "before it went on: its last checkpoint is as it was." if again else "before it trained a step."
        _result(folder, outcome="stopped", reason=f"Stopped {reason}")
        return run_files.EXIT_STOPPED
    except UserError as error:
        _last_word(f"error: {error}")
        _result(folder, outcome="failed", reason=str(error))
        return run_files.EXIT_USER_ERROR
    except Exception as error:
        reason = known_cause(error, folder)
        _last_word(f"error: {reason}" if reason else traceback.format_exc().rstrip())
        _result(folder, outcome="failed", reason=reason or _first_line(error))
        return run_files.EXIT_DISK_FULL if reason == DISK_FULL else EXIT_CRASHED
    if outcome.stopped:
        reason = f"Stopped at step {outcome.step}. A checkpoint was saved; test is measured only at a run's own end."
        _result(folder, outcome="stopped", reason=reason, best_step=outcome.best_step)
        return run_files.EXIT_STOPPED
    _result(folder, outcome="finished", reason=None, best_step=outcome.best_step)
    return run_files.EXIT_FINISHED


def run(folder: Path, run_config: RunConfig, *, stop: Callable[[], bool]) -> Outcome:
    """Train as the config says, inside the run's folder. Raises SousaError with a sentence for the run's page."""
    device = run_config.device
    if device.startswith("cuda:"):
        # Accelerate takes the first visible GPU; showing it one alone keeps runs on different GPUs apart.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", device.removeprefix("cuda:"))
    with closing(reporters.open_reporter(folder, run_config)) as reporter:
        # The first report comes before the heavy imports, so that the page shows at once that something happens.
        reporter.progress(Progress(phase="preparing", done=0, total=1))
        return train(folder, run_config, device, reporter, stop, _resume_point(folder, reporter))


def _resume_point(folder: Path, reporter: reporters.RunReporter) -> ResumePoint | None:
    """Where to go on; None for a run that has not trained yet. Raises RunError where it has, and nothing is left.

    The folder alone decides: a launch that is made twice, by whomever, goes on from the same place.
    """
    if not resume.has_checkpoints(folder) and not _has_measured(folder):
        return None
    found = resume.find(folder)
    for sentence in found.damaged:
        _tell(reporter, "checkpoint damaged", f"{sentence} The one before is used: step {found.step}.")
    return found


def _has_measured(folder: Path) -> bool:
    offset = 0
    while not (batch := spool.read_batch(folder / run_files.SPOOL, offset)).is_empty:
        if batch.points:
            return True
        offset = batch.end
    return False


def _check_unchanged(found: ResumePoint, now: dict[str, Any], reporter: reporters.RunReporter) -> None:
    forbids, loosens = resume.differences(found.facts, now)
    if forbids:
        raise PreflightError(f"It cannot go on. {' '.join(forbids)} Launch it again as a new run.")
    if loosens:
        message = "What follows may differ in its last digits from a run that was never stopped"
        _tell(reporter, "not the same", f"{message}: {'; '.join(loosens)}.")


def _tell(reporter: reporters.RunReporter, kind: str, message: str) -> None:
    reporter.event(kind, message)
    print(f"{kind}: {message}", flush=True)


def train(
    folder: Path,
    run_config: RunConfig,
    device: str,
    reporter: reporters.RunReporter,
    stop: Callable[[], bool],
    resumed: ResumePoint | None,
) -> Outcome:
    """The training that `run` reports on; from `resumed` if the run has a checkpoint. Raises SousaError."""
    workspace = Workspace(root=folder.parent.parent)
    began = time.monotonic()

    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from sousa_engine import backbones
    from sousa_engine.data import features as feature_store
    from sousa_engine.data import manifest as manifests
    from sousa_engine.data.dataset import DataSet
    from sousa_engine.training import adapters, loop, precision, statistics

    set_seed(run_config.seed)
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if run_config.training.precision == "bf16" else "no"
    )
    if device not in ("auto", "cpu") and accelerator.device.type != device.split(":")[0]:
        raise PreflightError(f"Device {device} is not usable here; PyTorch offers {accelerator.device}.")
    print(f"device {accelerator.device}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    print(precision.use_fast_float32(), flush=True)

    def progress(done: int, total: int) -> None:
        if stop():
            raise _StopRequested
        reporter.progress(Progress(phase="preparing", done=done, total=total))

    scanned = DataSet.scan(
        run_config.data, workspace, tell=lambda doing, done, total: progress(done, total or max(done, 1))
    )
    manifest, found = scanned.manifest, scanned.findings
    if found.refusal:
        raise DataError(found.refusal)
    about_files = [note for note in (manifests.left_out(manifest), found.odd) if note]
    for note in about_files:
        reporter.event("data", note)
        print(note, flush=True)
    network = backbones.open_network(
        run_config.model.variant,
        num_classes=len(manifest.classes),
        weights=run_config.model.weights,
        workspace=workspace,
        seed=run_config.seed,
        tell=lambda doing, done, total: progress(done, total or max(done, 1)),
    )
    print(f"weights: {network.weights_label}", flush=True)
    cache = feature_store.feature_cache(manifest, network.spec, workspace, progress)
    data = _training_data(manifest, cache.array, floor=cache.floor, ln_units=network.spec.ln_units)

    if run_config.model.weights == "random":
        measured = statistics.measure_statistics(
            network.module, data.features, data.splits["train"], batch_size=run_config.training.batch_size
        )
        if measured:
            print(f"random weights: statistics of {measured} BatchNorms measured on train clips", flush=True)
    training = run_config.training
    total_steps = training.steps_per_epoch(len(data.splits["train"])) * training.max_epochs
    network.module.to(accelerator.device)
    some = torch.from_numpy(data.features[data.splits["train"][:4]].astype("float32")).to(accelerator.device)
    with torch.no_grad():
        plain = network.module.eval()(features=some)
    module = adapters.attach(network, run_config.lora, total_steps=total_steps)
    trainable, total, layers = adapters.counts(module)
    groups = adapters.parameter_groups(
        module,
        network.head_path,
        lr=run_config.training.lr,
        head_lr=run_config.training.head_lr,
        weight_decay=run_config.training.weight_decay,
        plus_ratio=run_config.lora.plus_ratio if run_config.lora.method == "loraplus" else 1.0,
    )
    module.to(accelerator.device)

    def forward(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(features=batch)

    with torch.no_grad():
        changed = (module.eval()(features=some) - plain).abs().max().item()
    _check_attached(run_config, layers, trainable, changed)
    reporter.facts(
        {
            "versions": _versions(),
            "device": str(accelerator.device),
            "weights_label": network.weights_label,
            "parameters": {"trainable": trainable, "total": total, "lora_modules": layers},
            "data": {
                "name": manifest.name,
                "classes": len(manifest.classes),
                "clip_s": manifest.clip_s,
                "clips": {split: len(rows) for split, rows in data.splits.items()},
                "majority_test": manifests.majority_baseline(manifest, "test"),
                "notes": [*about_files, *manifest.notes],
                "left_out": len(manifest.excluded),
            },
            "prepare_s": round(time.monotonic() - began, 2),
        }
    )
    kept = {
        "versions": _versions(),
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "weights": network.weights_label,
        "data": manifests.fingerprint(manifest),
    }
    if resumed is not None:
        _check_unchanged(resumed, kept, reporter)
        _tell(reporter, "goes on", f"From the checkpoint of step {resumed.step}, epoch {resumed.epoch}.")
    if stop():
        raise _StopRequested
    outcome = loop.train(
        module,
        forward,
        groups,
        data,
        run_config.training,
        run_config.augment,
        seed=run_config.seed,
        accelerator=accelerator,
        folder=folder,
        reporter=reporter,
        stop=stop,
        resume_from=resumed.path if resumed else None,
        facts=kept,
    )
    _save_adapter(accelerator.unwrap_model(module), folder / "adapter", manifest, run_config, network.weights_label)
    _write_predictions(folder, manifest, data, outcome)
    reporter.facts(
        {
            "train_s": round(outcome.train_s, 2),
            "epochs": outcome.epochs,
            "best_step": outcome.best_step,
            "peak_memory_mib": peak_memory_mib(),
        }
    )
    return outcome


class _StopRequested(SousaError):
    """A stop arrived before training began: nothing to checkpoint."""


def _training_data(manifest: Manifest, array: Any, *, floor: float, ln_units: float) -> Any:
    import numpy as np

    from sousa_engine.training.loop import TrainingData

    index = {name: i for i, name in enumerate(manifest.classes)}
    labels = np.array([index[clip.label] for clip in manifest.clips], dtype=np.int64)
    of_split = np.array([clip.split for clip in manifest.clips])
    splits = {split: np.flatnonzero(of_split == split) for split in ("train", "valid", "test")}
    for split, rows in splits.items():
        missing = set(range(len(manifest.classes))) - set(labels[rows].tolist())
        if missing:
            names = ", ".join(manifest.classes[i] for i in sorted(missing)[:5])
            raise PreflightError(
                f"{len(missing)} classes have no clip in {split}: {names}. Add clips, or change the split."
            )
    return TrainingData(features=array, labels=labels, splits=splits, floor=floor, ln_units=ln_units)


def _check_attached(run_config: RunConfig, layers: int, trainable: int, changed: float) -> None:
    """The preflight on the real network: every target adapted, something to train, the adapter an identity.

    changed: the largest difference of the logits from the plain network's, on some clips.
    """
    wanted = len(run_config.lora.targets) + (run_config.lora.head == "lora")
    if layers < wanted:
        raise PreflightError(f"{wanted} targets were asked for, {layers} were adapted. Tick them again in the tree.")
    if trainable == 0:
        raise PreflightError("Nothing would train: no targets and a frozen head. Set lora.head=train.")
    # PiSSA's SVD takes the adapter out of the weights it stands beside, which costs some rounding.
    if changed > (1e-2 if run_config.lora.method == "pissa" else 1e-4):
        raise PreflightError(f"The adapters change the output before the first step (by {changed:.1e}).")


def _save_adapter(module, folder: Path, manifest: Manifest, run_config: RunConfig, weights_label: str) -> None:
    """The best adapter, and beside it what its outputs mean: nothing in PEFT's files says which class is which."""
    from sousa_engine.training import adapters

    adapters.save(module, folder)
    labels = {
        "classes": list(manifest.classes),
        "backbone": run_config.model.variant,
        "weights": weights_label,
        "data": manifest.name,
        "clip_s": manifest.clip_s,
    }
    run_files.write_json(folder / "labels.json", labels)


def _write_predictions(folder: Path, manifest: Manifest, data: Any, outcome: Outcome) -> None:
    """Valid and test, as the best checkpoint answers."""
    found = []
    for split, answers in (("valid", outcome.valid), ("test", outcome.test)):
        if answers is None:
            continue
        for row, guess, probabilities in zip(data.splits[split], answers.predicted, answers.probabilities, strict=True):
            clip = manifest.clips[row]
            found.append(
                Prediction(
                    clip_id=clip.clip_id,
                    split=split,
                    label=clip.label,
                    predicted=manifest.classes[guess],
                    probability=round(float(probabilities[guess]), 6),
                    label_probability=round(float(probabilities[data.labels[row]]), 6),
                )
            )
    spool.write_predictions(folder / run_files.PREDICTIONS, found)


def _result(folder: Path, **values: Any) -> None:
    try:
        run_files.write_json(folder / run_files.RESULT, values)
    except OSError as error:  # a full disk must not hide the exit code, which says the same in short
        _last_word(f"error: could not write {run_files.RESULT}: {error}")


def _last_word(text: str) -> None:
    """Into the log, if there is room for it: a log on a full disk must not hide result and exit code either."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def known_cause(error: Exception, folder: Path) -> str:
    """A sentence for what is no bug of ours; "" where only the traceback can tell."""
    if isinstance(error, SousaError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:  # torch.save hides the disk's error behind one of its own
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return DISK_FULL
        if reason := _out_of_memory(cause):
            return reason
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, RuntimeError) and Workspace(root=folder.parent.parent).full_disk():
        return DISK_FULL  # written by PyTorch's own code, which does not say what the system answered
    return ""


# Of CUDA and its libraries, not of PyTorch's allocator: a context or a workspace found no room, on a GPU others share.
_NO_ROOM_ON_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def _out_of_memory(error: BaseException) -> str:
    """By the exception's type where there is one; PyTorch has none for the memory of the CPU and of MPS."""
    torch = sys.modules.get("torch")  # not imported yet: then it is not its error
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        more = f" at a request for {wanted[1]}" if wanted else ""
        return f"The GPU ran out of memory{more}. Lower training.batch_size, or tick fewer modules."
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM_ON_GPU):
        return "The GPU has no memory left, perhaps for what else runs on it. Lower training.batch_size, or free it."
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("MPS backend out of memory", "DefaultCPUAllocator"))
    ):
        return "This machine ran out of memory. Lower training.batch_size, or tick fewer modules."
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _versions() -> dict[str, str]:
    packages = ("torch", "torchaudio", "transformers", "peft", "accelerate", "numpy")
    return {"python": platform.python_version(), "sousa-engine": __version__} | {
        name: version(name) for name in packages
    }


def peak_memory_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


if __name__ == "__main__":
    sys.exit(main())
