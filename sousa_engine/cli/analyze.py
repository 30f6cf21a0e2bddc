"""`python -m sousa_engine analyze`: a comparison as Markdown, CSV, or one HTML file with charts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from sousa_engine import report
from sousa_engine.cli import complete
from sousa_engine.core import inputs
from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, Sweep
from sousa_engine.report import encoded, of_workspace
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace


@click.command("analyze", short_help="Write a report on a sweep or on runs: verdict, tables, charts.")
@click.argument("sweep", required=False, shell_complete=complete.sweeps)
@click.option(
    "--run", "runs", multiple=True, metavar="RUN", help="Report on this run instead of a sweep; repeat for several."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(report.FORMATS)),
    help="Default: taken from the file name, otherwise markdown.",
)
@click.option(
    "--out", "out", metavar="FILE", default="-", help="File to write (.md, .csv or .html); - prints to the terminal."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.pass_obj
def analyze_command(
    workspace: Workspace, sweep: str | None, runs: tuple[str, ...], form: str | None, out: str, force: bool
) -> None:
    """Report the results of a sweep: python -m sousa_engine analyze last --out report.html

    SWEEP is an id, the start or end of an id, a name, or `last`. The default is the newest sweep or, if there is none,
    all runs that are not archived. The HTML file contains its charts and needs no server and no network connection, so
    you can send it to anyone.
    """
    if sweep and runs:
        raise UserError("Name a sweep or runs, not both.")
    form, path = _target(form, out, force)
    with Store.open_to_read(workspace) as store:
        found = of_workspace(store, *_asked(store, sweep, runs))
    text = report.FORMATS[form](found)
    if path is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    _write(path, text, form)
    click.echo(f"{path}: {found.title}, {form}, {path.stat().st_size / 1e6:,.1f} MB")


def _target(form: str | None, out: str, force: bool) -> tuple[str, Path | None]:
    """(format, file), checked before anything is computed; None stands for the terminal."""
    if out == "-":
        if form == "html" and sys.stdout.isatty():
            raise UserError("An HTML report has 5 MB. Write it to a file: --out report.html")
        return form or "markdown", None
    path = inputs.typed_path(out)
    if path.is_dir():
        raise UserError(f"{out} is a folder. Name a file, such as {path / 'report.html'}.")
    named = report.SUFFIXES.get(path.suffix.lower())
    if named is None and form is None:
        raise UserError(f"{out}: the name must end in .md, .csv or .html; otherwise add --format.")
    if named and form and named != form:
        raise UserError(f"The name {out} means {named}, but --format says {form}. Change one of them.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist. Create it first.")
    if path.exists() and not force:
        raise UserError(f"{out} already exists. Choose another name, or overwrite it with --force.")
    return form or named or "markdown", path


def _asked(store: Store, sweep: str | None, runs: Sequence[str]) -> tuple[Sweep | None, tuple[Run, ...]]:
    if runs:
        return None, tuple({run.id: run for run in map(store.runs.find, runs)}.values())
    if sweep or store.sweeps.all():
        if sweep and store.runs.get(sweep):
            raise UserError(f"{sweep} is a run, not a sweep. For a report on runs: --run {sweep}")
        return store.sweeps.find(sweep or "last"), ()
    found = [run for run in store.runs.all(newest_first=False) if run.archived_at_ms is None]
    for run in store.runs.unreadable():
        click.echo(f"left out: run {run.id}. {run.unreadable}", err=True)
    if not found:
        raise UserError(
            "There is nothing to report: no runs, or all are archived. Try: python -m sousa_engine sweep --help"
        )
    return None, tuple(found)


def _write(path: Path, text: str, form: str) -> None:
    """Write the complete file, or leave what was there unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(encoded(text, form))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
