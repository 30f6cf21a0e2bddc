"""Train a network with adapters: AdamW, warm-up and cosine, clipping, best and last checkpoint, early stop.

Plain PyTorch on Accelerate, to be read from top to bottom. Randomness comes from (seed, epoch) alone, so that the
order of clips and their augmentation do not depend on when a run was stopped. A checkpoint keeps all the rest that
the next step depends on: a training that goes on from one gives what one that was never stopped gives.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sousa_engine.core.config import AugmentConfig, TrainingConfig
from sousa_engine.core.errors import RunError
from sousa_engine.core.records import UPDATE, Progress
from sousa_engine.data.augment import augment
from sousa_engine.training import adapters, checkpoint
from sousa_engine.training.evaluate import Evaluation, Forward, evaluate
from sousa_engine.training.resume import BEST, CHECKPOINTS

SAVE_EVERY_S = 300.0  # within an epoch: what a killed trainer loses at most


class Reporter(Protocol):
    """Where the loop tells what happens; the trainer hands in one that writes the run's spool."""

    def metrics(
        self, step: int, values: Mapping[str, float], *, epoch: int | None = None, n: int | None = None
    ) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, kind: str, message: str) -> None: ...
    def sync(self) -> None: ...  # all that was told outlives the machine from here on


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """features: (clips, frames, mels) raw log-mel. labels: (clips,) class index. splits: name -> clip indices."""

    features: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    floor: float  # what silence is in a feature, to fill what a shift uncovers
    ln_units: float = 1.0  # units of a feature that make a factor of e in power


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """stopped: a stop was asked for. test: measured once, on the best checkpoint; None when stopped."""

    stopped: bool
    step: int
    epochs: int
    best_step: int | None
    best_accuracy: float | None
    train_s: float
    valid: Evaluation | None
    test: Evaluation | None


def train(
    module: nn.Module,
    forward: Forward,
    groups: list[dict[str, Any]],
    data: TrainingData,
    training: TrainingConfig,
    augmentation: AugmentConfig,
    *,
    seed: int,
    accelerator: Accelerator,
    folder: Path,
    reporter: Reporter,
    stop: Callable[[], bool],
    resume_from: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> Outcome:
    """Train `module` on data.splits["train"], watch "valid" after every epoch, measure "test" once.

    How far each target was moved (lora.update_norms) is reported after every epoch too, and where a stop ends one.

    groups: AdamW parameter groups. folder: receives checkpoints/ (last two) and best/ (the best by valid accuracy).
    stop(): asked after every step, and before every batch that is measured; True ends the run after a checkpoint.
    resume_from: a checkpoint of the same run: it goes on as if it had never ended, on the CPU bit for bit. facts: kept
    in every checkpoint, see resume.ResumePoint. Raises RunError when a loss is no number, or the checkpoint is damaged.
    """
    device = accelerator.device
    order = data.splits["train"]
    steps_per_epoch = training.steps_per_epoch(len(order))
    total_steps = steps_per_epoch * training.max_epochs

    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(total_steps, training.warmup))
    module, optimizer, schedule = accelerator.prepare(module, optimizer, schedule)
    plain = accelerator.unwrap_model(module)
    trainable = [p for p in module.parameters() if p.requires_grad]

    def measure(split: str) -> Evaluation | None:
        """None: a stop was asked for meanwhile. It may not wait for thousands of clips: its patience is a minute."""
        return evaluate(
            module, forward, data.features, data.labels, data.splits[split],
            device=device, batch_size=4 * training.batch_size, label_smoothing=training.label_smoothing,
            stop=stop,
        )  # fmt: skip

    def report_updates() -> None:
        norms = adapters.update_norms(plain)
        if norms:
            reporter.metrics(at.step, {f"{UPDATE}{path}": norm for path, norm in norms.items()}, epoch=at.epoch)

    def save(**more: Any) -> float:
        at.train_s = earlier_s + time.monotonic() - began
        state = {
            "at": vars(at),
            "trainable": adapters.trained_state(plain),
            "method": adapters.method_state(plain),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "randomness": _randomness(device),
        }
        reporter.sync()  # what it says was measured must not be younger than what is on disk
        told = {"epoch": at.epoch, "best": at.best, "run": dict(facts or {}), **more}
        checkpoint.save(folder / CHECKPOINTS, at.step, state, told)
        checkpoint.drop(
            folder / BEST, but=[checkpoint.facts_of(p)["best"] for p in checkpoint.steps(folder / CHECKPOINTS)]
        )
        return time.monotonic()

    at, best, stopped = _Place(), None, False
    if resume_from is not None:
        state, _ = checkpoint.load(resume_from)
        checkpoint.drop_newer(resume_from)  # it was found damaged
        at = _Place(**state["at"])
        adapters.load_trained(plain, state["trainable"])
        adapters.load_method_state(plain, state["method"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if at.best:
            best = _evaluation(checkpoint.load(folder / BEST / at.best)[0]["valid"])
        set_randomness(state["randomness"], device)
        del state
    earlier_s, began = at.train_s, time.monotonic()
    saved_at = began
    while not stopped:
        if at.validated:
            if at.epoch >= training.max_epochs:
                break
            if training.patience and at.epoch - at.best_epoch >= training.patience:
                text = f"No better valid accuracy for {training.patience} epochs; best at {at.best_epoch}."
                reporter.event("early stop", text)
                break
            at.epoch, at.batches, at.validated, at.generator = at.epoch + 1, 0, False, None
        module.train()
        # One generator an epoch, on the CPU: the same clips and the same augmentation on every device.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + at.epoch)
        shuffled = order[torch.randperm(len(order), generator=generator).numpy()]
        if at.generator is not None:
            generator.set_state(at.generator)
        for start in range(at.batches * training.batch_size, len(shuffled), training.batch_size):
            rows = shuffled[start : start + training.batch_size]
            clips = torch.from_numpy(data.features[rows].astype(np.float32))
            clips = augment(clips, augmentation, floor=data.floor, ln_units=data.ln_units, generator=generator).to(
                device
            )
            target = torch.from_numpy(data.labels[rows]).to(device)

            logits = forward(module, clips).float()
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=training.label_smoothing)
            step = at.step + 1
            values = {
                "train/loss": loss.item(),
                "train/accuracy": (logits.argmax(-1) == target).float().mean().item(),
                "train/lr": schedule.get_last_lr()[0],
            }
            reporter.metrics(step, values, epoch=at.epoch, n=len(rows))
            if not math.isfinite(values["train/loss"]):
                raise _no_number("loss", values["train/loss"], step, training)
            added = adapters.extra_loss(plain)
            accelerator.backward(loss if added is None else loss + added)
            accelerator.clip_grad_norm_(trainable, training.grad_clip)
            optimizer.step()
            adapters.after_step(plain, step)
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

            at.step, at.batches, at.generator = step, at.batches + 1, generator.get_state()
            at.loss = values["train/loss"]
            elapsed = earlier_s + time.monotonic() - began
            reporter.progress(
                Progress(
                    phase="training",
                    done=step,
                    total=total_steps,
                    epoch=at.epoch,
                    max_epochs=training.max_epochs,
                    eta_s=elapsed / step * (total_steps - step),
                )
            )
            if stop():
                stopped = True
                break
            if time.monotonic() - saved_at >= save_every_s:
                saved_at = save()
        report_updates()
        valid = None if stopped else measure("valid")
        if valid is None:
            stopped = True
            save(stopped=True)
            break
        reporter.metrics(at.step, valid.as_metrics("valid"), epoch=at.epoch, n=valid.n)
        if not math.isfinite(valid.loss):
            raise _no_number("valid loss", valid.loss, at.step, training)
        print(
            f"epoch {at.epoch}/{training.max_epochs}  step {at.step}  train loss {at.loss:.3f}  "
            f"valid loss {valid.loss:.3f}  valid accuracy {valid.accuracy:.3f} (n={valid.n})",
            flush=True,
        )
        at.validated = True
        told = {"epoch": at.epoch, "valid_accuracy": valid.accuracy, "valid_n": valid.n}
        if (valid.accuracy, -valid.loss) > at.best_key:
            at.best_key, at.best_step, at.best_epoch, best = (valid.accuracy, -valid.loss), at.step, at.epoch, valid
            kept = {"trainable": adapters.trained_state(plain), "valid": _plain(valid)}
            # Those before stay until no checkpoint names them: the newest one may turn out to be damaged.
            at.best = checkpoint.save(folder / BEST, at.step, kept, told, keep=None).name
        saved_at = save(**told)
        stopped = stop()

    train_s = earlier_s + time.monotonic() - began
    if at.best:
        adapters.load_trained(plain, checkpoint.load(folder / BEST / at.best)[0]["trainable"])
    test = None
    if not stopped:
        reporter.progress(Progress(phase="testing", done=0, total=1))
        test = measure("test")
        stopped = test is None
    if test is not None:
        reporter.metrics(at.step, test.as_metrics("test"), epoch=at.best_epoch, n=test.n)
        print(f"test accuracy {test.accuracy:.3f} (n={test.n}), on the checkpoint of epoch {at.best_epoch}", flush=True)
        reporter.progress(Progress(phase="testing", done=1, total=1))
    if stopped:
        reporter.event("checkpoint", f"Saved at step {at.step} before stopping.")
    return Outcome(
        stopped=stopped, step=at.step, epochs=at.epoch, best_step=at.best_step,
        best_accuracy=None if best is None else best.accuracy, train_s=train_s, valid=best, test=test,
    )  # fmt: skip


@dataclass(kw_only=True)
class _Place:
    """Where a training stands, as a checkpoint keeps it. Plain values and one tensor: it loads with weights_only."""

    step: int = 0
    epoch: int = 0
    batches: int = 0  # of this epoch, trained on
    validated: bool = True  # this epoch is over, its validation included
    generator: torch.Tensor | None = None  # state of the epoch's own, behind the last batch
    loss: float = math.nan  # of the last batch
    train_s: float = 0.0
    best_key: tuple[float, float] = (-1.0, -math.inf)
    best_step: int | None = None
    best_epoch: int = 0
    best: str | None = None  # name of its folder in best/


def _no_number(what: str, value: float, step: int, training: TrainingConfig) -> RunError:
    return RunError(
        f"The {what} became {value} at step {step}. "
        f"Lower training.lr (now {training.lr:g}) or training.head_lr (now {training.head_lr:g})."
    )


def _randomness(device: torch.device) -> dict[str, Any]:
    """Every generator that a network may draw from: dropout, drop-path."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_randomness(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators of Python, NumPy and PyTorch back into the state that a checkpoint keeps."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _plain(found: Evaluation) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}


def _evaluation(state: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()})


def warmup_cosine(total_steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the peak rate at a step: linear from near 0 over `warmup` of all steps, then cosine to 0."""
    warm = max(1, round(total_steps * warmup)) if warmup else 0

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))

    return factor
