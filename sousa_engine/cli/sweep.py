"""`sweep` starts one, `sweeps` lists and steers them."""

from __future__ import annotations

import copy
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from sousa_engine import backbones, targets
from sousa_engine.analysis.sweeps import TrialRow, best_first, failures, tally, trial_rows, trials
from sousa_engine.core import grammar, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.core.records import RunStatus, Sweep
from sousa_engine.core.sweep_spec import Axis, SweepSpec
from sousa_engine.runs import sweep_orders, timing
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace, run_files

POLL_S = 1.0
_MANY = ("--models", "--targets", "--seeds")


class _TakesMany(click.Command):
    """`--models a b c` is `--models a --models b --models c`: everything up to the next option or field=value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("--") or "=" in word:
                option = word if word in _MANY else ""
                spread.append(word)
            elif option and spread[-1] != option:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


@click.command("sweep", cls=_TakesMany, short_help="Train every combination of what you list, several seeds each.")
@click.argument("words", nargs=-1, metavar="[GROUP=NAME | FIELD=VALUE]...")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A sweep as YAML.")
@click.option("--data", help="Data set of all runs: an embedded set, a folder of classes, or a CSV file.")
@click.option("--max-epochs", type=int, help="Epochs of all runs.")
@click.option("--models", multiple=True, metavar="NAME...", help="Backbones to compare, e.g. ast-mini beats-mini.")
@click.option(
    "--targets",
    multiple=True,
    metavar="SET...",
    help="Target sets to compare: core, default, attention, ...; or names with commas: q_proj,v_proj.",
)
@click.option(
    "--ablate",
    metavar="SET",
    help="Target sets made from SET, of one backbone: all of it, without each role, each role alone, half the layers.",
)
@click.option(
    "--axis", "axes", multiple=True, metavar="FIELD=A,B", help="Another field: a,b or low..high or log:low..high."
)
@click.option("--seeds", multiple=True, type=int, metavar="N...", help="Each setting is trained with each. [0 1 2]")
@click.option("--sampler", type=click.Choice(list(sweep_spec.SAMPLERS)), help="How settings are drawn. [grid]")
@click.option("--trials", type=int, help="How many settings random, tpe or asha draw.")
@click.option("--sampler-seed", type=int, help="Seed of that drawing. [0]")
@click.option("--name", default="", help="Shown in lists.")
@click.option("--probe", "measure", is_flag=True, help="Time what was never trained here first: some seconds each.")
@click.option("--skip-invalid", is_flag=True, help="Start without the combinations that could only fail.")
@click.option("--dry-run", is_flag=True, help="Show what would run, and stop there.")
@click.option("--detach", is_flag=True, help="Queue it and return at once.")
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

    Fields of all runs are given as for `train`. Everything goes on in the background whatever happens to this terminal.
    """
    spec = _spec(file, words, **written)
    found = sweep_orders.plan(spec, workspace)
    if measure and found.untimed:
        timing.measure(workspace, found.untimed)
        found = sweep_orders.plan(spec, workspace)
    _echo_plan(found)
    if dry_run:
        if found.problems and not (skip_invalid and found.run_count):
            raise UserError(sweep_orders.describe(found.problems))
        click.echo(sweep_spec.to_yaml(spec))
        return
    made = sweep_orders.start(workspace, spec, created_by="cli", leave_out_invalid=skip_invalid)
    for line in sweep_orders.describe(found.problems).splitlines():
        click.echo(f"left out: {line}")
    click.echo(f"sweep {made.id} queued: {made.name}")
    if detach:
        click.echo(f"follow it with: python -m sousa_engine sweeps show {made.id}")
        return
    try:
        _follow(workspace, made)
    except KeyboardInterrupt:
        stop = f"python -m sousa_engine sweeps stop {made.id}"
        click.echo(f"Left sweep {made.id} to itself; it goes on. Stop it: {stop}", err=True)
        sys.exit(run_files.EXIT_INTERRUPTED)
    with Store.open(workspace) as store:
        over = store.find_sweep(made.id)
        _echo_sweep(store, over)
        sys.exit(_exit_code(store, over))


@click.group(invoke_without_command=True, short_help="List sweeps; show, pause, stop, extend one, rerun failed.")
@click.pass_context
def sweeps(ctx: click.Context) -> None:
    """List the sweeps of this workspace, or steer one. SWEEP is an id, the start or end of one, a name, or `last`."""
    if ctx.invoked_subcommand is not None:
        return
    with Store.open_to_read(ctx.obj) as store:
        every = store.sweeps()
        if not every:
            click.echo("No sweeps yet. Try: python -m sousa_engine sweep --data tiny --models ast-mini beats-mini")
            return
        click.echo(f"{'SWEEP':<20} {'STATUS':<9} {'RUNS':<9} NAME")
        for one in every:
            runs = store.sweep_runs(one.id)
            count = tally(one, runs)
            failed = f"  ({count.failed} failed)" if count.failed else ""
            over = f"{count.over}/{count.expected}"
            click.echo(f"{one.id:<20} {one.status.value:<9} {over:<9} {one.name}{failed}")


@sweeps.command("show")
@click.argument("name", metavar="SWEEP")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print what was asked, as `sweep --file` reads it.")
@click.pass_obj
def show(workspace: Workspace, name: str, as_yaml: bool) -> None:
    """Show a sweep: its trials, what they reached, what failed and why."""
    with Store.open(workspace) as store:
        found = store.find_sweep(name)
        if as_yaml:
            click.echo(sweep_spec.to_yaml(sweep_spec.build(found.spec)))
        else:
            _echo_sweep(store, found)


@sweeps.command("pause")
@click.argument("name", metavar="SWEEP")
@click.pass_obj
def pause(workspace: Workspace, name: str) -> None:
    """Let its queued runs wait; what trains goes on."""
    _steer(workspace, name, sweep_orders.pause, "paused", "is not running")


@sweeps.command("resume")
@click.argument("name", metavar="SWEEP")
@click.pass_obj
def resume(workspace: Workspace, name: str) -> None:
    """Go on with a paused sweep."""
    _steer(workspace, name, sweep_orders.resume, "running", "is not paused")


@sweeps.command("stop")
@click.argument("name", metavar="SWEEP")
@click.pass_obj
def stop(workspace: Workspace, name: str) -> None:
    """Take its runs off the queue; those that train save a checkpoint and stop."""
    _steer(workspace, name, sweep_orders.stop, "stopped", "is already over")


@sweeps.command("add-seeds")
@click.argument("name", metavar="SWEEP")
@click.argument("seeds", nargs=-1, type=int, required=True)
@click.pass_obj
def add_seeds(workspace: Workspace, name: str, seeds: tuple[int, ...]) -> None:
    """Train every setting with more seeds: sweeps add-seeds last 3 4"""
    with Store.open(workspace) as store:
        _echo_queued(sweep_orders.add_seeds(store, store.find_sweep(name), seeds, created_by="cli"))


@sweeps.command("extend")
@click.argument("name", metavar="SWEEP")
@click.argument("axis", metavar="FIELD=A,B")
@click.pass_obj
def extend(workspace: Workspace, name: str, axis: str) -> None:
    """More values on an axis of a grid: sweeps extend last targets=all-linear"""
    field, values = sweep_spec.parse_axis(axis)
    if not isinstance(values, list):
        raise ConfigError(f"{axis}: a grid takes listed values, field=a,b.")
    with Store.open(workspace) as store:
        _echo_queued(sweep_orders.extend(store, store.find_sweep(name), field, values, created_by="cli"))


@sweeps.command("add-trials")
@click.argument("name", metavar="SWEEP")
@click.argument("count", type=click.IntRange(min=1))
@click.pass_obj
def add_trials(workspace: Workspace, name: str, count: int) -> None:
    """Draw more settings: sweeps add-trials last 10"""
    with Store.open(workspace) as store:
        queued = sweep_orders.add_trials(store, store.find_sweep(name), count, created_by="cli")
    click.echo(f"{len(queued)} runs queued" if queued else f"{count} more trials will be drawn")


@sweeps.command("rerun-failed")
@click.argument("name", metavar="SWEEP")
@click.option("--targets", help="Other targets for them: a set's name, or names with commas.")
@click.pass_obj
def rerun_failed(workspace: Workspace, name: str, targets: str | None) -> None:
    """Train again what failed or was stopped, as it was or with other targets:

    sweeps rerun-failed last --targets qkv
    """
    with Store.open(workspace) as store:
        found = store.find_sweep(name)
        failed = [run for failure in failures(store.sweep_runs(found.id), stopped=True) for run in failure.runs]
        if not failed:
            raise UserError(f"Nothing of sweep {found.id} failed or was stopped.")
        entries = None if targets is None else grammar.entries(targets)
        _echo_queued(sweep_orders.rerun(store, found, failed, targets=entries, created_by="cli"))


def to_command(spec: SweepSpec, *, skip_invalid: bool = False) -> str:
    """The shell command that starts an equal sweep. Raises ConfigError for one that no line can say."""
    words = _words(spec)
    try:
        same = _read_words(words) == spec
    except (click.ClickException, UserError):
        same = False
    if not same:
        raise ConfigError(
            "This sweep holds a value that a command line cannot. Save its YAML, and start that: "
            "python -m sousa_engine sweep --file FILE"
        )
    skip = ["--skip-invalid"] if skip_invalid else []
    return "python -m sousa_engine sweep " + " ".join(shlex.quote(word) for word in [*words, *skip])


def _words(spec: SweepSpec) -> list[str]:
    """`--models` puts its axis first and `--targets` last, so they stand for axes that are there."""
    base = copy.deepcopy(spec.base)
    axes = {axis.field: axis for axis in spec.axes}
    words: list[str] = []
    if dataset := base.get("data", {}).pop("dataset", None):
        words += ["--data", str(dataset)]
    if epochs := base.get("training", {}).pop("max_epochs", None):
        words += ["--max-epochs", str(epochs)]
    if spec.axes[0].field == "model":
        words += ["--models", *map(str, axes.pop("model").values)]
    made: list[str] = []
    if spec.sets:
        outline = targets.load_outline(backbones.variant(_only_model(spec.base, spec.axes)).name)
        paths = targets.resolve_sets(outline, [entry for entries in spec.sets.values() for entry in entries]).paths
        whole = targets.short_names(outline, paths)
        words += ["--ablate", ",".join(whole)]
        made = list(sweep_orders.ablation(outline.variant, whole))
    target_words: list[str] = []
    if spec.axes[-1].field == "lora.targets" and all(
        len(value) > 1 if isinstance(value, list) else "," not in value for value in spec.axes[-1].values
    ):
        values = axes.pop("lora.targets").values
        target_words = [] if list(values) == made else ["--targets", *map(sweep_spec.show, values)]
    for axis in axes.values():
        words += ["--axis", _axis_text(axis)]
    words += [*target_words, "--seeds", *map(str, spec.seeds)]
    if spec.sampler != "grid":
        words += ["--sampler", spec.sampler, "--trials", str(spec.trials)]
    if spec.sampler_seed:
        words += ["--sampler-seed", str(spec.sampler_seed)]
    if spec.name:
        words += ["--name", spec.name]
    return words + grammar.words(base)


def _axis_text(axis: Axis) -> str:
    """As `sweep.parse_axis` reads it."""
    field = "targets" if axis.field == "lora.targets" else axis.field
    if axis.is_range:
        low, high = (grammar.written(end) for end in axis.ends)
        return f"{field}={'log:' if axis.log else ''}{low}..{high}"
    return f"{field}={','.join(grammar.written(value) for value in axis.values)}"


def _read_words(words: Sequence[str]) -> SweepSpec:
    """The sweep that `sweep WORDS` would start."""
    params = sweep_command.make_context("sweep", list(words)).params
    for option in ("measure", "skip_invalid", "dry_run", "detach"):
        del params[option]
    return _spec(**params)


def _spec(
    file: Path | None,
    words: Sequence[str],
    *,
    data: str | None,
    max_epochs: int | None,
    models: Sequence[str],
    targets: Sequence[str],
    ablate: str | None,
    axes: Sequence[str],
    seeds: Sequence[int],
    sampler: str | None,
    trials: int | None,
    sampler_seed: int | None,
    name: str,
) -> SweepSpec:
    """The file's sweep, if there is one, with what the line says laid over it."""
    values = sweep_spec.read(file).model_dump(mode="json") if file else {}
    base = values.get("base", {})
    grammar.merge(base, grammar.parse(words))
    if data is not None:
        grammar.set_field(base, "data.dataset", data)
    if max_epochs is not None:
        grammar.set_field(base, "training.max_epochs", max_epochs)
    made: dict[str, Any] = {axis["field"]: axis for axis in values.get("axes", ())}
    for axis in axes:
        field, what = sweep_spec.parse_axis(axis)
        made[sweep_spec.full_name(field)] = what
    if models:
        made = {"model": _listed(models), **{field: what for field, what in made.items() if field != "model"}}
    if targets and not all(text.strip() for text in targets):
        raise ConfigError("--targets has an empty name. For the head alone (a linear probe): lora=probe.")
    if targets:
        made["lora.targets"] = [grammar.entries(text) if "," in text else text for text in targets]
    sets = values.get("sets", {})
    if ablate is not None:
        axis = sweep_spec.build({"axes": {"model": made["model"]}}).axes if "model" in made else ()
        sets = sweep_orders.ablation(_only_model(base, axis), grammar.entries(ablate))
        if not isinstance(
            made.get("lora.targets"), list
        ):  # what the file listed gives way, what the line lists does not
            made["lora.targets"] = list(sets)
    if not made:
        raise ConfigError("A sweep needs something that differs: --models, --targets, --ablate or --axis FIELD=A,B.")
    if targets or ablate:
        sets = {name: entries for name, entries in sets.items() if name in made["lora.targets"]}
    values |= {"base": base, "axes": made, "sets": sets}
    given = {"seeds": list(seeds), "sampler": sampler, "trials": trials, "sampler_seed": sampler_seed, "name": name}
    return sweep_spec.build(values | {key: value for key, value in given.items() if value})


def _only_model(base: Mapping[str, Any], axes: Sequence[Axis]) -> str:
    """The backbone whose modules an ablation is made of. Raises ConfigError if there are several."""
    models = next((axis.values for axis in axes if axis.field == "model"), ())
    if len(models) > 1:
        raise ConfigError(f"--ablate takes one backbone, for each has modules of its own: not {', '.join(models)}.")
    usual = RunConfig().model.variant  # pyright: ignore[reportCallIssue]
    return str(models[0] if models else base.get("model", {}).get("variant", usual))


def _listed(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in word.split(",") if part]


def _echo_plan(found: sweep_orders.Plan) -> None:
    spec = found.spec
    click.echo(f"{spec.title}: {spec.sampler}, {len(spec.seeds)} seeds, {found.run_count} runs")
    for note in found.notes:
        click.echo(f"note: {note}")
    if found.seconds is not None:
        click.echo(f"about {_duration(found.seconds)}, as earlier runs and probes took; {_megabytes(found.disk_bytes)}")
    elif found.runs or spec.learns:
        names = list(dict.fromkeys(config.model.variant for config in found.untimed))
        click.echo(
            f"how long is not known: {', '.join(names)} {'was' if len(names) == 1 else 'were'} "
            f"never trained so here (--probe measures it); {_megabytes(found.disk_bytes)}"
        )


def _follow(workspace: Workspace, made: Sweep) -> None:
    """A bar of runs until the sweep is over."""
    lines = not sys.stderr.isatty()
    said = -1
    with tqdm(total=1, leave=False, disable=lines, unit="run") as bar, Store.open(workspace) as store:
        while True:
            found = store.find_sweep(made.id)
            runs = store.sweep_runs(made.id)
            over = sum(run.status.is_over for run in runs)
            bar.total = sweep_spec.build(found.spec).run_count if found.spec["sampler"] != "grid" else len(runs)
            bar.n = over
            bar.refresh()
            if lines and over != said:
                click.echo(f"{over} of {bar.total} runs are over", err=True)
                said = over
            if found.status.is_over and over == len(runs):
                return
            time.sleep(POLL_S)


def _echo_sweep(store: Store, found: Sweep) -> None:
    runs = store.sweep_runs(found.id)
    rows = trial_rows(runs, store.summaries([run.id for run in runs]))
    spec = sweep_spec.build(found.spec)
    click.echo(f"sweep {found.id}: {found.name}, {spec.sampler}, {found.status.value}")
    if found.reason:
        click.echo(found.reason)
    width = max([len("TRIAL"), *(len(row.label) for row in rows)])
    click.echo(
        f"{'TRIAL':<{width}}  {'VALID':<7} {'TEST':<7} {'EACH SEED':<22} {'95 % INTERVAL':<24} {'TRAINABLE':>10}  RUNS"
    )
    for row in best_first(rows):
        click.echo(f"{row.label:<{width}}  {_row_text(row)}")
    for failure in failures(runs, stopped=True):
        count = len(failure.runs)
        what = "was not finished" if failure.is_stop else "failed"
        what = what.replace("was", "were") if count > 1 else what
        same = ", same cause" if count > 1 else ""
        click.echo(f"{count} {'run' if count == 1 else 'runs'} {what}{same}: {failure.cause}")
        other = " [--targets SET]" if failure.is_of_targets else ""
        click.echo(f"    again: python -m sousa_engine sweeps rerun-failed {found.id}{other}")


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
        found = store.find_sweep(name)
        if not verb(store, found.id):
            raise UserError(f"Sweep {found.id} {otherwise}: {found.status.value}.")
    click.echo(f"sweep {found.id}: {now}")


def _echo_queued(ids: Sequence[str]) -> None:
    click.echo(f"{len(ids)} {'run' if len(ids) == 1 else 'runs'} queued")


def _exit_code(store: Store, over: Sweep) -> int:
    """0: every run finished or was pruned; 3: it was stopped; 1: something failed."""
    of_trials = trials(store.sweep_runs(over.id)).values()
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
    return f"about {size / 1e6:,.0f} MB of disk" if size < 1e9 else f"about {size / 1e9:,.1f} GB of disk"
