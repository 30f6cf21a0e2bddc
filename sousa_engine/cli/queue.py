"""`queue` shows and reorders the queue; `stop` ends a run; `clone` queues another run with its settings."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from sousa_engine.cli import complete
from sousa_engine.cli.types import Whole
from sousa_engine.core.errors import UserError
from sousa_engine.core.records import RunStatus
from sousa_engine.runs import ensure, orders
from sousa_engine.runs.executors import local, slots
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace


@click.group(invoke_without_command=True)
@click.pass_context
def queue(ctx: click.Context) -> None:
    """Show, reorder or pause the queue. Without a command, show it."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


@queue.command()
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="Number of queued runs to list.")
@click.pass_obj
def show(workspace: Workspace, limit: int) -> None:
    """Show the active run of each slot, and the queued runs."""
    with Store.open_to_read(workspace) as store:
        state, live, waiting, count = (
            store.queue.settings(),
            store.queue.live(),
            store.queue.waiting(limit),
            store.queue.count(),
        )
    held = {run.device: run for run in live}
    if state.is_paused:
        assert state.paused_at_ms is not None
        since = datetime.fromtimestamp(state.paused_at_ms / 1000).strftime("%Y-%m-%d %H:%M")
        click.echo(f"Paused since {since}: no new run starts. Resume with: python -m sousa_engine queue resume")
    for slot in dict.fromkeys([*slots(local.devices(), state.cpu_slots), *filter(None, held)]):
        run = held.get(slot)
        click.echo(f"{slot:<8} " + (f"{run.id}  {run.status.value:<9} {run.title}" if run else "free"))
    for place, row in enumerate(waiting, start=1):
        click.echo(f"{place:>8} {row.id}  {row.device:<9} {row.title}")
    if count > len(waiting):
        click.echo(f"{len(waiting)} of {count:,} queued runs; --limit {count} shows all.")
    if not waiting:
        click.echo("The queue is empty.")


@queue.command()
@click.argument("run", shell_complete=complete.runs)
@click.option("--to", "place", type=Whole(1), required=True, metavar="N", help="New position; 1 is next.")
@click.pass_obj
def move(workspace: Workspace, run: str, place: int) -> None:
    """Move a queued run to another position: queue move last --to 1

    RUN is an id, the unique start or end of an id, a name, or `last`. To remove it: python -m sousa_engine stop RUN
    """
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        place = store.queue.move(found.id, place)
        count = store.queue.count()
    click.echo(f"run {found.id}: position {place} of {count}")


@queue.command()
@click.pass_obj
def pause(workspace: Workspace) -> None:
    """Start no new runs; active runs continue."""
    with Store.open(workspace) as store:
        changed = store.queue.pause()
    click.echo("Queue paused. Active runs continue; no new run starts." if changed else "The queue was already paused.")


@queue.command()
@click.pass_obj
def resume(workspace: Workspace) -> None:
    """Start queued runs again."""
    with Store.open(workspace) as store:
        changed = store.queue.resume()
    ensure.ensure(workspace)
    click.echo("Queue resumed." if changed else "The queue was not paused.")


@queue.command("slots")
@click.argument("count", type=Whole())
@click.pass_obj
def cpu_slots(workspace: Workspace, count: int) -> None:
    """Set how many runs may train on the CPU at the same time; they share its threads. A GPU trains one run."""
    with Store.open(workspace) as store:
        store.queue.set_cpu_slots(count)
    ensure.ensure(workspace)
    threads = local.share_of_threads(count)
    click.echo(f"{count} CPU slot{'s' if count > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} each")


@click.command()
@click.argument("run", shell_complete=complete.runs)
@click.option("--now", is_flag=True, help="Kill it now; progress since the last checkpoint is lost.")
@click.option("--yes", is_flag=True, help="With --now: do not ask for confirmation.")
@click.pass_obj
def stop(workspace: Workspace, run: str, now: bool, yes: bool) -> None:
    """Ask a run to save a checkpoint and stop. A queued run is removed from the queue.

    A run that has not stopped after a minute is killed.
    """
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        if found.status.is_over:
            raise UserError(f"Run {found.id} has already ended: {found.status.value}.")
        if now and not yes and found.status is not RunStatus.QUEUED:
            if not sys.stdin.isatty():
                raise UserError("Progress since the last checkpoint would be lost. No terminal to confirm: add --yes.")
            click.confirm(f"Kill {found.id} ({found.title})? Progress since the last checkpoint is lost.", abort=True)
        after = store.runs.request_stop(found.id, at_once=now)
    ensure.ensure(workspace)
    click.echo(f"run {after.id}: {after.status.value}")


@click.command()
@click.argument("words", nargs=-1, metavar="RUN... [FIELD=VALUE]...", shell_complete=complete.runs)
@click.option(
    "--failed",
    is_flag=True,
    help="Clone all failed and lost runs, once each, except archived runs and runs of sweeps.",
)
@click.pass_obj
def clone(workspace: Workspace, words: tuple[str, ...], failed: bool) -> None:
    """Queue new runs with the same settings, or with some changed: clone last seed=7 training.lr=1e-3"""
    names, changes = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if bool(names) is failed:
        raise UserError("Name the runs to clone, or use --failed (not both).")
    with Store.open(workspace) as store:
        found, passed_over = tuple(map(store.runs.find, names)), ()
        if failed:
            again = orders.failures(store)
            found, passed_over = again.runs, again.passed_over
            if not found and not passed_over:
                raise UserError(
                    "No run failed or was lost. For runs of a sweep: python -m sousa_engine sweeps rerun-failed SWEEP"
                )
    for line in passed_over:
        click.echo(line)
    if not found:
        click.echo("There is no run left to queue. To clone a run anyway, name it: python -m sousa_engine clone RUN")
        return
    for run in orders.clone(workspace, found, changes, created_by="cli", retry=failed):
        click.echo(f"run {run.id} queued: {run.title}")
