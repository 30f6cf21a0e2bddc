"""`sweep` starts a sweep; `sweeps` lists and controls sweeps."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from sousa_engine.analysis.sweeps import TrialRow, best_first, failures, tally, trial_rows, trials, unreadable
from sousa_engine.cli import complete
from sousa_engine.cli.types import TypedPath, Whole
from sousa_engine.core import grammar, sweep_spec
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.core.records import RunFilter, RunStatus, Sweep
from sousa_engine.runs import sweep_learner, sweep_orders, sweep_plan, sweep_words, timing
from sousa_engine.store import Store, trash
from sousa_engine.workspace import Workspace, run_files

POLL_S = 1.0


class _TakesMany(click.Command):
    """Read `--models a b c` as `--models a --models b --models c`, up to the next option or field=value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("--") or "=" in word:
                option = word if word in sweep_words.MANY else ""
                spread.append(word)
            elif option and spread[-1] != option:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, list(_apart(spread)))


class _TakesSeeds(click.Command):
    """Read `3,4` as `3 4`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [seed for word in args for seed in _numbers(word)])


def _apart(spread: Iterable[str]) -> Iterator[str]:
    """`--seeds 0,1` as `--seeds 0 --seeds 1`."""
    option = ""
    for word in spread:
        if option == "--seeds":
            first, *more = _numbers(word)
            yield first
            yield from (part for seed in more for part in (option, seed))
        else:
            yield word
        option = word


def _numbers(word: str) -> list[str]:
    """The numbers of a list such as `0,1` or `0;1`; any other word as it is."""
    found = [part.strip() for part in re.split("[,;]", word) if part.strip()]
    return found if found and all(part.isdecimal() for part in found) else [word]


@click.command("sweep", cls=_TakesMany, short_help="Train all combinations of the listed values, several seeds each.")
@click.argument("words", nargs=-1, metavar="[GROUP=NAME | FIELD=VALUE]...", shell_complete=complete.words)
@click.option("--file", "--config", "file", type=TypedPath(file=True), help="YAML file that defines the sweep.")
@click.option(
    "--data",
    help="Data set for all runs: an embedded set, a folder, or a table.",
    shell_complete=complete.datasets,
)
@click.option("--max-epochs", type=Whole(1), help="Epochs for all runs.")
@click.option(
    "--models",
    multiple=True,
    metavar="NAME...",
    help="Backbones to compare, e.g. ast-mini beats-mini.",
    shell_complete=complete.backbones,
)
@click.option(
    "--targets",
    multiple=True,
    metavar="SET...",
    help="Target sets to compare: core, default, attention, ..., or comma-separated names: q_proj,v_proj.",
    shell_complete=complete.sets,
)
@click.option(
    "--ablate",
    metavar="SET",
    help="Compare variants of SET on one backbone: all, without each role, each role alone, half of the layers.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="FIELD=A,B",
    help="Another field to vary: a,b or low..high or log:low..high.",
)
@click.option(
    "--seeds",
    multiple=True,
    type=Whole(),
    metavar="N...",
    help="Seeds of each setting. [0 1 2]",
)
@click.option("--sampler", type=click.Choice(list(sweep_spec.SAMPLERS)), help="Search strategy. [grid]")
@click.option("--trials", type=Whole(1), help="Number of settings that random, tpe or asha samples.")
@click.option("--sampler-seed", type=Whole(0), help="Seed of the sampler. [0]")
@click.option("--name", help="Name of the sweep in lists.")
@click.option(
    "--probe",
    "measure",
    is_flag=True,
    help="Before starting, measure the speed of settings that are new to this machine, a few seconds each.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave out invalid combinations and start the others.")
@click.option("--dry-run", is_flag=True, help="Show what would run, without starting it.")
@click.option("--detach", is_flag=True, help="Queue the sweep and return immediately.")
@click.pass_obj
def sweep_command(
    workspace: Workspace,
    words: tuple[str, ...],
    file: Path | None,
    measure: bool,
    skip_invalid: bool,
    dry_run: bool,
    detach: bool,
    **written: Any,
) -> None:
    """Train a sweep: python -m sousa_engine sweep --data tiny --max-epochs 10 --models ast-mini beats-mini

    Fields shared by all runs are given as for `train`. The runs train in the background and continue if you close this
    terminal.
    """
    spec = sweep_words.laid_over(file, words, **written)
    found = sweep_plan.plan(spec, workspace)
    if measure and found.untimed:
        timing.measure(workspace, found.untimed)
        found = sweep_plan.plan(spec, workspace)
    _echo_plan(found)
    if dry_run:
        if found.problems and not (skip_invalid and found.run_count):
            raise UserError(sweep_plan.describe(found.problems))
        click.echo(sweep_spec.to_yaml(spec))
        return
    made = sweep_orders.start(workspace, spec, created_by="cli", leave_out_invalid=skip_invalid)
    for line in sweep_plan.describe(found.problems).splitlines():
        click.echo(f"left out: {line}")
    click.echo(f"sweep {made.id} queued: {made.name}")
    if detach:
        click.echo(f"Follow it with: python -m sousa_engine sweeps show {made.id}")
        return
    try:
        _follow(workspace, made)
    except KeyboardInterrupt:
        stop = f"python -m sousa_engine sweeps stop {made.id}"
        click.echo(f"Sweep {made.id} continues in the background. To stop it: {stop}", err=True)
        sys.exit(run_files.EXIT_INTERRUPTED)
    with Store.open(workspace) as store:
        over = store.sweeps.find(made.id)
        _echo_sweep(store, over)
        sys.exit(_exit_code(store, over))


@click.group(
    invoke_without_command=True,
    short_help="List, show, pause, stop, extend, rename, archive or delete sweeps; rerun failed runs.",
)
@click.option("--archived", is_flag=True, help="List the archived sweeps instead of the others.")
@click.pass_context
def sweeps(ctx: click.Context, archived: bool) -> None:
    """List the sweeps of this workspace, or control one.

    SWEEP is an id, the start or end of an id, a name, or `last`.
    """
    if ctx.invoked_subcommand is not None:
        return
    with Store.open_to_read(ctx.obj) as store:
        every = store.sweeps.all(archived=archived)
        if not every:
            if archived:
                click.echo("No sweep is archived.")
                return
            if store.sweeps.all(archived=True):
                click.echo("All sweeps are archived. To list them: python -m sousa_engine sweeps --archived")
                return
            click.echo("No sweeps yet. Try: python -m sousa_engine sweep --data tiny --models ast-mini beats-mini")
            return
        click.echo(f"{'SWEEP':<20} {'STATUS':<9} {'RUNS':<9} NAME")
        for one in every:
            if why := unreadable(one):
                click.echo(f"{one.id:<20} {one.status.value:<9} {'-':<9} {one.name}  (cannot be read: {why})")
                continue
            count = tally(one, store.sweeps.runs(one.id))
            failed = f"  ({count.failed} failed)" if count.failed else ""
            ended = f"{count.over}/{count.expected}"
            click.echo(f"{one.id:<20} {one.status.value:<9} {ended:<9} {one.name}{failed}")


@sweeps.command("show")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.option("--yaml", "as_yaml", is_flag=True, help="Print its definition, in the format of `sweep --file`.")
@click.pass_obj
def show(workspace: Workspace, name: str, as_yaml: bool) -> None:
    """Show the trials of a sweep, their results, and the causes of failures."""
    with Store.open(workspace) as store:
        found = store.sweeps.find(name)
        if as_yaml:
            click.echo(sweep_spec.to_yaml(sweep_spec.build(found.spec)))
        else:
            _echo_sweep(store, found)


@sweeps.command("pause")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.pass_obj
def pause(workspace: Workspace, name: str) -> None:
    """Hold the queued runs of a sweep; active runs continue."""
    _steer(workspace, name, sweep_learner.pause, "paused", "is not running")


@sweeps.command("resume")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.pass_obj
def resume(workspace: Workspace, name: str) -> None:
    """Resume a paused sweep."""
    _steer(workspace, name, sweep_orders.resume, "running", "is not paused")


@sweeps.command("stop")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.pass_obj
def stop(workspace: Workspace, name: str) -> None:
    """Remove its runs from the queue; active runs save a checkpoint and stop."""
    _steer(workspace, name, sweep_orders.stop, "stopped", "has already ended")


@sweeps.command("add-seeds", cls=_TakesSeeds)
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.argument("seeds", nargs=-1, type=Whole(), required=True)
@click.pass_obj
def add_seeds(workspace: Workspace, name: str, seeds: tuple[int, ...]) -> None:
    """Train all settings with more seeds: sweeps add-seeds last 3 4"""
    with Store.open(workspace) as store:
        _echo_queued(sweep_orders.add_seeds(store, store.sweeps.find(name), seeds, created_by="cli"))


@sweeps.command("extend")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.argument("axis", metavar="FIELD=A,B")
@click.pass_obj
def extend(workspace: Workspace, name: str, axis: str) -> None:
    """Add values to an axis of a grid: sweeps extend last targets=all-linear"""
    field, values = sweep_spec.parse_axis(axis)
    if not isinstance(values, list):
        raise ConfigError(f"{axis}: a grid needs listed values, such as field=a,b.")
    with Store.open(workspace) as store:
        _echo_queued(sweep_orders.extend(store, store.sweeps.find(name), field, values, created_by="cli"))


@sweeps.command("add-trials")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.argument("count", type=Whole(1))
@click.pass_obj
def add_trials(workspace: Workspace, name: str, count: int) -> None:
    """Sample more settings: sweeps add-trials last 10"""
    with Store.open(workspace) as store:
        found = store.sweeps.find(name)
        queued = sweep_orders.add_trials(store, found, count, created_by="cli")
    if sweep_spec.build(found.spec).learns:
        click.echo(f"{count} more trials will be sampled")
    else:
        _echo_queued(queued)


@sweeps.command("rerun-failed")
@click.argument("name", metavar="SWEEP", shell_complete=complete.sweeps)
@click.option("--targets", help="Other targets for these runs: the name of a set, or comma-separated names.")
@click.pass_obj
def rerun_failed(workspace: Workspace, name: str, targets: str | None) -> None:
    """Train failed and stopped runs again, unchanged or with other targets:

    sweeps rerun-failed last --targets qkv
    """
    with Store.open(workspace) as store:
        found = store.sweeps.find(name)
        failed = [run for failure in failures(store.sweeps.runs(found.id), stopped=True) for run in failure.runs]
        if not failed:
            raise UserError(f"No run of sweep {found.id} failed or was stopped.")
        entries = None if targets is None else grammar.entries(targets)
        _echo_queued(sweep_orders.rerun(store, found, failed, targets=entries, created_by="cli"))


@sweeps.command("rename")
@click.argument("name", metavar="SWEEP")
@click.argument("title", metavar="NAME")
@click.pass_obj
def rename(workspace: Workspace, name: str, title: str) -> None:
    """Give a sweep another name; "" restores the automatic one."""
    with Store.open(workspace) as store:
        found = store.sweeps.rename(store.sweeps.find(name).id, title)
    click.echo(f"sweep {found.id}: {found.name}")


@sweeps.command("note")
@click.argument("name", metavar="SWEEP")
@click.argument("text", required=False)
@click.pass_obj
def note(workspace: Workspace, name: str, text: str | None) -> None:
    """Write a note on a sweep; "" removes it. Without a text, show the note."""
    with Store.open(workspace) as store:
        found = store.sweeps.find(name)
        if text is not None:
            found = store.sweeps.set_note(found.id, text)
    click.echo(found.note or f"sweep {found.id}: no note")


@sweeps.command("archive")
@click.argument("names", metavar="SWEEP...", nargs=-1, required=True)
@click.option("--undo", is_flag=True, help="Show the sweeps and their runs in the lists again.")
@click.pass_obj
def archive(workspace: Workspace, names: tuple[str, ...], undo: bool) -> None:
    """Hide sweeps and their runs from the lists without deleting them."""
    with Store.open(workspace) as store:
        ids = [store.sweeps.find(name).id for name in names]
        (store.sweeps.unarchive if undo else store.sweeps.archive)(ids)
    click.echo(f"{_count(len(ids), 'sweep')} {'restored to the lists' if undo else 'archived'}: {', '.join(ids)}")


@sweeps.command("delete")
@click.argument("names", metavar="SWEEP...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def delete(workspace: Workspace, names: tuple[str, ...], yes: bool) -> None:
    """Delete sweeps permanently, with all their runs, metrics, checkpoints and adapters."""
    with Store.open(workspace) as store:
        found = list({sweep.id: sweep for sweep in map(store.sweeps.find, names)}.values())
        runs = [row.id for one in found for row in store.runs.listing(RunFilter(sweep_id=one.id, archived=None)).rows]
        what = f"{_count(len(found), 'sweep')} with {_count(len(runs), 'run')}"
        if not yes:
            for one in found:
                click.echo(f"{one.id:<20} {one.status.value:<9} {one.name}")
            size = trash.size_bytes(workspace, runs) / 1e6
            if not sys.stdin.isatty():
                raise UserError(f"{what} ({size:,.1f} MB) would be deleted. No terminal to confirm: add --yes.")
            click.confirm(f"Permanently delete {what} ({size:,.1f} MB)?", abort=True)
        store.sweeps.delete(one.id for one in found)
    click.echo(f"{what} deleted: {', '.join(one.id for one in found)}")


def _echo_plan(found: sweep_plan.Plan) -> None:
    spec = found.spec
    click.echo(f"{spec.title}: {spec.sampler}, {_count(len(spec.seeds), 'seed')}, {_count(found.run_count, 'run')}")
    for note in found.notes:
        click.echo(f"note: {note}")
    if found.seconds is not None:
        click.echo(f"about {_duration(found.seconds)}, judging by earlier runs; {_megabytes(found.disk_bytes)}")
    elif found.runs or spec.learns:
        names = list(dict.fromkeys(config.model.variant for config in found.untimed))
        click.echo(
            f"time unknown: {', '.join(names)} {'has' if len(names) == 1 else 'have'} not been timed on this machine "
            f"with these settings (--probe does that); {_megabytes(found.disk_bytes)}"
        )


def _follow(workspace: Workspace, made: Sweep) -> None:
    """Show a bar of finished runs until the sweep has ended."""
    lines = not sys.stderr.isatty()
    shown = -1
    with tqdm(total=1, leave=False, disable=lines, unit="run") as bar, Store.open(workspace) as store:
        while True:
            found = store.sweeps.find(made.id)
            runs = store.sweeps.runs(made.id)
            ended = sum(run.status.is_over for run in runs)
            bar.total = sweep_spec.build(found.spec).run_count if found.spec["sampler"] != "grid" else len(runs)
            bar.n = ended
            bar.refresh()
            if lines and ended != shown:
                click.echo(f"{ended} of {bar.total} runs done", err=True)
                shown = ended
            if found.status.is_over and ended == len(runs):
                return
            time.sleep(POLL_S)


def _echo_sweep(store: Store, found: Sweep) -> None:
    runs = store.sweeps.runs(found.id)
    rows = trial_rows(runs, store.metrics.summaries([run.id for run in runs]))
    spec = sweep_spec.build(found.spec)
    click.echo(f"sweep {found.id}: {found.name}, {spec.sampler}, {found.status.value}")
    if found.reason:
        click.echo(found.reason)
    if found.note:
        click.echo(f"note: {found.note}")
    width = max([len("TRIAL"), *(len(row.label) for row in rows)])
    click.echo(
        f"{'TRIAL':<{width}}  {'VALID':<7} {'TEST':<7} {'PER SEED':<22} {'95 % INTERVAL':<24} {'TRAINABLE':>10}  RUNS"
    )
    for row in best_first(rows):
        click.echo(f"{row.label:<{width}}  {_row_text(row)}")
    for failure in failures(runs, stopped=True):
        count = len(failure.runs)
        what = "did not finish" if failure.is_stop else "failed"
        same = ", same cause" if count > 1 else ""
        click.echo(f"{count} {'run' if count == 1 else 'runs'} {what}{same}: {failure.cause}")
        other = " [--targets SET]" if failure.is_of_targets else ""
        click.echo(f"    train again: python -m sousa_engine sweeps rerun-failed {found.id}{other}")


def _row_text(row: TrialRow) -> str:
    each = ", ".join(f"{100 * value:.1f}" for value in row.test) or "-"
    found = row.test_interval
    interval = f"{found.low:.1%} to {found.high:.1%}, n={found.n}" if found else "-"
    counts = ", ".join(f"{number} {status}" for status, number in row.statuses.items())
    trainable = "-" if row.trainable is None else f"{row.trainable:,}"
    means = f"{_percent(row.mean_valid):<7} {_percent(row.mean_test):<7}"
    return f"{means} {each:<22} {interval:<24} {trainable:>10}  {counts}"


def _steer(workspace: Workspace, name: str, verb: Any, now: str, otherwise: str) -> None:
    with Store.open(workspace) as store:
        found = store.sweeps.find(name)
        if not verb(store, found.id):
            raise UserError(f"Sweep {found.id} {otherwise}: {found.status.value}.")
    click.echo(f"sweep {found.id}: {now}")


def _echo_queued(queued: sweep_orders.Queued) -> None:
    click.echo(queued.sentence)
    for note in queued.notes:
        click.echo(f"note: {note}")


def _exit_code(store: Store, over: Sweep) -> int:
    """0: all runs finished or were pruned; 3: the sweep was stopped; 1: a run failed."""
    of_trials = trials(store.sweeps.runs(over.id)).values()
    if all(run.status is RunStatus.FINISHED or run.is_pruned for runs in of_trials for run in runs):
        return 0
    return 3 if over.status.value == "stopped" else 1


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _megabytes(size: int) -> str:
    return f"about {size / 1e6:,.0f} MB on disk" if size < 1e9 else f"about {size / 1e9:,.1f} GB on disk"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
