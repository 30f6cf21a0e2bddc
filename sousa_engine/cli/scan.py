"""`python -m sousa_engine scan`: decode every file of a data set, and list what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
from tqdm import tqdm

from sousa_engine.cli.baselines import data_config
from sousa_engine.core.errors import UserError
from sousa_engine.data import scan
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.findings import KINDS, Findings, in_words, passed_over
from sousa_engine.workspace import Workspace, intake, run_files

EXIT_REFUSED = 2


@click.command("scan", short_help="Decode every file of a data set; list what is wrong, and why.")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.FIELD=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--strict", is_flag=True, help="The same as data.strict=true: one thing wrong is one too many.")
@click.option("--fresh", is_flag=True, help="Decode again what earlier scans have seen.")
@click.option("--lock-fd", type=int, hidden=True, help="The lock of this scan, taken by who started us.")
@click.pass_obj
def scan_command(
    workspace: Workspace,
    dataset: str,
    words: tuple[str, ...],
    as_json: bool,
    strict: bool,
    fresh: bool,
    lock_fd: int | None,
) -> None:
    """Scan DATASET (a folder of classes, a CSV file, or an embedded set): python -m sousa_engine scan /path/to/drums

    Every file is decoded to its end by processes of limited memory and time, once: what they found is kept, and
    trainings read it. Errors cannot be used and are left out, warnings are used and odd.

    Exit code 2 if no training could begin on it: for want of classes, or, with --strict, for any error. Else 0.

    \b
    --json prints one object, and this shape stays:
      dataset, strict   as asked
      files             number of files the data set claims; scanned: decoded; usable: what a training gets
      classes           number of classes a training gets
      errors, warnings  how many findings of each level
      kinds             {kind: how many findings}
      refusal           why no training could begin, or ""
      findings          [{level: "error" | "warning", kind, name, reason}], errors first
      passed_over       [{kind: "hidden" | "not-audio" | "beside", count, names}]: no part of files; names: a few
    """
    if not workspace.root.is_dir():
        raise UserError(f"There is no folder {workspace.root} to keep what is found in. Check --workspace.")
    config = data_config(dataset, [*words, *(["data.strict=true"] if strict else [])])
    try:
        with _progress() as tell:
            data = DataSet.scan(config, workspace, tell=tell, lock_fd=lock_fd, fresh=fresh)
    except KeyboardInterrupt:
        click.echo("Stopped. What was decoded is kept; the same command goes on from there.", err=True)
        sys.exit(run_files.EXIT_STOPPED)
    found = data.findings
    click.echo(json.dumps(as_dict(found), indent=1) if as_json else _table(found))
    if found.refusal:
        sys.exit(EXIT_REFUSED)


def as_dict(found: Findings) -> dict[str, Any]:
    """Findings as --json prints them; the command's help describes the shape."""
    counted = {"errors": found.errors, "warnings": found.warnings, "kinds": found.kinds}
    return asdict(found) | counted | {"findings": [asdict(one) for one in found.findings]}


def _table(found: Findings) -> str:
    rows = [
        (one.level.upper(), KINDS[one.kind], one.name or found.dataset, one.reason)
        for one in found.findings
        if one.kind != "data-set"  # the last line says it
    ]
    widths = [min(max(map(len, column)), 48) for column in zip(*rows, strict=True)]
    lines = [
        f"{level:<{widths[0]}}  {kind:<{widths[1]}}  {name:<{widths[2]}}  {why}" for level, kind, name, why in rows
    ]
    return "\n".join(
        [*lines, f"{found.dataset}: {in_words(found)}", *filter(None, [passed_over(found), found.refusal])]
    )


@contextlib.contextmanager
def _progress() -> Iterator[intake.Tell]:
    """A bar on a terminal; in a file or a pipe, a line for each tenth."""
    with tqdm(desc=scan.SCANNING, unit=" files", leave=False, disable=not sys.stderr.isatty()) as bar:
        said = -1

        def tell(doing: str, done: int, total: int | None) -> None:
            nonlocal said
            if not bar.disable:
                bar.total = total
                bar.update(done - bar.n)
            elif total and 10 * done // total != said:
                said = 10 * done // total
                click.echo(f"{doing}: {done:,} of {total:,} files", err=True)

        yield tell
