"""A trainer's double for the fault suite: `python -m tests.faults.double RUN_DIR`, via `--trainer-module`.

All of the real trainer but its training: signals, results, exit codes, checkpoints and going on from them are the
product's own. Only what would need torch is replaced. The run's name says what it does, as words:

    steps=40 pause_s=0.005 every=8     how many steps, how long each takes, and a checkpoint after how many
    save_s=0.05                        how long it takes to write a checkpoint's state

A run of a sweep is named after its setting, and does little. All measure an accuracy with each checkpoint.

After each spool write it bumps that step's byte in a memory-mapped ledger outside the product and outside the
workspace ($FAULTS_LEDGERS): what stands there was acknowledged, whatever happened next.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from sousa_engine.core.records import Prediction, Progress
from sousa_engine.runs import trainer
from sousa_engine.training import checkpoint
from sousa_engine.training.resume import BEST, CHECKPOINTS
from sousa_engine.workspace import run_files
from sousa_engine.workspace.spool import write_predictions

MOST_STEPS = 1 << 12  # the ledger's size in bytes
_CHUNKS = 16
_LITTLE = {"steps": "16", "pause_s": "0.005", "every": "8"}


def loss(step: int) -> float:
    """What it measures at a step, the same in every attempt: so the suite can tell a row from a made-up one."""
    return 1 / step


def words_of(name: str) -> dict[str, str]:
    """What a run of this name does."""
    return _LITTLE | dict(word.split("=", 1) for word in name.split() if "=" in word)


def _train(context: SimpleNamespace) -> SimpleNamespace:
    folder, reporter, resumed = context.folder, context.reporter, context.resumed
    words = words_of(context.config.name)
    steps, every = int(words["steps"]), int(words["every"])
    sys.modules["torch"].save = lambda state, file: _write_slowly(state, file, float(words.get("save_s", 0)))
    ledger = _ledger(folder.name)
    reporter.facts({"weights_label": "none: a double", "device": context.config.device})
    best = None
    if resumed:
        checkpoint.drop_newer(resumed.path)
        best = checkpoint.check(resumed.path)["best"]

    def save(step: int) -> None:
        reporter.sync()
        checkpoint.save(folder / CHECKPOINTS, step, {"step": step}, {"epoch": 1, "best": best, "run": {}})
        named = [checkpoint.facts_of(path)["best"] for path in checkpoint.steps(folder / CHECKPOINTS)]
        checkpoint.drop(folder / BEST, but=named)

    for step in range((resumed.step if resumed else 0) + 1, steps + 1):
        reporter.metrics(step, {"train/loss": loss(step)}, epoch=1)
        ledger[step] = min(255, ledger[step] + 1)
        reporter.progress(Progress(phase="training", done=step, total=steps, epoch=1, max_epochs=1))
        if step % 4 == 0:
            reporter.event("double", f"Step {step}, process {os.getpid()}.")
        if context.stop():
            save(step)
            return SimpleNamespace(stopped=True, step=step, best_step=None)
        if step % every == 0:
            reporter.metrics(step, {"valid/accuracy": 1 - loss(step)}, epoch=step // every)
            best = checkpoint.save(folder / BEST, step, {"step": step}, {"epoch": 1}, keep=None).name
            save(step)
        time.sleep(float(words["pause_s"]))
    clip = {"clip_id": "a", "split": "test", "label": "flam", "predicted": "flam"}
    write_predictions(folder / run_files.PREDICTIONS, [Prediction(**clip, probability=0.5, label_probability=0.5)])
    return SimpleNamespace(stopped=False, step=steps, best_step=None)


def _ledger(run_id: str) -> mmap.mmap:
    handle = os.open(Path(os.environ["FAULTS_LEDGERS"]) / run_id, os.O_RDWR | os.O_CREAT)
    os.ftruncate(handle, MOST_STEPS)
    return mmap.mmap(handle, MOST_STEPS)


def _write_slowly(state, file, save_s: float) -> None:
    text = json.dumps(state).encode().ljust(4096)
    for at in range(_CHUNKS):
        file.write(text[at * len(text) // _CHUNKS : (at + 1) * len(text) // _CHUNKS])
        file.flush()
        time.sleep(save_s / _CHUNKS)


if __name__ == "__main__":
    sys.modules["torch"] = SimpleNamespace(save=None, OutOfMemoryError=MemoryError)  # type: ignore[assignment]
    sys.modules["sousa_engine.runs.stages"] = SimpleNamespace(Context=SimpleNamespace, train=_train)  # type: ignore[assignment]
    sys.exit(trainer.main())
