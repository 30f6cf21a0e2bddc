"""Train a network with adapters: AdamW, warm-up and cosine decay, gradient clipping, checkpoints, early stopping.

Plain PyTorch on Accelerate, to be read from top to bottom. The order of clips and their augmentation depend on (seed,
epoch) alone, so they are the same whenever a run was stopped. A checkpoint keeps everything else that the next step
depends on: a run that continues from one gives the same result as a run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sousa_engine.core.best import rank
from sousa_engine.core.config import AugmentConfig, TrainingConfig
from sousa_engine.core.errors import RunError
from sousa_engine.core.records import UPDATE, Progress
from sousa_engine.data.augment import augment
from sousa_engine.training import adapters, checkpoint, randomness
from sousa_engine.training.evaluate import Evaluation, Forward, evaluate
from sousa_engine.training.resume import BEST, CHECKPOINTS

SAVE_EVERY_S = 300.0  # within an epoch: the most that a killed trainer loses


class Reporter(Protocol):
    """Where the loop reports to; the trainer passes one that writes the run's spool."""

    def metrics(
        self, step: int, values: Mapping[str, float], *, epoch: int | None = None, n: int | None = None
    ) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, kind: str, message: str) -> None: ...
    def sync(self) -> None: ...  # everything reported so far now survives a crash of the machine


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """features: (clips, frames, mel bins) raw log-mel. labels: (clips,) class index. splits: name -> clip indices."""

    features: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    floor: float  # feature value of silence; pads shifted clips
    ln_units: float = 1.0  # feature units per factor of e in power


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """stopped: by request. test: evaluated once, on the best checkpoint; None if stopped."""

    stopped: bool
    step: int
    epochs: int
    best_step: int | None
    best_accuracy: float | None
    train_s: float
    valid: Evaluation | None
    test: Evaluation | None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that one training run needs.

    forward(module, raw log-mel (batch, frames, mel bins)) returns logits (batch, classes). groups: AdamW parameter
    groups. folder: receives checkpoints/ (the last two) and best/ (the best by valid accuracy). stop(): asked after
    every step and before every batch that is evaluated; True ends the run after a checkpoint. resume_from: a checkpoint
    of the same run, which then continues as if it had never stopped; on the CPU, bit for bit. facts: kept in every
    checkpoint, see resume.ResumePoint.
    """

    module: nn.Module
    forward: Forward
    groups: list[dict[str, Any]]
    data: TrainingData
    training: TrainingConfig
    augment: AugmentConfig
    seed: int
    accelerator: Accelerator
    folder: Path
    reporter: Reporter
    stop: Callable[[], bool]
    resume_from: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    save_every_s: float = SAVE_EVERY_S


def train(setup: Setup) -> Outcome:
    """Train setup.module on the train split, evaluate valid after every epoch, and test once, on the best checkpoint.

    Reports how far each target has moved (adapters.update_norms) after every epoch, and where a stop ends one. Raises
    RunError if a loss becomes NaN or infinite, or if the checkpoint is damaged.
    """
    training = _Training(setup)
    training.resume()
    while training.begin_epoch():
        training.train_epoch()
        training.report_updates()
        training.validate()
    train_s = training.elapsed_s()
    training.restore_best()
    test = training.test()
    return training.outcome(train_s, test)


class _Training:
    """The stages of `train`, in the order in which it calls them, and the state that they share.

    at: the progress that a checkpoint keeps. best: the evaluation of the best epoch on valid. stopped: a stop was asked
    for, and no further stage trains or evaluates.
    """

    def __init__(self, setup: Setup):
        self.setup = setup
        self.device = setup.accelerator.device
        self.order = setup.data.splits["train"]
        self.total_steps = setup.training.steps_per_epoch(len(self.order)) * setup.training.max_epochs
        optimizer = torch.optim.AdamW(setup.groups)
        factor = warmup_cosine(self.total_steps, setup.training.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self.module, self.optimizer, self.schedule = setup.accelerator.prepare(setup.module, optimizer, schedule)
        self.plain = setup.accelerator.unwrap_model(self.module)
        self.trainable = [p for p in self.module.parameters() if p.requires_grad]
        self.at = _Place()
        self.best: Evaluation | None = None
        self.stopped = False
        self._start_clock()

    def resume(self) -> None:
        """Continue from setup.resume_from, if there is one."""
        path = self.setup.resume_from
        if path is None:
            return
        state, _ = checkpoint.load(path)
        checkpoint.drop_newer(path)  # found damaged
        self.at = _Place(**state["at"])
        adapters.load_trained(self.plain, state["trainable"])
        adapters.load_method_state(self.plain, state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.at.best:
            self.best = _evaluation(self._load_best()["valid"])
        randomness.restore(state["randomness"], self.device)
        self._start_clock()

    def begin_epoch(self) -> bool:
        """Move on to the next epoch, or stay in one that was interrupted; False if no more training is due."""
        at, training = self.at, self.setup.training
        if self.stopped:
            return False
        if not at.validated:
            return True
        if at.epoch >= training.max_epochs:
            return False
        if training.patience and at.epoch - at.best_epoch >= training.patience:
            text = f"Valid accuracy has not improved for {training.patience} epochs; best at epoch {at.best_epoch}."
            self.setup.reporter.event("early stop", text)
            return False
        at.epoch, at.batches, at.validated, at.generator = at.epoch + 1, 0, False, None
        return True

    def train_epoch(self) -> None:
        """Take the remaining steps of the epoch; a stop ends it after any of them."""
        setup, at, batch_size = self.setup, self.at, self.setup.training.batch_size
        self.module.train()
        # One generator per epoch, on the CPU: the same clips and the same augmentation on every device.
        generator = torch.Generator().manual_seed(setup.seed * 1_000_003 + at.epoch)
        shuffled = self.order[torch.randperm(len(self.order), generator=generator).numpy()]
        if at.generator is not None:
            generator.set_state(at.generator)
        for start in range(at.batches * batch_size, len(shuffled), batch_size):
            self._step(shuffled[start : start + batch_size], generator)
            self._report_progress()
            if setup.stop():
                self.stopped = True
                return
            if time.monotonic() - self.saved_at >= setup.save_every_s:
                self._save()

    def _step(self, rows: np.ndarray, generator: torch.Generator) -> None:
        """One optimiser step on the clips `rows`, augmented by `generator`."""
        setup, at, data = self.setup, self.at, self.setup.data
        clips = torch.from_numpy(data.features[rows].astype(np.float32))
        clips = augment(clips, setup.augment, floor=data.floor, ln_units=data.ln_units, generator=generator)
        clips, target = clips.to(self.device), torch.from_numpy(data.labels[rows]).to(self.device)

        logits = setup.forward(self.module, clips).float()
        loss = nn.functional.cross_entropy(logits, target, label_smoothing=setup.training.label_smoothing)
        step = at.step + 1
        values = {
            "train/loss": loss.item(),
            "train/accuracy": (logits.argmax(-1) == target).float().mean().item(),
            "train/lr": self.schedule.get_last_lr()[0],
        }
        setup.reporter.metrics(step, values, epoch=at.epoch, n=len(rows))
        if not math.isfinite(values["train/loss"]):
            raise _diverged("loss", values["train/loss"], step, setup.training)
        added = adapters.extra_loss(self.plain)
        setup.accelerator.backward(loss if added is None else loss + added)
        setup.accelerator.clip_grad_norm_(self.trainable, setup.training.grad_clip)
        self.optimizer.step()
        adapters.after_step(self.plain, step)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

        at.step, at.batches, at.generator = step, at.batches + 1, generator.get_state()
        at.loss = values["train/loss"]

    def report_updates(self) -> None:
        norms = adapters.update_norms(self.plain)
        if norms:
            values = {f"{UPDATE}{path}": norm for path, norm in norms.items()}
            self.setup.reporter.metrics(self.at.step, values, epoch=self.at.epoch)

    def validate(self) -> None:
        """Evaluate valid at the end of the epoch and save a checkpoint; after a stop, only save."""
        setup, at = self.setup, self.at
        valid = None if self.stopped else self._evaluate("valid")
        if valid is None:
            self.stopped = True
            self._save(stopped=True)
            return
        setup.reporter.metrics(at.step, valid.as_metrics("valid"), epoch=at.epoch, n=valid.n)
        if not math.isfinite(valid.loss):
            raise _diverged("valid loss", valid.loss, at.step, setup.training)
        print(
            f"epoch {at.epoch}/{setup.training.max_epochs}  step {at.step}  train loss {at.loss:.3f}  "
            f"valid loss {valid.loss:.3f}  valid accuracy {valid.accuracy:.3f} (n={valid.n})",
            flush=True,
        )
        at.validated = True
        facts = {"epoch": at.epoch, "valid_accuracy": valid.accuracy, "valid_n": valid.n}
        if rank(valid.accuracy, valid.loss) > at.best_key:
            self._keep_best(valid, facts)
        self._save(**facts)
        self.stopped = setup.stop()

    def restore_best(self) -> None:
        if self.at.best:
            adapters.load_trained(self.plain, self._load_best()["trainable"])

    def test(self) -> Evaluation | None:
        """Evaluate test on the best checkpoint; None after a stop."""
        reporter, at = self.setup.reporter, self.at
        if self.stopped:
            return None
        reporter.progress(Progress(phase="testing", done=0, total=1))
        test = self._evaluate("test")
        if test is None:
            self.stopped = True
            return None
        reporter.metrics(at.step, test.as_metrics("test"), epoch=at.best_epoch, n=test.n)
        print(f"test accuracy {test.accuracy:.3f} (n={test.n}), on the checkpoint of epoch {at.best_epoch}", flush=True)
        reporter.progress(Progress(phase="testing", done=1, total=1))
        return test

    def outcome(self, train_s: float, test: Evaluation | None) -> Outcome:
        at, best = self.at, self.best
        if self.stopped:
            self.setup.reporter.event("checkpoint", f"Saved at step {at.step} before stopping.")
        return Outcome(
            stopped=self.stopped, step=at.step, epochs=at.epoch, best_step=at.best_step,
            best_accuracy=None if best is None else best.accuracy, train_s=train_s, valid=best, test=test,
        )  # fmt: skip

    def elapsed_s(self) -> float:
        """Training time of this attempt and of those before it."""
        return self.earlier_s + time.monotonic() - self.began

    def _start_clock(self) -> None:
        self.earlier_s, self.began = self.at.train_s, time.monotonic()
        self.saved_at = self.began

    def _report_progress(self) -> None:
        step, total = self.at.step, self.total_steps
        progress = Progress(
            phase="training",
            done=step,
            total=total,
            epoch=self.at.epoch,
            max_epochs=self.setup.training.max_epochs,
            eta_s=self.elapsed_s() / step * (total - step),
        )
        self.setup.reporter.progress(progress)

    def _evaluate(self, split: str) -> Evaluation | None:
        """None after a stop, which is asked for before each batch: a split may have thousands of clips, and a stopped
        run has a minute until it is killed."""
        data, training = self.setup.data, self.setup.training
        return evaluate(
            self.module, self.setup.forward, data.features, data.labels, data.splits[split],
            device=self.device, batch_size=4 * training.batch_size, label_smoothing=training.label_smoothing,
            stop=self.setup.stop,
        )  # fmt: skip

    def _keep_best(self, valid: Evaluation, facts: Mapping[str, Any]) -> None:
        at = self.at
        at.best_key, at.best_step, at.best_epoch = rank(valid.accuracy, valid.loss), at.step, at.epoch
        self.best = valid
        kept = {"trainable": adapters.trained_state(self.plain), "valid": _plain(valid)}
        # Earlier ones are kept while a checkpoint names them: the newest checkpoint may turn out to be damaged.
        at.best = checkpoint.save(self.setup.folder / BEST, at.step, kept, dict(facts), keep=None).name

    def _load_best(self) -> dict[str, Any]:
        assert self.at.best is not None
        return checkpoint.load(self.setup.folder / BEST / self.at.best)[0]

    def _save(self, **more: Any) -> None:
        """Write a checkpoint, and drop every best one that no checkpoint names any more."""
        at, folder = self.at, self.setup.folder
        at.train_s = self.elapsed_s()
        state = {
            "at": vars(at),
            "trainable": adapters.trained_state(self.plain),
            "method": adapters.method_state(self.plain),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "randomness": randomness.state(self.device),
        }
        self.setup.reporter.sync()  # a checkpoint must not be newer than the metrics on disk
        facts = {"epoch": at.epoch, "best": at.best, "run": dict(self.setup.facts), **more}
        checkpoint.save(folder / CHECKPOINTS, at.step, state, facts)
        named = [checkpoint.facts_of(path)["best"] for path in checkpoint.steps(folder / CHECKPOINTS)]
        checkpoint.drop(folder / BEST, but=named)
        self.saved_at = time.monotonic()


@dataclass(kw_only=True)
class _Place:
    """How far training has come, as a checkpoint keeps it: plain values and a tensor, so it loads with weights_only."""

    step: int = 0
    epoch: int = 0
    batches: int = 0  # done in this epoch
    validated: bool = True  # the epoch is finished, including its validation
    generator: torch.Tensor | None = None  # state of the epoch's generator after the last batch
    loss: float = math.nan  # of the last batch
    train_s: float = 0.0
    best_key: tuple[float, float] = (-1.0, -math.inf)
    best_step: int | None = None
    best_epoch: int = 0
    best: str | None = None  # name of the folder in best/


def _diverged(name: str, value: float, step: int, training: TrainingConfig) -> RunError:
    return RunError(
        f"The {name} became {'NaN' if math.isnan(value) else 'infinite'} at step {step}. "
        f"Lower training.lr (now {training.lr:g}) or training.head_lr (now {training.head_lr:g})."
    )


def _plain(found: Evaluation) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}


def _evaluation(state: Mapping[str, Any]) -> Evaluation:
    values: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    return Evaluation(**values)


def warmup_cosine(total_steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> fraction of the peak learning rate: a linear rise over `warmup` of all steps, then a cosine to 0."""
    warm = max(1, round(total_steps * warmup)) if warmup else 0

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))

    return factor
