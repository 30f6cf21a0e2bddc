"""The checks of a run before it starts: whether it can work, and what it will do. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from sousa_engine import backbones, targets
from sousa_engine.backbones import inspection
from sousa_engine.core import config
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import (
    DataError,
    UserError,
)
from sousa_engine.core.methods import METHODS
from sousa_engine.data import audio
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Manifest
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.findings import Findings
from sousa_engine.data.splits import SPLITS
from sousa_engine.runs.executors import local
from sousa_engine.targets import Counts, Outline
from sousa_engine.training import reporters
from sousa_engine.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check before a run. A "note" is a fact, a "warning" needs a decision, an "error" prevents the start."""

    level: Literal["ok", "note", "warning", "error"]
    title: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """clips: number of clips per split. majority: accuracy of the majority-class baseline on the test split."""

    checks: tuple[Check, ...]
    counts: Counts
    classes: int
    clips: Mapping[str, int]
    steps_per_epoch: int
    total_steps: int
    majority: float | None
    weights_label: str

    @property
    def errors(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.level == "error")


def preflight(run_config: RunConfig, workspace: Workspace, data: DataSet | None = None) -> Preflight:
    """All that can be known before a run without loading the network.

    data: the run's data set, if the caller has opened it. Raises DataError for unusable data.
    """
    outline = targets.load_outline(run_config.model.variant)
    data = data or DataSet.open(run_config.data, workspace)
    manifest, sizes = data.manifest, data.manifest.sizes
    steps_per_epoch = run_config.training.steps_per_epoch(sizes["train"])
    counts = targets.count(
        outline,
        [target.path for target in run_config.lora.targets],
        r=run_config.lora.r,
        head=run_config.lora.head,
        num_classes=len(manifest.classes),
        method=run_config.lora.method,
        ranks=run_config.lora.ranks,
    )
    weights = _weights_check(run_config, workspace)
    checks = (
        weights,
        _targets_check(run_config, outline, counts),
        _head_check(run_config, outline, counts),
        _classes_check(manifest),
        Check(level="note", title="Defaults", detail=whose_defaults(run_config)),
        *_length_check(run_config, manifest),
        _device_check(run_config),
        *([] if run_config.wandb.mode == "disabled" else [_wandb_check(run_config)]),
        *_files_checks(data.findings, manifest),
        *_notes_checks(manifest),
    )
    majority = manifests.majority_baseline(manifest, "test") if sizes["test"] else None
    return Preflight(
        checks=checks,
        counts=counts,
        classes=len(manifest.classes),
        clips=sizes,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * run_config.training.max_epochs,
        majority=majority,
        weights_label=weights.detail,
    )


def whose_defaults(run_config: RunConfig, besides: Collection[str] = ()) -> str:
    """A sentence on the settings that depend on the backbone: which have its defaults, which have other values.

    besides: fields to leave out; "" if no others are left.
    """
    usual = config.build(backbones.defaults(run_config.model.variant))
    kept, changed = [], []
    for name in (name for name in backbones.DEFAULTED if name not in besides):
        value, default = (config.value_of(one, name) for one in (run_config, usual))
        said = f"{config.field_label(name).lower()} {value:g}"
        if value == default:
            kept.append(said)
        else:
            changed.append(f"{said} (not {default:g})")
    parts = []
    if changed:
        parts.append(f"Set instead of the defaults of {run_config.model.variant}: {', '.join(changed)}.")
    if kept:
        parts.append(f"The defaults of {run_config.model.variant}: {', '.join(kept)}.")
    return " ".join(parts)


def _weights_check(run_config: RunConfig, workspace: Workspace) -> Check:
    model = run_config.model
    if model.weights == "random":
        detail = "Random weights: a control, not a pretrained backbone. Every page marks the run as such."
        return Check(level="warning", title="Weights", detail=detail)
    try:
        state = backbones.weights_state(model.variant, workspace, weights=model.weights)
    except UserError as error:
        return Check(level="error", title="Weights", detail=str(error))
    if not state.available:
        return Check(level="error", title="Weights", detail=state.message)
    variant = backbones.variant(model.variant)
    if state.path and (problem := inspection.problem(variant, state.path, workspace)):
        return Check(level="error", title="Weights", detail=problem)
    return Check(level="ok", title="Weights", detail=state.label)


def _targets_check(run_config: RunConfig, outline: Outline, counts: Counts) -> Check:
    method = METHODS[run_config.lora.method]
    if not method.takes_targets:
        detail = f"{method.title}: {method.help}. {counts.adapter_parameters:,} parameters besides the head."
        return Check(level="ok", title="Targets", detail=detail)
    if not run_config.lora.targets:
        if run_config.lora.head == "freeze":
            return Check(level="error", title="Targets", detail="Nothing would train: no targets and a frozen head.")
        return Check(level="note", title="Targets", detail="No targets: a linear probe, which trains only the head.")
    own = len(run_config.lora.rank_pattern)
    modules = f"{counts.layers} modules get" if counts.layers != 1 else "1 module gets"
    ranks = f", {own} with {'separate ranks' if own > 1 else 'a separate rank'}" if own else ""
    detail = f"{modules} {run_config.lora.label}{ranks}; adapters start as a no-op (verified when the network loads)."
    return Check(level="ok", title="Targets", detail=detail)


def _head_check(run_config: RunConfig, outline: Outline, counts: Counts) -> Check:
    policy, method = run_config.lora.head, METHODS[run_config.lora.method]
    if policy == "lora" and (reason := method.reason(outline.head_layer.kind)):
        detail = f"The head ({outline.head_layer.path}): {reason} Set lora.head=train."
        return Check(level="error", title="Head", detail=detail)
    if policy == "freeze":
        detail = "The head is new and frozen: it keeps its random weights. Set lora.head=train unless you intend this."
        return Check(level="warning", title="Head", detail=detail)
    how = "trained fully" if policy == "train" else f"trained through {run_config.lora.label}"
    return Check(level="ok", title="Head", detail=f"New, {how}: {counts.head_parameters:,} parameters.")


def _files_checks(found: Findings, manifest: Manifest) -> list[Check]:
    """Findings of earlier scans, so that skipped files do not show in the counts alone. Embedded sets have no files."""
    checks = []
    if found.refusal:
        checks.append(Check(level="error", title="Data", detail=found.refusal))
    elif left_out := manifests.left_out(manifest):
        checks.append(Check(level="warning", title="Data", detail=left_out))
    if found.odd:
        checks.append(Check(level="warning", title="Data", detail=found.odd))
    if waiting := found.files - found.scanned:
        detail = f"{waiting:,} of {found.files:,} files have not been scanned: the run decodes them before training."
        checks.append(Check(level="note", title="Files", detail=detail))
    elif manifest.layout != "embedded":
        checks.append(Check(level="ok", title="Files", detail=f"All {found.files:,} files have been scanned."))
    return checks


def _notes_checks(manifest: Manifest) -> list[Check]:
    doubts = [Check(level="warning", title="Data", detail=note) for note in manifest.warnings]
    facts = [note for note in manifest.notes if note not in manifest.warnings]
    return [*doubts, *(Check(level="note", title="Data", detail=note) for note in facts)]


def _classes_check(manifest: Manifest) -> Check:
    if len(manifest.classes) < 2:
        detail = f"{manifest.name} has only one class; a classifier needs two. Add another folder of clips."
        return Check(level="error", title="Classes", detail=detail)
    for split in SPLITS:
        missing = [name for name in manifest.classes if not manifest.counts[name][split]]
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            those = "1 class has" if len(missing) == 1 else f"{len(missing)} classes have"
            detail = f"{those} no clip in {split}: {shown}. Add clips, or change the split."
            return Check(level="error", title="Classes", detail=detail)
    detail = f"All {len(manifest.classes)} classes are in train, valid and test."
    return Check(level="ok", title="Classes", detail=detail)


def _length_check(run_config: RunConfig, manifest: Manifest) -> list[Check]:
    """Whether the backbone takes clips of this length; no check is shown if it does."""
    front_end = backbones.variant(run_config.model.variant).front_end
    try:
        front_end.frames(audio.samples(manifest.clip_s, front_end.sample_rate_hz))
    except DataError as error:
        return [Check(level="error", title="Clip length", detail=str(error))]
    return []


def _device_check(run_config: RunConfig) -> Check:
    present = local.devices()
    if run_config.device == "auto":
        return Check(level="ok", title="Device", detail=f"auto: {present[0]}")
    if run_config.device not in present:
        return Check(level="error", title="Device", detail=local.absence(run_config.device))
    return Check(level="ok", title="Device", detail=run_config.device)


def _wandb_check(run_config: RunConfig) -> Check:
    mode = run_config.wandb.mode
    if find_spec("wandb") is None:
        return Check(level="error", title="W&B", detail=reporters.wandb_missing(mode))
    return Check(level="ok", title="W&B", detail=mode)
