"""The stages of a training run: device, data, network, features, adapters, training, results. Imports torch.

The only file that joins data, backbones and training.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from sousa_engine import __version__, backbones
from sousa_engine.backbones import Network
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import DataError, PreflightError, SousaError
from sousa_engine.core.records import Prediction, Progress
from sousa_engine.data import features as feature_store
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Manifest
from sousa_engine.data.dataset import DataSet
from sousa_engine.training import adapters, loop, precision, reporters, resume, statistics
from sousa_engine.training.loop import Outcome, TrainingData
from sousa_engine.training.reporters import RunReporter
from sousa_engine.training.resume import ResumePoint
from sousa_engine.workspace import Workspace, processes, run_files, spool


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the stages of one attempt share. folder: the run's. began: time.monotonic() when it began to prepare.

    resumed: the checkpoint to continue from; None for a run that has not trained yet. stop(): whether to stop.
    """

    folder: Path
    config: RunConfig
    reporter: RunReporter
    stop: Callable[[], bool]
    resumed: ResumePoint | None
    began: float

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder.parent.parent)

    def preparing(self, done: int, total: int) -> None:
        """Report progress before training. A stop ends the preparation here."""
        if self.stop():
            raise _StopRequested
        self.reporter.progress(Progress(phase="preparing", done=done, total=total))

    def doing(self, doing: str, done: int, total: int | None) -> None:
        """`preparing` for work whose total may be unknown: scans and downloads."""
        self.preparing(done, total or max(done, 1))


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The network with its adapters. layers: modules that have one. changed: how much the adapters change the logits
    before the first step, at most, on some clips."""

    module: torch.nn.Module
    groups: list[dict[str, Any]]
    trainable: int
    total: int
    layers: int
    changed: float


def train(context: Context) -> Outcome | None:
    """Carry out a run, or the rest of it. None: a stop arrived before training began.

    Raises SousaError with a sentence for the run's page.
    """
    try:
        return _train(context)
    except _StopRequested:
        return None


class _StopRequested(SousaError):
    """A stop arrived before training began: there is nothing to save."""


def _train(context: Context) -> Outcome:
    accelerator = _open_device(context.config)
    manifest, notes = _open_data(context)
    network = _build_network(context, classes=len(manifest.classes))
    data = _features(context, manifest, network)
    _measure_statistics(context.config, network, data)
    adapted = _attach_adapters(context.config, network, data, accelerator)
    _check_adapted(context.config, adapted)
    conditions = _conditions(manifest, network, accelerator)
    _report_facts(context, conditions, adapted, _data_facts(manifest, data, notes))
    if context.resumed is not None:
        resumed = _trusted(context.resumed, manifest, context.reporter)
        _check_unchanged(resumed, conditions, manifest, context.reporter)
        context = replace(context, resumed=resumed)
    if context.stop():
        raise _StopRequested
    outcome = loop.train(
        loop.Setup(
            module=adapted.module,
            forward=_forward,
            groups=adapted.groups,
            data=data,
            training=context.config.training,
            augment=context.config.augment,
            seed=context.config.seed,
            accelerator=accelerator,
            folder=context.folder,
            reporter=context.reporter,
            stop=context.stop,
            resume_from=context.resumed.path if context.resumed else None,
            facts=conditions,
        )
    )
    _save_adapter(accelerator.unwrap_model(adapted.module), context, manifest, network.weights_label)
    _write_predictions(context.folder, manifest, data, outcome)
    context.reporter.facts(
        {
            "train_s": round(outcome.train_s, 2),
            "epochs": outcome.epochs,
            "best_step": outcome.best_step,
            "peak_memory_mib": processes.peak_memory_mib(),
        }
    )
    return outcome


def _open_device(config: RunConfig) -> Accelerator:
    """Seed every generator, then open the device; raises PreflightError if the machine does not have it."""
    set_seed(config.seed)
    accelerator = Accelerator(
        cpu=config.device == "cpu", mixed_precision="bf16" if config.training.precision == "bf16" else "no"
    )
    if config.device not in ("auto", "cpu") and accelerator.device.type != config.device.split(":")[0]:
        raise PreflightError(
            f"Device {config.device} is not available here; PyTorch would use {accelerator.device} instead."
        )
    print(f"device {accelerator.device}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    print(precision.use_fast_float32(), flush=True)
    return accelerator


def _open_data(context: Context) -> tuple[Manifest, list[str]]:
    """The data set, every file of it scanned, and notes on its files. Raises DataError if it cannot be trained on."""
    scanned = DataSet.scan(context.config.data, context.workspace, tell=context.doing)
    manifest, found = scanned.manifest, scanned.findings
    if found.refusal:
        raise DataError(found.refusal)
    notes = [note for note in (manifests.left_out(manifest), found.odd) if note]
    for note in notes:
        context.reporter.event("data", note)
        print(note, flush=True)
    return manifest, notes


def _build_network(context: Context, *, classes: int) -> Network:
    config = context.config
    network = backbones.open_network(
        config.model.variant,
        num_classes=classes,
        weights=config.model.weights,
        workspace=context.workspace,
        seed=config.seed,
        tell=context.doing,
    )
    print(f"weights: {network.weights_label}", flush=True)
    return network


def _features(context: Context, manifest: Manifest, network: Network) -> TrainingData:
    """Features, labels and splits of all clips. Raises PreflightError if a class is missing from a split."""
    cache = feature_store.feature_cache(manifest, network.spec, context.workspace, context.preparing)
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
    return TrainingData(
        features=cache.array, labels=labels, splits=splits, floor=cache.floor, ln_units=network.spec.ln_units
    )


def _measure_statistics(config: RunConfig, network: Network, data: TrainingData) -> None:
    """Give random weights the BatchNorm statistics of the train clips; pretrained ones have their own."""
    if config.model.weights != "random":
        return
    measured = statistics.measure_statistics(
        network.module, data.features, data.splits["train"], batch_size=config.training.batch_size
    )
    if measured:
        print(f"random weights: statistics of {measured} BatchNorms measured on train clips", flush=True)


def _attach_adapters(config: RunConfig, network: Network, data: TrainingData, accelerator: Accelerator) -> Adapted:
    """Attach the adapters on the device, and compare the logits of some clips before and after."""
    training, lora, device = config.training, config.lora, accelerator.device
    network.module.to(device)
    some = torch.from_numpy(data.features[data.splits["train"][:4]].astype("float32")).to(device)
    with torch.no_grad():
        plain = network.module.eval()(features=some)
    total_steps = training.steps_per_epoch(len(data.splits["train"])) * training.max_epochs
    module = adapters.attach(network, lora, total_steps=total_steps)
    trainable, total, layers = adapters.counts(module)
    groups = adapters.parameter_groups(
        module,
        network.head_path,
        lr=training.lr,
        head_lr=training.head_lr,
        weight_decay=training.weight_decay,
        plus_ratio=lora.plus_ratio if lora.method == "loraplus" else 1.0,
    )
    module.to(device)
    with torch.no_grad():
        changed = (module.eval()(features=some) - plain).abs().max().item()
    return Adapted(module=module, groups=groups, trainable=trainable, total=total, layers=layers, changed=changed)


def _check_adapted(config: RunConfig, adapted: Adapted) -> None:
    """The preflight on the real network: every target has an adapter, something trains, adapters start as a no-op."""
    wanted = len(config.lora.targets) + (config.lora.head == "lora")
    if adapted.layers < wanted:
        raise PreflightError(f"Only {adapted.layers} of {wanted} targets could be adapted. Select the modules again.")
    if adapted.trainable == 0:
        raise PreflightError("Nothing would train: there are no targets and the head is frozen. Set lora.head=train.")
    # PiSSA's SVD takes the adapter out of the weights next to it, which costs some rounding.
    if adapted.changed > (1e-2 if config.lora.method == "pissa" else 1e-4):
        raise PreflightError(f"The adapters change the output before the first step (by {adapted.changed:.1e}).")


def _conditions(manifest: Manifest, network: Network, accelerator: Accelerator) -> dict[str, Any]:
    """What must not change, or should not, between two attempts of a run; kept in its checkpoints."""
    return {
        "versions": versions(),
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "cpu_slots": int(os.environ.get(run_files.CPU_SLOTS, "1")),
        "weights": network.weights_label,
        "contents": manifests.contents(manifest),
    }


def versions() -> dict[str, str]:
    """Package -> installed version, of everything that a result may depend on."""
    packages = ("torch", "torchaudio", "transformers", "peft", "accelerate", "numpy")
    return {"python": platform.python_version(), "sousa-engine": __version__} | {
        name: version(name) for name in packages
    }


def _data_facts(manifest: Manifest, data: TrainingData, notes: list[str]) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "classes": len(manifest.classes),
        "clip_s": manifest.clip_s,
        "clips": {split: len(rows) for split, rows in data.splits.items()},
        "majority_test": manifests.majority_baseline(manifest, "test"),
        "notes": [*notes, *manifest.notes],
        "left_out": len(manifest.excluded),
        "contents": manifests.contents(manifest),
    }


def _report_facts(context: Context, conditions: dict[str, Any], adapted: Adapted, data_facts: dict[str, Any]) -> None:
    context.reporter.facts(
        {
            "versions": conditions["versions"],
            "device": conditions["device"],
            **_shared_cores(context, conditions),
            "weights_label": conditions["weights"],
            "parameters": {"trainable": adapted.trainable, "total": adapted.total, "lora_modules": adapted.layers},
            "data": data_facts,
            "prepare_s": round(time.monotonic() - context.began, 2),
        }
    )


def _shared_cores(context: Context, now: dict[str, Any]) -> dict[str, int | None]:
    """The threads and CPU slots that a run's times depend on; None where they changed between its attempts."""
    then = context.resumed.facts if context.resumed else now
    return {name: now[name] if then.get(name, now[name]) == now[name] else None for name in ("threads", "cpu_slots")}


def _trusted(resumed: ResumePoint, manifest: Manifest, reporter: RunReporter) -> ResumePoint:
    found = resume.trusted(resumed, manifest)
    for sentence in found.damaged[len(resumed.damaged) :]:
        reporters.log_damaged(reporter, sentence, found.step)
    return found


def _check_unchanged(resumed: ResumePoint, now: dict[str, Any], manifest: Manifest, reporter: RunReporter) -> None:
    forbids, loosens = resume.differences(resumed.facts, now)
    if changed := resume.data_change(resumed.facts, manifest):
        forbids.insert(0, changed)
    if forbids:
        raise PreflightError(f"The run cannot continue. {' '.join(forbids)} Launch it again as a new run.")
    if loosens:
        message = "From here on, the last digits may differ from a run that was never stopped"
        reporters.log_event(reporter, "environment changed", f"{message}: {'; '.join(loosens)}.")
    reporters.log_event(reporter, "continued", f"From the checkpoint of step {resumed.step}, epoch {resumed.epoch}.")


def _forward(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module(features=batch)


def _save_adapter(module: torch.nn.Module, context: Context, manifest: Manifest, weights_label: str) -> None:
    """The best adapter, and a file that says what its outputs mean: PEFT's own files do not name the classes."""
    folder = context.folder / "adapter"
    adapters.save(module, folder)
    labels = {
        "classes": list(manifest.classes),
        "backbone": context.config.model.variant,
        "weights": weights_label,
        "data": manifest.name,
        "clip_s": manifest.clip_s,
    }
    run_files.write_json(folder / "labels.json", labels)


def _write_predictions(folder: Path, manifest: Manifest, data: TrainingData, outcome: Outcome) -> None:
    """Write the best checkpoint's predictions on valid and test."""
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
                    content=clip.content,
                )
            )
    spool.write_predictions(folder / run_files.PREDICTIONS, found)
