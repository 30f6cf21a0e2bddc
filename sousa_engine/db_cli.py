"""`db check`, `db rebuild` and `db backup`: looking after runs.db."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sousa_engine import rebuild, upkeep
from sousa_engine.workspace import Workspace


@click.group()
def db() -> None:
    """Look after runs.db: check it, copy it, make it again from the runs' folders."""


@db.command()
@click.pass_obj
def check(workspace: Workspace) -> None:
    """Is runs.db whole, does it agree with the runs' folders? Changes nothing. Exit code 1 if something is wrong."""
    found = upkeep.check(workspace)
    for fact in found.facts:
        click.echo(f"ok       {fact}")
    for finding in found.findings:
        click.echo(f"PROBLEM  {finding}")
    sys.exit(1 if found.findings else 0)


@db.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def backup(workspace: Workspace, file: Path | None) -> None:
    """Copy runs.db whole, trainings or not: to FILE, or beside it under a dated name. Never over a file that is there.

    The runs' folders (logs, checkpoints, adapters) are no part of it: copy runs/ for these.
    """
    made = upkeep.backup(workspace, file)
    click.echo(f"{made} ({made.stat().st_size / 2**20:,.1f} MiB)")


@db.command("rebuild")
@click.pass_obj
def rebuild_command(workspace: Workspace) -> None:
    """Make runs.db again from the runs' folders. Close the studio first. The old file is kept beside the new one.

    What stands in no folder (tags, notes, sweeps) is taken from the old file where that can be read.
    """
    made = rebuild.rebuild(workspace)
    click.echo(f"{_runs(made.runs)} in the new runs.db")
    if made.from_files:
        click.echo(f"{_runs(len(made.from_files))} of these from the folder alone")
    if made.without_folder:
        click.echo(f"{_runs(made.without_folder)} of these without a folder, from the old runs.db")
    for line in made.left_out:
        click.echo(f"left out: {line}")
    for line in made.lost:
        click.echo(f"lost: {line}")
    if made.kept:
        click.echo(f"the old file: {made.kept}")


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
