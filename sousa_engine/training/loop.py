"""Train a network with adapters: AdamW, warm-up and cosine, clipping, best and last checkpoint, early stop.

Plain PyTorch on Accelerate, to be read from top to bottom. Randomness comes from (seed, epoch) alone, so that the
order of clips and their augmentation do not depend on when a run was stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sousa_engine import lora
from sousa_engine.config import AugmentConfig, TrainingConfig
from sousa_engine.data.augment import augment
from sousa_engine.errors import RunError
from sousa_engine.records import UPDATE, Progress
from sousa_engine.training import checkpoint
from sousa_engine.training.evaluate import Evaluation, Forward, evaluate


class Reporter(Protocol):
    """Where the loop tells what happens; the trainer hands in one that writes the run's spool."""

    def metrics(
        self, step: int, values: Mapping[str, float], *, epoch: int | None = None, n: int | None = None
    ) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, kind: str, message: str) -> None: ...


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
) -> Outcome:
    """Train `module` on data.splits["train"], watch "valid" after every epoch, measure "test" once.

    How far each target was moved (lora.update_norms) is reported after every epoch too, and where a stop ends one.

    groups: AdamW parameter groups. folder: receives checkpoints/ (last two) and best/ (the best by valid accuracy).
    stop(): asked after every step; True ends the run after a checkpoint. Raises RunError when the loss is no number.
    """
    device = accelerator.device
    order = data.splits["train"]
    total_steps = training.steps_per_epoch(len(order)) * training.max_epochs

    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(total_steps, training.warmup))
    module, optimizer, schedule = accelerator.prepare(module, optimizer, schedule)
    trainable = [p for p in module.parameters() if p.requires_grad]

    def measure(split: str) -> Evaluation:
        return evaluate(
            module, forward, data.features, data.labels, data.splits[split],
            device=device, batch_size=4 * training.batch_size, label_smoothing=training.label_smoothing,
        )  # fmt: skip

    def report_updates() -> None:
        norms = lora.update_norms(accelerator.unwrap_model(module))
        if norms:
            reporter.metrics(step, {f"{UPDATE}{path}": norm for path, norm in norms.items()}, epoch=epoch)

    def state() -> dict[str, Any]:
        return {
            "trainable": lora.trained_state(accelerator.unwrap_model(module)),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }

    began, step, epoch, stopped = time.monotonic(), 0, 0, False
    best_key, best_step, best_epoch, best = (-1.0, -math.inf), None, 0, None
    for epoch in range(1, training.max_epochs + 1):
        module.train()
        # One generator an epoch, on the CPU: the same clips and the same augmentation on every device.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = order[torch.randperm(len(order), generator=generator).numpy()]
        for start in range(0, len(shuffled), training.batch_size):
            rows = shuffled[start : start + training.batch_size]
            clips = torch.from_numpy(data.features[rows].astype(np.float32))
            clips = augment(clips, augmentation, floor=data.floor, ln_units=data.ln_units, generator=generator).to(
                device
            )
            target = torch.from_numpy(data.labels[rows]).to(device)

            logits = forward(module, clips).float()
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=training.label_smoothing)
            step += 1
            values = {
                "train/loss": loss.item(),
                "train/accuracy": (logits.argmax(-1) == target).float().mean().item(),
                "train/lr": schedule.get_last_lr()[0],
            }
            reporter.metrics(step, values, epoch=epoch, n=len(rows))
            if not math.isfinite(values["train/loss"]):
                raise RunError(
                    f"The loss became {values['train/loss']} at step {step}. "
                    f"Lower training.lr (now {training.lr:g}) or training.head_lr (now {training.head_lr:g})."
                )
            added = lora.extra_loss(accelerator.unwrap_model(module))
            accelerator.backward(loss if added is None else loss + added)
            accelerator.clip_grad_norm_(trainable, training.grad_clip)
            optimizer.step()
            lora.after_step(accelerator.unwrap_model(module), step)
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

            elapsed = time.monotonic() - began
            reporter.progress(
                Progress(
                    phase="training",
                    done=step,
                    total=total_steps,
                    epoch=epoch,
                    max_epochs=training.max_epochs,
                    eta_s=elapsed / step * (total_steps - step),
                )
            )
            if stop():
                stopped = True
                break
        report_updates()
        if stopped:
            break

        valid = measure("valid")
        reporter.metrics(step, valid.as_metrics("valid"), epoch=epoch, n=valid.n)
        print(
            f"epoch {epoch}/{training.max_epochs}  step {step}  train loss {values['train/loss']:.3f}  "
            f"valid loss {valid.loss:.3f}  valid accuracy {valid.accuracy:.3f} (n={valid.n})",
            flush=True,
        )
        facts = {"epoch": epoch, "valid_accuracy": valid.accuracy, "valid_n": valid.n}
        now = state()
        if (valid.accuracy, -valid.loss) > best_key:
            best_key, best_step, best_epoch, best = (valid.accuracy, -valid.loss), step, epoch, valid
            checkpoint.save(folder / "best", step, {"trainable": now["trainable"]}, facts, keep=1)
        checkpoint.save(folder / "checkpoints", step, now, facts)
        if stop():
            stopped = True
            break
        if training.patience and epoch - best_epoch >= training.patience:
            reporter.event(
                "early stop", f"No better valid accuracy for {training.patience} epochs; best at {best_epoch}."
            )
            break

    train_s = time.monotonic() - began
    if stopped:
        checkpoint.save(folder / "checkpoints", step, state(), {"epoch": epoch, "stopped": True})
        reporter.event("checkpoint", f"Saved at step {step} before stopping.")
    if best_step is not None:
        lora.load_trained(
            accelerator.unwrap_model(module), checkpoint.load(checkpoint.steps(folder / "best")[-1])[0]["trainable"]
        )
    test = None
    if not stopped:
        reporter.progress(Progress(phase="testing", done=0, total=1))
        test = measure("test")
        reporter.metrics(step, test.as_metrics("test"), epoch=best_epoch, n=test.n)
        print(f"test accuracy {test.accuracy:.3f} (n={test.n}), on the checkpoint of epoch {best_epoch}", flush=True)
        reporter.progress(Progress(phase="testing", done=1, total=1))
    return Outcome(
        stopped=stopped, step=step, epochs=epoch, best_step=best_step,
        best_accuracy=None if best is None else best.accuracy, train_s=train_s, valid=best, test=test,
    )  # fmt: skip


def warmup_cosine(total_steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the peak rate at a step: linear from near 0 over `warmup` of all steps, then cosine to 0."""
    warm = max(1, round(total_steps * warmup)) if warmup else 0

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))

    return factor
