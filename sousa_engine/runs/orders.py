"""From a draft to a queued run: one door for the page and the command line. Never imports torch.

prepare (names -> modules, values checked) -> preflight (could it work, and what will it do) -> start (queue it).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import (
    ConfigError,
    DataError,
    PreflightError,
    RunError,
    TargetError,
    UnknownNameError,
    UserError,
)
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.core.records import Origin, Run, RunFilter, RunRow, RunStatus, SweepStatus
from sousa_engine.data import audio, findings, scan
from sousa_engine.data import manifest as manifests
from sousa_engine.data.splits import SPLITS
from sousa_engine.runs import supervisor
from sousa_engine.runs.executors import local
from sousa_engine.store import Store, not_resumable
from sousa_engine.targets import Counts, Outline, Resolution
from sousa_engine.training import reporters
from sousa_engine.training import resume as checkpoints
from sousa_engine.workspace import Workspace

FAILED = (RunStatus.FAILED, RunStatus.LOST)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """config: complete and valid. notes: what was read differently from how it was written, a sentence each."""

    config: RunConfig
    outline: Outline
    resolution: Resolution
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at before a run. "note" is a fact; "warning" is to be weighed; "error" forbids the start."""

    level: Literal["ok", "note", "warning", "error"]
    title: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """clips: number of clips a split. majority: accuracy of always naming the test split's most frequent class."""

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


def prepare(draft: Mapping[str, Any]) -> Prepared:
    """Resolve a draft (grammar.parse, a form, a YAML file) into a RunConfig.

    Raises ConfigError (a field), UnknownNameError (a backbone) or TargetError (a target entry that matches nothing).
    """
    draft = {**draft, "model": {**(draft.get("model") or {})}, "lora": {**(draft.get("lora") or {})}}
    name = backbones.variant(str(draft["model"].get("variant", RunConfig().model.variant))).name
    draft["model"]["variant"] = name
    _make_paths_absolute(draft)
    outline = targets.load_outline(name)
    method = METHODS.get(str(draft["lora"].get("method", "lora")), METHODS["lora"])
    written = draft["lora"].get("targets")
    if written is None:
        written = [targets.default_set(outline)] if method.takes_targets else []
    entries, notes = _for_method(outline, _entries(outline, written), method)
    try:
        resolution = targets.resolve_strict(outline, entries)
    except TargetError as error:
        raise TargetError(f"{error} Sets of targets here: {', '.join(targets.named_sets(outline, method))}.") from None
    notes += [f"{match.entry}: {match.note}" for match in resolution.matches if match.note]
    paths = [path for path in resolution.paths if not outline.in_head(path)]
    if len(paths) < len(resolution.paths):
        policy = draft["lora"].get("head", RunConfig().lora.head)
        notes.append(f"{outline.head_path}: left to the head's policy (lora.head={policy}), not to the targets.")
    draft["lora"]["targets"] = [target.model_dump() for target in outline.targets(paths)]
    if draft["lora"].get("rank_pattern"):
        draft["lora"]["rank_pattern"] = _ranks(outline, draft["lora"]["rank_pattern"], paths)
    if not draft["lora"].get("target_set"):
        draft["lora"]["target_set"] = targets.set_name(outline, paths)
    return Prepared(config=config.build(draft), outline=outline, resolution=resolution, notes=tuple(notes))


def preflight(run_config: RunConfig, workspace: Workspace) -> Preflight:
    """Everything that can be known before a run without loading the network. Raises DataError for unusable data."""
    outline = targets.load_outline(run_config.model.variant)
    verdicts = scan.verdicts(run_config.data, workspace)
    manifest = manifests.open_dataset(run_config.data, verdicts)
    sizes = {split: sum(clip.split == split for clip in manifest.clips) for split in SPLITS}
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
        *_length_check(run_config, manifest),
        _device_check(run_config),
        *([] if run_config.wandb.mode == "disabled" else [_wandb_check(run_config)]),
        *_files_checks(findings.report(run_config.data, verdicts, manifest), manifest),
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


def start(workspace: Workspace, run_config: RunConfig, *, created_by: str, form_token: str | None = None) -> Run:
    """Queue a run and see that a supervisor is there to take it. Raises PreflightError naming what is missing.

    form_token: names a form that was sent; sent again, it is answered with the run that it made the first time.
    """
    found = preflight(run_config, workspace)
    if found.errors:
        raise PreflightError(" ".join(check.detail for check in found.errors))
    with Store.open(workspace) as store:
        run = store.enqueue(run_config, created_by=created_by, form_token=form_token)
    supervisor.ensure(workspace)
    return run


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Whether a run can go on. step, epoch: of the checkpoint it would go on from. why_not: "" if it can.

    note: what to expect, "" for nothing: a sentence.
    """

    step: int = 0
    epoch: int = 0
    why_not: str = ""
    note: str = ""


def resumable(run: Run, store: Store, *, thorough: bool = False) -> Resumable:
    """A quick look at what stands in the run's folder; thorough: every byte of the checkpoint is checked, and the data.

    What else changed since then (weights, versions) is for the trainer to see.
    """
    if why_not := not_resumable(run):
        return Resumable(why_not=why_not)
    try:
        found = checkpoints.find(store.workspace.run_dir(run.id), thorough=thorough)
        if thorough and manifests.fingerprint(manifests.open_dataset(run.config.data)) != found.facts.get("data"):
            raise RunError("Its data set is another one since then: clips, labels or splits changed.")
    except UserError as error:
        return Resumable(why_not=f"It cannot be resumed. {error}")
    except (RunError, OSError) as error:
        return Resumable(why_not=f"It cannot be resumed. {error} Launch it again instead.")
    notes = []
    if found.damaged:
        notes.append(f"A newer checkpoint is damaged, so it goes on from the one before. {found.damaged[0]}")
    divergence = store.first_divergence(run.id)
    if run.status is RunStatus.FAILED and divergence:
        notes.append(f"{divergence[0]} was no number at step {divergence[1]}: expect the same again.")
    sweep = store.sweep(run.sweep_id) if run.sweep_id else None
    if sweep and sweep.status is SweepStatus.PAUSED:
        notes.append("Its sweep is paused: it waits until the sweep goes on.")
    return Resumable(step=found.step, epoch=found.epoch, note=" ".join(notes))


def resume(workspace: Workspace, run_id: str) -> tuple[Run, Resumable]:
    """Queue a stopped, failed or lost run again, as the same run, to go on from its last good checkpoint.

    Raises PreflightError saying why it cannot be; UserError if it is not over or finished; UnknownNameError.
    """
    with Store.open(workspace) as store:
        run = store.run(run_id)
        if run is None:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        found = resumable(run, store, thorough=True)
        if found.why_not:
            raise PreflightError(found.why_not)
        errors = preflight(run.config, workspace).errors
        if errors:
            raise PreflightError(" ".join(check.detail for check in errors))
        run = store.resume(run_id, f"It is to go on from step {found.step}, epoch {found.epoch}.")
    supervisor.ensure(workspace)
    return run, found


def clone(
    workspace: Workspace,
    runs: Sequence[Run],
    changes: Sequence[str] = (),
    *,
    created_by: str,
    form_token: str | None = None,
    retry: bool = False,
) -> tuple[Run, ...]:
    """Queue new runs with the settings of these, in the same order; all of them, or none.

    changes: words as grammar.parse reads them, for each of them. retry: they make up for runs that failed, changed or
    not; unchanged ones always do. form_token as in `start`. Raises ConfigError, UnknownNameError, TargetError,
    DataError; PreflightError naming the run that could only fail.
    """
    configs = []
    for run in runs:
        found = prepare(_changed(run.config, changes) if changes else run.config.model_dump(mode="json")).config
        if errors := preflight(found, workspace).errors:
            raise PreflightError(f"{run.id} ({found.title}): {' '.join(check.detail for check in errors)}")
        configs.append(found)
    origins = [Origin(run.id, run.status in FAILED and (retry or not changes)) for run in runs]
    with Store.open(workspace) as store:
        made = store.enqueue_all(configs, created_by=created_by, form_token=form_token, origins=origins)
    supervisor.ensure(workspace)
    return made


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Runs that failed and are to be tried again, oldest first. passed_over: a sentence for each that is not."""

    runs: tuple[Run, ...]
    passed_over: tuple[str, ...]


def failures(store: Store) -> Failures:
    """All runs that failed or were lost; not archived ones, nor those of sweeps.

    One whose retry waits, trains or is finished is passed over, and one whose retry failed too: that one is among them.
    """
    rows = store.listing(RunFilter(statuses=FAILED), descending=False).rows
    failed = dict.fromkeys(row.id for row in rows if row.sweep_id is None)
    origins = store.retries()
    retries: dict[str, list[RunRow]] = {}
    for retry in store.rows(origins):
        first = origins[retry.id]
        while first is not None:  # a retry of a retry stands for the first run too
            retries.setdefault(first, []).append(retry)
            first = origins.get(first)
    runs, passed_over = [], []
    for run_id in failed:
        found = retries.get(run_id, [])
        done = [one for one in found if not one.status.is_over or one.status is RunStatus.FINISHED]
        again = [one for one in found if one.id in failed]
        if done:
            passed_over.append(f"{run_id} is passed over: its clone {done[-1].id} is {done[-1].status.value}.")
        elif again:
            passed_over.append(f"{run_id} is passed over for its clone {again[-1].id}, which failed too.")
        else:
            runs.append(store.find(run_id))
    return Failures(runs=tuple(runs), passed_over=tuple(passed_over))


def to_yaml(run_config: RunConfig) -> str:
    """The whole config as YAML; `python -m sousa_engine train --config FILE` reads it back to an equal config."""
    values = run_config.model_dump(mode="json")
    values["lora"]["targets"] = [target.path for target in run_config.lora.targets]
    values["lora"]["rank_pattern"] = run_config.lora.ranks
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def to_command(run_config: RunConfig) -> str:
    """The shell command that queues an equal run: only what differs from the defaults, presets counted in."""
    return "python -m sousa_engine train " + " ".join(shlex.quote(word) for word in _words(run_config))


def to_draft(run_config: RunConfig) -> grammar.Draft:
    """What `to_command` says, as `prepare` reads it: it makes an equal config."""
    return grammar.parse(_words(run_config))


def _words(run_config: RunConfig) -> list[str]:
    words = [f"model={run_config.model.variant}", f"data={run_config.data.dataset}"]
    base = prepare(grammar.parse(words)).config
    outline = targets.load_outline(run_config.model.variant)
    for dotted, (_, value) in config.differences([base, run_config]).items():
        if dotted == "lora.target_set" and value in (*targets.recommended_sets(outline), ""):
            continue  # follows from the targets
        if dotted == "lora.targets":
            value = (
                "[" + ",".join(targets.short_names(outline, [target.path for target in run_config.lora.targets])) + "]"
            )
        elif dotted == "lora.rank_pattern":
            value = "{" + ", ".join(f"{path}: {rank}" for path, rank in run_config.lora.rank_pattern) + "}"
        elif value is None:
            value = "null"
        words.append(f"{dotted}={value}")
    return words


def _changed(run_config: RunConfig, changes: Sequence[str]) -> grammar.Draft:
    asked = grammar.parse(changes)
    draft = grammar.parse([*_words(run_config), *changes])
    if "targets" in asked.get("lora", {}) and "target_set" not in asked["lora"]:
        draft["lora"].pop("target_set", None)  # the name of others
    return draft


def _make_paths_absolute(draft: dict[str, Any]) -> None:
    """What is stored holds wherever the trainer is started from: the data set's and the weights' own place."""
    data = {**(draft.get("data") or {})}
    if "dataset" in data:
        draft["data"] = {**data, "dataset": manifests.absolute(str(data["dataset"]))}
    weights = str(draft["model"].get("weights", "pretrained"))
    if weights not in ("pretrained", "random") and Path(weights).expanduser().exists():
        draft["model"]["weights"] = str(Path(weights).expanduser().resolve())


def _entries(outline: Outline, written: Any) -> list[str]:
    """Targets as written: names, or {path, kind, shape} of an earlier run, which must still be what they were."""
    if isinstance(written, list | tuple) and any(isinstance(item, Mapping) for item in written):
        for item in written:
            today = outline.targets([str(item["path"])])[0]
            if (today.kind, list(today.shape)) != (item["kind"], list(item["shape"])):
                raise TargetError(
                    f"{today.path!r} is now {today.kind} {today.shape}, the config says {item['kind']} "
                    f"{tuple(item['shape'])}. Tick it again in the tree of {outline.variant}."
                )
        return [str(item["path"]) for item in written]
    return grammar.entries(written)


def _weights_check(run_config: RunConfig, workspace: Workspace) -> Check:
    model = run_config.model
    if model.weights == "random":
        detail = "Random weights: a control, not a pretrained backbone. Every page will say so."
        return Check(level="warning", title="Weights", detail=detail)
    try:
        state = backbones.weights_state(model.variant, workspace, weights=model.weights)
    except UserError as error:
        return Check(level="error", title="Weights", detail=str(error))
    if not state.available:
        return Check(level="error", title="Weights", detail=state.message)
    return Check(level="ok", title="Weights", detail=state.label)


def _for_method(outline: Outline, entries: list[str], method: Method) -> tuple[list[str], list[str]]:
    """Entries with recommended sets expanded to what the method can adapt, and a note on what that leaves out."""
    found, notes = [], []
    whole, able = targets.named_sets(outline), targets.named_sets(outline, method)
    for entry in entries:
        if entry not in whole:
            found.append(entry)
            continue
        taken = able.get(entry, ())
        if left := [path for path in whole[entry] if path not in taken]:
            reason = method.reason(outline.node(left[0]).kind)
            notes.append(f"{entry}: {len(left)} of its {len(whole[entry])} modules are left out. {reason}")
        found += taken
    return found, notes


def _ranks(outline: Outline, written: Any, paths: Sequence[str]) -> dict[str, int]:
    """rank_pattern with its names resolved among the targets, as PEFT's own rule or the old names would."""
    pairs = list(written.items()) if isinstance(written, Mapping) else written
    are_pairs = isinstance(pairs, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
    if not are_pairs:
        raise ConfigError(
            f"lora.rank_pattern = {written!r} is no set of module: rank. Write '{{q_proj: 4, layers.0.mlp.fc1: 16}}'.",
            field="lora.rank_pattern",
        )
    found: dict[str, int] = {}
    for entry, rank in pairs:
        named = [path for path in targets.resolve_sets(outline, [str(entry)]).paths if path in set(paths)]
        if not named:
            raise TargetError(
                f"lora.rank_pattern: {entry} is a module of {outline.variant}, but no target of this run."
            )
        found |= dict.fromkeys(named, rank)
    return found


def _targets_check(run_config: RunConfig, outline: Outline, counts: Counts) -> Check:
    method = METHODS[run_config.lora.method]
    if not method.takes_targets:
        detail = f"{method.title}: {method.help}. {counts.adapter_parameters:,} parameters beside the head."
        return Check(level="ok", title="Targets", detail=detail)
    if not run_config.lora.targets:
        if run_config.lora.head == "freeze":
            return Check(level="error", title="Targets", detail="Nothing would train: no targets and a frozen head.")
        return Check(level="note", title="Targets", detail="No targets: a linear probe, only the head trains.")
    own = len(run_config.lora.rank_pattern)
    detail = (
        f"{counts.layers} modules get {run_config.lora.label}{f', {own} with a rank of their own' if own else ''}; "
        f"they start as an identity, checked again on the real network."
    )
    return Check(level="ok", title="Targets", detail=detail)


def _head_check(run_config: RunConfig, outline: Outline, counts: Counts) -> Check:
    policy, method = run_config.lora.head, METHODS[run_config.lora.method]
    if policy == "lora" and (reason := method.reason(outline.head_layer.kind)):
        detail = f"The head ({outline.head_layer.path}): {reason} Set lora.head=train."
        return Check(level="error", title="Head", detail=detail)
    if policy == "freeze":
        detail = "The head is new and frozen: its random weights stay. Set lora.head to train unless you mean it."
        return Check(level="warning", title="Head", detail=detail)
    how = "trained fully" if policy == "train" else f"trained through {run_config.lora.label}"
    return Check(level="ok", title="Head", detail=f"New, {how}: {counts.head_parameters:,} parameters.")


def _files_checks(found: findings.Report, manifest: manifests.Manifest) -> list[Check]:
    """What scans so far say of the files, so that nobody finds out only from the counts. Embedded sets have none."""
    checks = []
    if found.refusal:
        checks.append(Check(level="error", title="Data", detail=found.refusal))
    elif left_out := manifests.left_out(manifest):
        checks.append(Check(level="warning", title="Data", detail=left_out))
    if found.odd:
        checks.append(Check(level="warning", title="Data", detail=found.odd))
    if waiting := found.files - found.scanned:
        detail = f"{waiting:,} of {found.files:,} files are still to be decoded: the run does it before it trains."
        checks.append(Check(level="note", title="Files", detail=detail))
    elif manifest.layout != "embedded":
        checks.append(Check(level="ok", title="Files", detail=f"All {found.files:,} files were scanned."))
    return checks


def _notes_checks(manifest: manifests.Manifest) -> list[Check]:
    doubts = [Check(level="warning", title="Data", detail=note) for note in manifest.warnings]
    facts = [note for note in manifest.notes if note not in manifest.warnings]
    return [*doubts, *(Check(level="note", title="Data", detail=note) for note in facts)]


def _classes_check(manifest: manifests.Manifest) -> Check:
    if len(manifest.classes) < 2:
        detail = f"{manifest.name} has one class; a classifier needs two. Add another folder of clips."
        return Check(level="error", title="Classes", detail=detail)
    for split in SPLITS:
        present = {clip.label for clip in manifest.clips if clip.split == split}
        missing = [name for name in manifest.classes if name not in present]
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            detail = f"{len(missing)} classes have no clip in {split}: {shown}. Add clips, or change the split."
            return Check(level="error", title="Classes", detail=detail)
    detail = f"All {len(manifest.classes)} classes are in train, valid and test."
    return Check(level="ok", title="Classes", detail=detail)


def _length_check(run_config: RunConfig, manifest: manifests.Manifest) -> list[Check]:
    """Whether the backbone takes clips of this length: without a word where it does."""
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
        detail = f"{run_config.device} is not on this machine; here are: {', '.join(present)}."
        return Check(level="error", title="Device", detail=detail)
    return Check(level="ok", title="Device", detail=run_config.device)


def _wandb_check(run_config: RunConfig) -> Check:
    mode = run_config.wandb.mode
    if find_spec("wandb") is None:
        return Check(level="error", title="W&B", detail=reporters.wandb_missing(mode))
    return Check(level="ok", title="W&B", detail=mode)
