"""`python -m sousa_engine baselines`: compute the baselines of a data set, or show what is computed already."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click
from tqdm import tqdm

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import Baselines, tried_text
from sousa_engine.core import config, grammar
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.data.dataset import DataSet
from sousa_engine.workspace import Workspace, intake, run_files


@click.command("baselines", short_help="Accuracies of a data set without a network, for scale.")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.FIELD=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--lock-fd", type=int, hidden=True, help="The lock of this computation, taken by who started us.")
@click.pass_obj
def baselines_command(
    workspace: Workspace, dataset: str, words: tuple[str, ...], as_json: bool, lock_fd: int | None
) -> None:
    """Baselines of DATASET (an embedded set, a folder of classes, or a CSV file): python -m sousa_engine baselines tiny

    Majority class, pooled log-mel statistics, onset sequence: fitted on train, chosen by valid, measured once on
    test. They are computed once per data set and split; afterwards this prints what is known.
    """
    if not workspace.root.is_dir():
        raise UserError(f"There is no folder {workspace.root}, so no baselines can lie in it. Check --workspace.")
    manifest = DataSet.open(data_config(dataset, words), workspace).manifest
    if lock_fd is None and (doing := baselines.look(manifest, workspace)) and doing.is_running:
        click.echo("Another process computes them already; waiting for it.", err=True)
    try:
        with _progress(manifest.name) as tell:
            found = baselines.compute(manifest, workspace, tell=tell, lock_fd=lock_fd)
    except KeyboardInterrupt:
        click.echo("Stopped. The clips heard so far are kept; the same command goes on from there.", err=True)
        sys.exit(run_files.EXIT_STOPPED)
    click.echo(json.dumps(_as_dict(found), ensure_ascii=False, indent=1) if as_json else _table(found, dataset))


def data_config(dataset: str, words: Sequence[str]) -> DataConfig:
    """`data_config("tiny", ["data.split_seed=1"])`. Raises ConfigError for fields of anything but data."""
    draft = grammar.parse([f"data={dataset}", *words])
    if strangers := [name for name in draft if name != "data"]:
        raise ConfigError(f"{', '.join(strangers)}: only fields of data, such as data.split_seed=1, go here.")
    return config.build(draft).data


def _table(found: Baselines, dataset: str) -> str:
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
            f"{found.dataset}: test, n = {n:,} clips of {found.classes} classes; fitted on train, chosen by valid",
            *lines,
            f"A linear probe is a run: python -m sousa_engine train data={dataset} lora=probe",
        ]
    )


def _as_dict(found: Baselines) -> dict[str, object]:
    facts = asdict(found)
    facts["folder"] = str(found.folder)
    for one, measured in zip(facts["baselines"], found.baselines, strict=True):
        sure = measured.accuracy
        one |= {"title": measured.title, "accuracy": sure.value, "low": sure.low, "high": sure.high}
    return facts


@contextlib.contextmanager
def _progress(name: str) -> Iterator[intake.Tell]:
    """A bar on a terminal; in a file or a pipe, a line for each tenth."""
    units = {baselines.LISTENING: "clips", baselines.CHOOSING: "fits"}
    with tqdm(desc=name, leave=False, disable=not sys.stderr.isatty()) as bar:
        said = ""

        def tell(doing: str, done: int, total: int | None) -> None:
            nonlocal said
            if bar.disable:
                step = f"{doing} {10 * done // total if total else 0}"
                if step != said:
                    click.echo(f"{name}: {doing}, {done} of {total} {units[doing]}", err=True)
                said = step
                return
            if doing != said:
                bar.reset(total)
                bar.unit = f" {units[doing]}"
                bar.set_description_str(f"{name}: {doing}")
            said = doing
            bar.update(done - bar.n)

        yield tell
