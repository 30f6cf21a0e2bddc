"""`python -m sousa_engine baselines`: compute the baselines of a data set, or show them if they are known."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import Baselines, tried_text
from sousa_engine.cli.progress import progress
from sousa_engine.core import config, grammar
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.data import scan
from sousa_engine.data.dataset import DataSet
from sousa_engine.workspace import Workspace, run_files

UNITS = {scan.SCANNING: "files", baselines.LISTENING: "clips", baselines.CHOOSING: "fits"}


@click.command("baselines", short_help="Accuracy on a data set without a neural network, as a reference.")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.FIELD=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--lock-fd", type=int, hidden=True, help="Lock of this computation, if the parent process holds it.")
@click.pass_obj
def baselines_command(
    workspace: Workspace, dataset: str, words: tuple[str, ...], as_json: bool, lock_fd: int | None
) -> None:
    """Show how far you get on DATASET without a neural network: python -m sousa_engine baselines tiny

    DATASET is an embedded set, a folder, or a table. The baselines are the majority class, pooled log-mel
    statistics and the onset sequence. They are fitted on train, selected on valid and evaluated once on test. Each data
    set and split is computed only once; afterwards the stored result is printed.
    """
    if not workspace.root.is_dir():
        raise UserError(f"The folder {workspace.root} does not exist, so it holds no baselines. Check --workspace.")
    data = data_config(dataset, words)
    manifest = DataSet.open(data, workspace).manifest
    work = baselines.folder_of(manifest, workspace)
    if lock_fd is None and (doing := baselines.look(manifest, workspace)) and doing.is_running:
        click.echo("Another process is already computing them; waiting for it.", err=True)
    try:
        with progress(manifest.name, _step, UNITS) as tell:
            if not manifest.contents:
                manifest = DataSet.scan(data, workspace, tell=tell).manifest
            found = baselines.compute(manifest, workspace, tell=tell, lock_fd=lock_fd, work=work)
    except KeyboardInterrupt:
        click.echo("Stopped. The clips analysed so far are kept; run the same command again to continue.", err=True)
        sys.exit(run_files.EXIT_STOPPED)
    click.echo(
        json.dumps(_as_dict(found), ensure_ascii=False, indent=1)
        if as_json
        else _table(found, [f"data={dataset}", *words])
    )


def data_config(dataset: str, words: Sequence[str]) -> DataConfig:
    """`data_config("tiny", ["data.split_seed=1"])`. Raises ConfigError for a field outside `data`."""
    draft = grammar.parse([f"data={dataset}", *words])
    if others := [name for name in draft if name != "data"]:
        raise ConfigError(f"{', '.join(others)}: only data fields are accepted here, such as data.split_seed=1.")
    return config.build(draft).data


def _table(found: Baselines, words: Sequence[str]) -> str:
    n = found.baselines[0].n
    rows = [("BASELINE", "ACCURACY", "95 % INTERVAL", "MACRO-F1", "BY")]
    for one in found.baselines:
        sure = one.accuracy
        interval = f"{sure.low:.1%} to {sure.high:.1%}"
        rows.append((one.title, f"{sure.value:.1%}", interval, f"{one.macro_f1:.3f}", tried_text(one)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{title:<{widths[0]}}  {value:>{widths[1]}}  {interval:<{widths[2]}}  {f1:>{widths[3]}}  {by}"
        for title, value, interval, f1, by in rows
    ]
    return "\n".join(
        [
            f"{found.dataset}: test, n = {n:,} clips of {found.classes} classes; fitted on train, selected on valid",
            *lines,
            f"To train a linear probe: python -m sousa_engine train {shlex.join(words)} lora=probe",
        ]
    )


def _as_dict(found: Baselines) -> dict[str, object]:
    facts = asdict(found)
    facts["folder"] = str(found.folder)
    for one, measured in zip(facts["baselines"], found.baselines, strict=True):
        sure = measured.accuracy
        one |= {"title": measured.title, "accuracy": sure.value, "low": sure.low, "high": sure.high}
    return facts


def _step(stage: str, done: int, total: int | None) -> str:
    return f"{stage}, {done} of {total} {UNITS[stage]}"
