"""The command line: train, show, resume, modules and targets are here; the other commands are in separate files.

Exit code 0: success. 2: a mistake in the command. 1: the run failed. 3: the run was stopped. 130: Ctrl-C ended the
command, but not the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from sousa_engine import __version__, targets
from sousa_engine.analysis import log
from sousa_engine.cli import complete, terminal
from sousa_engine.cli import queue as queue_cli
from sousa_engine.cli import runs as runs_cli
from sousa_engine.cli.analyze import analyze_command
from sousa_engine.cli.baselines import baselines_command
from sousa_engine.cli.db import db
from sousa_engine.cli.doctor import doctor_command
from sousa_engine.cli.progress import epoch_lines
from sousa_engine.cli.scan import scan_command
from sousa_engine.cli.sweep import sweep_command, sweeps
from sousa_engine.cli.types import TypedPath, Whole
from sousa_engine.cli.weights import weights
from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.errors import SousaError, UserError, WorkspaceError, unknown
from sousa_engine.core.records import Run, RunStatus
from sousa_engine.data import synth
from sousa_engine.runs import ensure, orders, preflight, prepare
from sousa_engine.store import Store, not_resumable
from sousa_engine.workspace import Workspace, default_workspace, file_systems, run_files

POLL_S = 0.3
_OF_RUNS = ("runs", "show", "stop", "resume", "queue", "clone", "tag", "note", "archive", "delete", "analyze", "db")


class _Commands(click.Group):
    """Print the engine's errors as one line on stderr. Exit code 2: the user's mistake; 1: any other expected error."""

    def invoke(self, ctx: click.Context) -> Any:
        with terminal.cleaned():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else ctx.command_path
            click.echo(f"error: {error.format_message()} See: {command} --help", err=True)
            ctx.exit(2)
        except SousaError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UserError) else 1)
        except KeyboardInterrupt:
            click.echo("Interrupted. Queued and active runs continue: python -m sousa_engine queue", err=True)
            ctx.exit(run_files.EXIT_INTERRUPTED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sousa-engine")
@click.option(
    "--workspace",
    "root",
    type=TypedPath(),
    default=None,
    help="Folder of runs.db and runs/ (default: SOUSA_WORKSPACE, or the project folder).",
)
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """Fine-tune audio backbones with LoRA from a terminal. The pages of the studio offer the same actions."""
    ctx.obj = Workspace(root=root.resolve()) if root else default_workspace()
    if ctx.invoked_subcommand in _OF_RUNS and not ctx.obj.root.is_dir():
        raise UserError(f"The folder {ctx.obj.root} does not exist, so it holds no runs. Check --workspace.")
    if trouble := ctx.obj.full_disk():
        click.echo(f"warning: {trouble}", err=True)
    if risk := file_systems.taken_risk(ctx.obj):
        click.echo(f"warning: {risk}", err=True)


for _command in (
    *(runs_cli.runs, runs_cli.tag, runs_cli.note, runs_cli.archive, runs_cli.delete),
    *(queue_cli.queue, queue_cli.clone, queue_cli.stop),
    *(analyze_command, baselines_command, db, doctor_command, scan_command, sweep_command, sweeps, weights),
):
    main.add_command(_command)


def _field_list() -> str:
    """The epilog of `train --help`: all presets and fields."""
    lines = ["\b", "Presets (group=name):"]
    for group in grammar.PRESET_GROUPS:
        lines += [f"  {group + '=' + name:26} {text}" for name, text in grammar.presets(group).items()]
    lines += [
        f"  data={'|'.join(synth.PRESETS)}|PATH",
        " " * 29 + "an embedded set, a folder, or a table (CSV, parquet, ...)",
        "",
        "\b",
        "Fields:",
    ]
    for dotted, info in config.fields():
        lines.append(f"  {dotted:26} {info.description}" + ("" if dotted == "lora.targets" else f" [{info.default}]"))
    return "\n".join(lines)


@main.command(epilog=_field_list(), short_help="Train a run and follow it here.")
@click.argument("words", nargs=-1, metavar="[GROUP=NAME | FIELD=VALUE]...", shell_complete=complete.words)
@click.option(
    "--config",
    "file",
    type=TypedPath(file=True),
    help="YAML file of fields, e.g. copied from the Launch page. Fields on the command line override it.",
)
@click.option("--detach", is_flag=True, help="Queue the run and return immediately.")
@click.option("--dry-run", is_flag=True, help="Show what would run, without starting it.")
@click.pass_obj
def train(workspace: Workspace, words: tuple[str, ...], file: Path | None, detach: bool, dry_run: bool) -> None:
    """Train a run: python -m sousa_engine train model=ast-mini data=tiny training.max_epochs=10 seed=3

    The run trains in the background and continues if you close this terminal. Ctrl-C asks it to save a checkpoint and
    stop; a second Ctrl-C exits without waiting.
    """
    prepared = _prepared(file, words)
    found = preflight.preflight(prepared.config, workspace)
    for note in prepared.notes:
        click.echo(f"note: {note}")
    _echo_preflight(prepared, found)
    if workspace.has_db:
        with Store.open_to_read(workspace) as store:
            earlier = orders.trained_before(store, prepared.config)
        if earlier:
            click.echo(f"note: run {earlier.id} has trained this already, with the same settings and seed.")
    if dry_run:
        if found.errors:
            raise UserError(" ".join(check.detail for check in found.errors))
        click.echo(prepare.to_yaml(prepared.config))
        return
    run = orders.start(workspace, prepared.config, created_by="cli")
    click.echo(f"run {run.id} queued: {run.title}")
    _see_through(workspace, run, detach)


@main.command()
@click.argument("run", shell_complete=complete.runs)
@click.option(
    "--log", "log_lines", type=Whole(0), default=0, help="Also print this many of the last lines of the training log."
)
@click.pass_obj
def show(workspace: Workspace, run: str, log_lines: int) -> None:
    """Show one run. RUN is an id, the unique start or end of an id, a name, or `last`."""
    with Store.open_to_read(workspace) as store:
        found = store.runs.find(run)
        metrics = store.metrics.summaries([found.id]).get(found.id, {})
        events = store.runs.events(found.id)
        resumable = None if found.unreadable or not_resumable(found) else orders.resumable(found, store)
        (row,) = store.runs.rows([found.id])
    rows = [
        ("run", found.id),
        ("title", found.title),
        ("status", found.status.value + (f": {found.reason}" if found.reason else "")),
        *([("unreadable", found.unreadable)] if found.unreadable else []),
        ("device", row.device),
        ("weights", found.weights_label or row.weights),
        ("progress", runs_cli.progress_text(found)),
    ]
    rows += [("tags", ", ".join(found.tags))] if found.tags else []
    rows += [("note", found.note.replace("\n", "\n" + " " * 17))] if found.note else []
    rows += [(name, runs_cli.metric_text(summary)) for name, summary in sorted(metrics.items())]
    for name, text in rows:
        click.echo(f"{name:<16} {text}")
    click.echo(f"{'folder':<16} {workspace.run_dir(found.id)}")
    if resumable:
        command = f"python -m sousa_engine resume {found.id}  (from step {resumable.step:,}, epoch {resumable.epoch})"
        click.echo(f"{'continue':<16} {resumable.why_not or ' '.join([command, resumable.note]).strip()}")
    if not found.unreadable:
        click.echo(f"{'train again':<16} {prepare.to_command(found.config)}")
    for event in events[-8:]:
        at = datetime.fromtimestamp(event.at_ms / 1000).strftime("%H:%M:%S")
        click.echo(f"  {at} {event.kind}: {event.message}")
    if not log_lines and found.status is RunStatus.FAILED:
        log_lines = 40
    for line in log.tail(workspace.run_dir(found.id) / run_files.LOG, log_lines) if log_lines else ():
        click.echo(line)


@main.command()
@click.argument("run", shell_complete=complete.runs)
@click.option("--detach", is_flag=True, help="Queue the run and return immediately.")
@click.pass_obj
def resume(workspace: Workspace, run: str, detach: bool) -> None:
    """Continue a stopped, failed or lost run from its last good checkpoint, as the same run."""
    with Store.open(workspace) as store:
        found = store.runs.find(run)
    again, point = orders.resume(workspace, found.id)
    click.echo(f"run {again.id} queued: continues from step {point.step:,}, epoch {point.epoch}")
    if point.note:
        click.echo(f"warning: {point.note}")
    _see_through(workspace, again, detach)


@main.command()
@click.argument("variant", metavar="BACKBONE", shell_complete=complete.backbones)
@click.option(
    "--grep",
    "pattern",
    default="",
    help="Only modules that match these words, or this regular expression.",
)
@click.option("--adaptable", is_flag=True, help="Only modules that can get LoRA.")
def modules(variant: str, pattern: str, adaptable: bool) -> None:
    """List the modules of a backbone with path, class, weight shape, parameters and role."""
    outline = targets.load_outline(variant)
    shown = [node for node in targets.grep(outline, pattern) if node.adaptable or not adaptable]
    if not shown:
        raise UserError(f"No module of {outline.variant} matches {pattern!r}. Omit --grep to list all modules.")
    width = max(len(node.path) for node in shown)
    for node in shown:
        shape = "x".join(map(str, node.shape))
        click.echo(
            f"{node.path or '(root)':<{width}}  {node.class_name:<20} {shape:>12} {node.parameters:>12,}  {node.role}"
        )
    click.echo(f"{len(shown)} of {len(outline.nodes)} modules of {outline.variant}")


@main.command("targets")
@click.argument("variant", metavar="BACKBONE", shell_complete=complete.backbones)
@click.argument("entries", nargs=-1, required=True)
@click.option(
    "--r", type=Whole(1), default=config.LoraConfig().r, show_default=True, help="Rank, for the parameter count."
)
@click.option(
    "--head",
    type=click.Choice(["train", "lora", "freeze"]),
    default="train",
    show_default=True,
    help="How the head is trained.",
)
@click.option(
    "--classes", type=Whole(1), default=40, show_default=True, help="Number of classes, for the parameter count."
)
def show_targets(variant: str, entries: tuple[str, ...], r: int, head: Any, classes: int) -> None:
    """Show what each entry of a target list matches: python -m sousa_engine targets ast "query,key,value\""""
    outline = targets.load_outline(variant)
    names = [name for entry in entries for name in grammar.entries(entry)]
    if not names:
        raise UserError('No target was given. Try: targets ast "query,key,value", or attention+mlp.')
    found = targets.resolve(outline, targets.expand_sets(outline, names))
    for match in found.matches:
        click.echo(f"{match.entry:<28} {len(match.paths):>3} modules" + (f"  {match.note}" if match.note else ""))
        for path in match.paths[:3]:
            click.echo(f"    {path}")
        if len(match.paths) > 3:
            click.echo(f"    ... and {len(match.paths) - 3} more")
    targets.resolve_strict(outline, targets.expand_sets(outline, names))
    paths = [path for path in found.paths if not outline.in_head(path)]
    counts = targets.count(outline, paths, r=r, head=head, num_classes=classes)
    click.echo(
        f"{counts.layers} modules, {counts.trainable:,} trainable of {counts.total:,} ({counts.percent:.2f} %) "
        f"at r={r}, head: {head}, {classes} classes"
    )
    click.echo(targets.to_yaml(outline, paths))


def _prepared(file: Path | None, words: Sequence[str]) -> prepare.Prepared:
    """The file's settings, if there is one, overridden by those of the command line."""
    asked = grammar.parse(words)
    if file is None:
        return prepare.prepare(asked)
    with inputs.lines_of(file, besides=[word.partition("=")[0] for word in grammar.words(asked)]):
        return prepare.prepare(grammar.laid_over(grammar.read(inputs.yaml_fields(file)), asked))


def _echo_preflight(prepared: prepare.Prepared, found: preflight.Preflight) -> None:
    counts, clips = found.counts, found.clips
    click.echo(
        f"{prepared.config.model.variant}: {counts.trainable:,} trainable of {counts.total:,} parameters "
        f"({counts.percent:.2f} %), {prepared.config.lora.summary}"
    )
    majority = "" if found.majority is None else f", majority baseline {found.majority:.1%}"
    click.echo(
        f"{prepared.config.dataset_name}: {found.classes} classes, train {clips['train']}, valid {clips['valid']}, "
        f"test {clips['test']} clips{majority}; {found.total_steps} {'step' if found.total_steps == 1 else 'steps'}"
    )
    for check in found.checks:
        if check.level in ("note", "warning"):
            click.echo(f"{check.level}: {check.detail}")


def _see_through(workspace: Workspace, run: Run, detach: bool) -> None:
    with Store.open(workspace) as store:
        paused = store.queue.settings().is_paused
    if paused:
        click.echo("Waiting: the queue is paused. Resume it with: python -m sousa_engine queue resume")
    if detach:
        click.echo(f"Follow it with: python -m sousa_engine show {run.id}")
        return
    try:
        over = _follow(workspace, run)
    except KeyboardInterrupt:
        click.echo(_left(workspace, run), err=True)
        sys.exit(run_files.EXIT_INTERRUPTED)
    _echo_end(workspace, over)
    sys.exit({RunStatus.FINISHED: 0, RunStatus.STOPPED: run_files.EXIT_STOPPED}.get(over.status, 1))


def _follow(workspace: Workspace, run: Run) -> Run:
    """Show a progress bar until the run has ended. Ctrl-C asks the run to stop, a second one stops watching it."""
    asked = False
    warned = ""
    form = "{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}{postfix}"
    lines = not sys.stderr.isatty()  # in a file or a pipe: a line for each stage instead of a bar
    shown = None
    told = None  # epochs of which a line was printed; None where a bar alone is enough
    with (
        tqdm(total=1, desc="queued", leave=False, bar_format=form, disable=lines) as bar,
        Store.open(workspace) as store,
    ):
        if lines or not sys.stdout.isatty():
            told = len(epoch_lines(store, run))  # of an earlier attempt
        while True:
            try:
                found = store.runs.get(run.id)
                if found is None:
                    raise UserError(f"Run {run.id} is no longer in {workspace.db}.")
                if lines and (now := _stage(found)) != shown:
                    click.echo(now, err=True)
                    shown = now
                with suppress(WorkspaceError):  # possibly temporary, and the progress shown is still correct
                    ensure.revive(workspace)
                _draw(bar, found)
                if told is not None:
                    for line in (new := epoch_lines(store, found, skip=told)):
                        click.echo(line)
                    told += len(new)
                if found.status.is_over:
                    return found
                if (trouble := workspace.full_disk()) != warned:
                    bar.write(f"warning: {trouble}" if trouble else "The disk has free space again.")
                    warned = trouble
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                store.runs.request_stop(run.id)
                bar.write(
                    f"Stopping run {run.id} after it saves a checkpoint (press Ctrl-C again to exit without waiting)."
                )


def _left(workspace: Workspace, run: Run) -> str:
    """Say what happens to the run after the command exits; the stop request may not have been stored."""
    with Store.open(workspace) as store:
        found = store.runs.find(run.id)
    if found.status.is_over:
        return f"Run {run.id} has already ended: {found.status.value}."
    if found.status is RunStatus.STOPPING:
        return f"Run {run.id} is still stopping in the background; it saves a checkpoint first."
    return f"Run {run.id} continues in the background. To stop it: python -m sousa_engine stop {run.id}"


def _stage(run: Run) -> str:
    progress = run.progress
    if progress is None or run.status.is_over:
        return run.status.value
    return f"{run.status.value}: {progress.phase}"


def _draw(bar: tqdm, run: Run) -> None:
    progress = run.progress
    epoch = f" epoch {progress.epoch}/{progress.max_epochs}" if progress and progress.epoch else ""
    bar.set_description_str(f"{_stage(run)}{epoch}", refresh=progress is None)
    if progress is None:
        return
    bar.total = progress.total
    bar.n = progress.done
    # This is the trainer's estimate; that of tqdm would count the time in the queue as training.
    unknown = progress.eta_s is None or progress.done < 5  # an estimate from the first steps is far off
    bar.set_postfix_str("" if unknown else f"{tqdm.format_interval(progress.eta_s)} left", refresh=False)
    bar.refresh()


def _echo_end(workspace: Workspace, run: Run) -> None:
    with Store.open(workspace) as store:
        metrics = store.metrics.summaries([run.id]).get(run.id, {})
    click.echo(f"run {run.id} {run.status.value}" + (f": {run.reason}" if run.reason else ""))
    if run.is_random:
        click.echo("random weights: a control, not a pretrained backbone")
    for name in ("valid/accuracy", "test/accuracy", "test/macro_f1"):
        if name in metrics:
            click.echo(f"{name:<16} {runs_cli.metric_text(metrics[name])}")
    if run.status is RunStatus.FAILED:
        click.echo(f"Show its log: python -m sousa_engine show {run.id}", err=True)
