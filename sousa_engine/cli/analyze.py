"""`python -m sousa_engine analyze`: a comparison as Markdown, CSV, or one HTML file with its charts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from sousa_engine import report
from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, Sweep
from sousa_engine.report import encoded, of_workspace
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace


@click.command("analyze", short_help="A sweep, or runs, as a report: verdict, tables, charts.")
@click.argument("sweep", required=False)
@click.option("--run", "runs", multiple=True, metavar="RUN", help="These runs instead of a sweep; once for each.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(report.FORMATS)),
    help="Default: what the file's name says, else markdown.",
)
@click.option(
    "--out", "out", metavar="FILE", default="-", help="Write this file (.md, .csv or .html); - is the terminal."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.pass_obj
def analyze_command(
    workspace: Workspace, sweep: str | None, runs: tuple[str, ...], form: str | None, out: str, force: bool
) -> None:
    """Report what a sweep has come to: python -m sousa_engine analyze last --out report.html

    SWEEP is an id, the start or end of one, a name, or `last`. Without it: the newest sweep, or where there is none all
    runs that are not archived. The HTML file holds its charts and needs neither server nor network: send it to anybody.
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
    """(format, file), checked before anything is computed; None is the terminal."""
    if out == "-":
        if form == "html" and sys.stdout.isatty():
            raise UserError("An HTML report is a file of 5 MB: write it to one with --out report.html.")
        return form or "markdown", None
    path = Path(out).expanduser()
    if path.is_dir():
        raise UserError(f"{out} is a folder. Name a file in it: {path / 'report.html'}")
    told = report.SUFFIXES.get(path.suffix.lower())
    if told is None and form is None:
        raise UserError(f"{out}: name it .md, .csv or .html, or say --format.")
    if told and form and told != form:
        raise UserError(f"{out} is {told} by its name, and --format says {form}: leave one of them away.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into. Make it first.")
    if path.exists() and not force:
        raise UserError(f"{out} is there already. Choose another name, or write over it with --force.")
    return form or told or "markdown", path


def _asked(store: Store, sweep: str | None, runs: Sequence[str]) -> tuple[Sweep | None, tuple[Run, ...]]:
    if runs:
        return None, tuple({run.id: run for run in map(store.runs.find, runs)}.values())
    if sweep or store.sweeps.all():
        return store.sweeps.find(sweep or "last"), ()
    found = [run for run in store.runs.all(newest_first=False) if run.archived_at_ms is None]
    if not found:
        raise UserError(
            "There is nothing to report: no run that is not archived. Try: python -m sousa_engine sweep --help"
        )
    return None, tuple(found)


def _write(path: Path, text: str, form: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(encoded(text, form))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
