"""`python -m sousa_engine scan`: decode every file of a data set and list the problems."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from sousa_engine.cli.baselines import data_config
from sousa_engine.cli.progress import progress
from sousa_engine.core.errors import UserError
from sousa_engine.data import scan
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.findings import KINDS, Findings, in_words, passed_over
from sousa_engine.workspace import Workspace, run_files

EXIT_REFUSED = 2


@click.command("scan", short_help="Decode every file of a data set and list problems with their reasons.")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.FIELD=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--strict", is_flag=True, help="Same as data.strict=true: refuse the data set if any file has an error.")
@click.option("--fresh", is_flag=True, help="Decode all files again, including those of earlier scans.")
@click.option("--lock-fd", type=int, hidden=True, help="Lock of this scan, if the parent process holds it.")
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
    """Decode every file of DATASET and list the problems: python -m sousa_engine scan /path/to/drums

    DATASET is a folder, a table, or an embedded set. Each file is decoded once, completely, in processes
    with limited memory and time; the results are kept and used by runs. Files with an error are excluded from training;
    files with a warning are unusual but used.

    Exit code 2 if no run could start on this data set: too few classes or, with --strict, any error. Otherwise 0.

    \b
    --json prints one object with a stable format:
      dataset, strict   as given
      files             number of files in the data set; scanned: decoded; usable: available for training
      classes           number of classes available for training
      errors, warnings  number of findings of each level
      kinds             {kind: number of findings}
      refusal           why no run could start, or ""
      findings          [{level: "error" | "warning", kind, name, reason}], errors first
      passed_over       [{kind: "hidden" | "not-audio" | "beside", count, names}]: not in files; names: examples
    """
    if not workspace.root.is_dir():
        raise UserError(f"The folder {workspace.root}, where results are stored, does not exist. Check --workspace.")
    config = data_config(dataset, [*words, *(["data.strict=true"] if strict else [])])
    try:
        with progress(config.dataset, _step, {scan.SCANNING: "files"}) as tell:
            data = DataSet.scan(config, workspace, tell=tell, lock_fd=lock_fd, fresh=fresh)
    except KeyboardInterrupt:
        click.echo("Stopped. Results so far are kept; run the same command again to continue.", err=True)
        sys.exit(run_files.EXIT_STOPPED)
    found = data.findings
    click.echo(json.dumps(as_dict(found), indent=1) if as_json else _table(found))
    if found.refusal:
        sys.exit(EXIT_REFUSED)


def as_dict(found: Findings) -> dict[str, Any]:
    """The findings as printed by --json; the help of the command describes the format."""
    counted = {"errors": found.errors, "warnings": found.warnings, "kinds": found.kinds}
    return asdict(found) | counted | {"findings": [asdict(one) for one in found.findings]}


def _table(found: Findings) -> str:
    rows = [
        (one.level.upper(), KINDS[one.kind], one.name or found.dataset, one.reason)
        for one in found.findings
        if one.kind != "data-set"  # the last line states it
    ]
    widths = [min(max(map(len, column)), 48) for column in zip(*rows, strict=True)]
    lines = [
        f"{level:<{widths[0]}}  {kind:<{widths[1]}}  {name:<{widths[2]}}  {why}" for level, kind, name, why in rows
    ]
    return "\n".join(
        [*lines, f"{found.dataset}: {in_words(found)}", *filter(None, [passed_over(found), found.refusal])]
    )


def _step(stage: str, done: int, total: int | None) -> str:
    return f"{stage}, {done:,} of {total:,} files"
