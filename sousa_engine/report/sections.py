"""The text and tables of a report, in their order. Charts are only named here; figures.py draws them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sousa_engine import __version__
from sousa_engine.analysis import cost, rudiment_groups, settings, verdict
from sousa_engine.analysis.compare import changes_from_defaults
from sousa_engine.analysis.confusion import confusion, mistakes
from sousa_engine.analysis.significance import Proportion
from sousa_engine.analysis.sweeps import Failure, TrialRow, nearest_names, status_word
from sousa_engine.core import contents, sweep_spec
from sousa_engine.core.records import Run
from sousa_engine.report.read import Report, peak_mib

NONE = "–"
MOST_NAMED = 12  # runs listed for one cause of failure
_DIGITS = 12  # of a key of contents
MOST_PAIRS = 40  # a longer table is not readable


@dataclass(frozen=True, kw_only=True)
class Table:
    """All cells are text; a missing number is a dash. numbers: indices of the right-aligned columns."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """lines become a list if there are several; charts are names; small is the small print below the tables."""

    title: str
    lines: tuple[str, ...] = ()
    code: str = ""
    charts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    small: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.lines or self.code or self.charts or self.tables)


def sections(report: Report) -> tuple[Section, ...]:
    """All sections except the verdict, which comes first; empty sections are left out."""
    found = (
        _settings(report),
        _pairs(report),
        _runs(report),
        _failures(report),
        _pruned(report),
        _curves(report),
        _cost(report),
        _scores(report),
        _confusion(report),
        _axes(report),
        _baselines(report),
        _definition(report),
        _method(report),
    )
    return tuple(section for section in found if not section.is_empty)


def lead(report: Report) -> str:
    """`9 settings, 18 runs`; `counted` has their statuses."""
    if not report.runs:
        return "No runs yet: the first setting is sampled when a slot is free."
    return f"{_count(len(report.rows), 'setting')}, {_count(len(report.runs), 'run')}"


def counted(report: Report) -> tuple[tuple[str, str], ...]:
    """(status, `16 finished`), most frequent first; runs still to come are last."""
    found = [(status, f"{count:,} {status}") for status, count in report.statuses.most_common()]
    return (*found, ("queued", f"{report.to_come:,} to come")) if report.to_come else tuple(found)


def made(report: Report) -> str:
    """The time and the version: `Created 2026-11-23 21:13 UTC by SOUSA engine 0.1.0.`"""
    of = f" Sweep {report.sweep.id}, {report.sweep.status.value}." if report.sweep else ""
    return f"Created {utc(report.made_at_ms)} by SOUSA engine {__version__}.{of}"


def caveats(report: Report) -> tuple[str, ...]:
    """Notes that a reader needs before the verdict."""
    said = []
    if report.open_count:
        had = "run had" if report.open_count == 1 else "runs had"
        said.append(
            f"{report.open_count:,} {had} not ended when this report was created; results and verdict may still change."
        )
    if report.sweep and report.sweep.reason:
        said.append(report.sweep.reason)
    if len(report.shown) < len(report.rows):
        said.append(
            f"The verdict and the charts with one colour per setting cover the {len(report.shown)} settings with the "
            "best mean valid accuracy; the tables contain all settings."
        )
    return tuple(said)


def definition(report: Report) -> tuple[tuple[str, str], ...]:
    """(name, value): the axes, the search strategy, seeds, data set, backbone and more."""
    found: list[tuple[str, str]] = []
    if spec := report.spec:
        for axis in spec.axes:
            low_high = f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.log else ''}" if axis.is_range else ""
            found.append((axis.field, low_high or ", ".join(sweep_spec.show(value) for value in axis.values)))
        strategy = f"{spec.sampler}: {sweep_spec.SAMPLERS[spec.sampler]}"
        found.append(("search strategy", strategy + (f"; {spec.trials} trials" if spec.trials else "")))
        found.append(("seeds", ", ".join(map(str, spec.seeds))))
    elif report.runs:
        found.append(("seeds", ", ".join(map(str, sorted({run.config.seed for run in report.runs})))))
    if report.runs:
        found.append(("backbone", ", ".join(_each(run.config.model.variant for run in report.runs))))
        started = [run for run in report.runs if run.facts.get("data")] or report.runs  # the others know less
        found.append(("weights", ", ".join(_each(_weights(run) for run in started))))
        found.append(("data set", "; ".join(_each(_data(run) for run in started))))
        found.append(("contents of train, valid, test", "; ".join(_each(_contents(run) for run in started))))
        trained_on = cost.all_conditions(report.rows)
        found += [("trained on", "; ".join(trained_on))] if trained_on else []
        versions = _each(
            ", ".join(f"{name} {run.facts['versions'][name]}" for name in run.facts["versions"])
            for run in report.runs
            if run.facts.get("versions")
        )
        found += [("versions", "; ".join(versions))] if versions else []
    return tuple(found)


def setting_name(row: TrialRow) -> str:
    """The label of a setting; a control is always marked as one."""
    return f"{row.label} (control: random weights)" if row.runs[0].is_random else row.label


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


def span(found: Proportion | None) -> str:
    return NONE if found is None else f"{100 * found.low:.1f} to {100 * found.high:.1f} %"


def utc(at_ms: int | None) -> str:
    return NONE if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


# The sections


def _settings(report: Report) -> Section:
    rows = []
    for row in report.rows:
        seconds, memory = (
            settings.mean([c for run in row.runs if (c := cost.cost_of(run, measure)) is not None])
            for measure in ("train_s", "peak_memory_mib")
        )
        rows.append(
            (
                setting_name(row), percent(row.mean_test), str(len(row.test)) if row.test else NONE,
                percent(min(row.test, default=None)), percent(max(row.test, default=None)), span(row.test_interval),
                _number(row.clips), percent(row.mean_valid), _number(row.trainable), _number(seconds),
                _number(memory), ", ".join(f"{count} {status}" for status, count in row.statuses.items()),
            )
        )  # fmt: skip
    columns = (
        "Setting", "Test accuracy", "Seeds", "Lowest", "Highest", "95 % interval (test)", "n test", "Best valid",
        "Trainable", "Training time (s)", "Peak memory (MiB)", "Runs",
    )  # fmt: skip
    table = Table(name="Settings", columns=columns, rows=tuple(rows), numbers=tuple(range(1, 11)))
    return Section(
        title="Settings",
        tables=(table,) if rows else (),
        small=(
            "Means over finished seeds (valid: best epoch, over all seeds with a value). The intervals (Wilson) "
            "reflect the sample of test clips, not variation between seeds. Ordered by best valid accuracy, which is "
            "used to choose settings. Time and memory refer to training.",
        ),
    )


def _pairs(report: Report) -> Section:
    pairs = report.conclusion.pairs
    rows = tuple(
        (
            pair.first, pair.second, verdict.outcome_text(pair), verdict.points(pair.difference, plus=True),
            verdict.points_span(pair), NONE if pair.adjusted_p is None else f"{pair.adjusted_p:.4f}",
            f"{pair.seeds_first}, {pair.seeds_second}", _number(pair.n_clips),
        )
        for pair in pairs[:MOST_PAIRS]
    )  # fmt: skip
    columns = ("A", "B", "Outcome", "A − B (points)", "95 % interval", "p (Holm)", "Seeds", "Clips")
    return Section(
        title="Pairs of settings",
        tables=(Table(name="Pairs", columns=columns, rows=rows, numbers=(3, 4, 5, 6, 7)),) if rows else (),
    )


def _runs(report: Report) -> Section:
    rows = tuple(
        (
            name + (" (control: random weights)" if run.is_random else ""), status_word(run),
            str(run.config.seed), percent(result.test and result.test.value), span(result.test),
            _number(result.test and result.test.n), percent(result.test_macro_f1),
            percent(result.best_valid and result.best_valid.value),
            _number(result.best_step if result.best_valid else None),
            _number(result.best_valid and result.best_valid.n), _number(result.seconds), _number(peak_mib(run)), run.id,
        )
        for run, name, result in zip(report.runs, report.names, report.results, strict=True)
    )  # fmt: skip
    columns = (
        "Run", "Status", "Seed", "Test accuracy", "95 % interval (test)", "n test", "Test macro-F1", "Best valid",
        "At step", "n valid", "Run time (s)", "Peak memory (MiB)", "Id",
    )  # fmt: skip
    table = Table(name="Runs", columns=columns, rows=rows, numbers=tuple(range(2, 12)))
    return Section(
        title="Runs",
        tables=(table,) if rows else (),
        small=("Run time includes preparation and testing.",) if rows else (),
    )


def _failures(report: Report) -> Section:
    count = sum(len(failure.runs) for failure in report.failures)
    lines = []
    for failure in report.failures:
        names = [name for name, run in zip(report.names, report.runs, strict=True) if run in failure.runs]
        shared = ", same cause" if len(names) > 1 else ""
        lines.append(f"{_count(len(names), 'run')}{shared}: {failure.cause} ({_some(names)}) {_fix(report, failure)}")
    return Section(title=f"{_count(count, 'run')} failed", lines=tuple(lines))


def _fix(report: Report, failure: Failure) -> str:
    if not report.sweep:
        return f"Show its log: python -m sousa_engine show {failure.runs[0].id} --log 40"
    near = nearest_names(failure.cause)
    targets = f" --targets {shlex.quote(','.join(near))}" if near else ""
    return f"Train again: python -m sousa_engine sweeps rerun-failed {report.sweep.id}{targets}"


def _pruned(report: Report) -> Section:
    by_reason: dict[str, list[str]] = {}
    for name, run in report.pruned:
        by_reason.setdefault(run.reason or f"Pruned at step {run.pruned_at_step:,}.", []).append(name)
    lines = tuple(f"{reason} ({_some(names)})" for reason, names in by_reason.items())
    return Section(
        title=f"{_count(len(report.pruned), 'run')} pruned",
        lines=lines,
        small=("Pruned runs are not part of the verdict, because their training was not completed.",),
    )


def _curves(report: Report) -> Section:
    drawn = [line for line in report.lines if line.x]
    small = []
    if any(line.low for line in drawn):
        small.append(
            "Line: mean over the seeds of a setting that got this far. Band: from the lowest to the highest seed."
        )
    return Section(title="Valid accuracy over steps", charts=("curves",) if drawn else (), small=tuple(small))


def _cost(report: Report) -> Section:
    found = {measure: cost.cost_points(report.rows, measure) for measure in cost.MEASURES}
    found = {measure: points for measure, points in found.items() if points}
    frontier = [
        f"{cost.MEASURES[measure]}: " + ", ".join(point.name for point in points if point.on_frontier)
        for measure, points in found.items()
        if any(point.on_frontier for point in points)
    ]
    if not found:
        return Section(title="Accuracy against cost")
    small = [
        "On the frontier, no cheaper setting is as accurate. Settings are listed cheapest first; random weights are a "
        "control and are never on the frontier."
    ]
    if others := cost.other_conditions(report.rows, "train_s"):
        small.append(f"Times and memory: {others[0].lower()}{others[1:]}")
    if "peak_memory_mib" in found:
        small.append("Memory is that of the trainer process, not of the accelerator.")
    return Section(
        title="Accuracy against cost",
        lines=tuple(f"On the frontier of {line[0].lower()}{line[1:]}" for line in frontier),
        charts=tuple(f"cost {measure}" for measure in found),
        small=tuple(small),
    )


def _scores(report: Report) -> Section:
    groups = tuple(dict.fromkeys(group for _, scores in report.scores for group in scores))
    if len(groups) < 2:
        return Section(title="Rudiment groups")
    labels = tuple(label for label, _ in report.scores)
    rows = []
    for group in groups:
        of_group = [scores.get(group) for _, scores in report.scores]
        n = {score.n for score in of_group if score}
        shares = (percent(score.value if score else None) for score in of_group)
        rows.append((group, " or ".join(f"{value:,}" for value in sorted(n)), *shares))
    table = Table(
        name="Rudiment groups", columns=("Part of the test split", "n", *labels), rows=tuple(rows),
        numbers=tuple(range(1, 2 + len(labels))),
    )  # fmt: skip
    return Section(
        title="Rudiment groups",
        charts=("scores",),
        tables=(table,),
        small=(
            "n = clips in that part; each value is the mean over the seeds of a setting. "
            f"{rudiment_groups.TWINS.capitalize()}: rudiments whose strokes and accents fall at the same times, so "
            "that only the timbre of the hands distinguishes them.",
        ),
    )


def _confusion(report: Report) -> Section:
    if report.best is None:
        return Section(title="Confusion")
    found = [p for run in report.best.runs for p in report.predictions.get(run.id, ())]
    matrix = confusion(found)
    seeds = sum(bool(report.predictions.get(run.id)) for run in report.best.runs)
    rows = tuple((m.label, m.predicted, f"{m.count:,}", f"{m.n:,}") for m in mistakes(matrix))
    table = Table(
        name="Most frequent errors", columns=("True class", "Predicted", "Clips", "of"), rows=rows, numbers=(2, 3)
    )
    added = f", {seeds} seeds combined" if seeds > 1 else ""
    return Section(
        title="Confusion",
        lines=(
            f"{report.best.label}, best by valid accuracy: {matrix.right:,} of {matrix.n:,} test clips correct{added}.",
        ),
        charts=("confusion", "difference") if report.second else ("confusion",),
        tables=(table,) if rows else (),
    )


def _axes(report: Report) -> Section:
    if report.weighed is None or not any(report.reached):
        return Section(title="What matters")
    shares = tuple((field, f"{100 * share:.0f} %") for field, share in report.weighed.shares)
    if shares:
        shares = (*shares, ("axes combined, and noise", f"{100 * report.weighed.rest:.0f} %"))
    table = Table(name="Importance", columns=("Axis", "Share of the variance"), rows=shares, numbers=(1,))
    enough = sum(bool(values) for values in report.reached) > 1
    return Section(
        title="What matters",
        lines=(report.weighed.sentence,),
        charts=(*(("importance",) if shares else ()), *(("parallel",) if enough else ())),
        tables=(table,) if shares else (),
    )


def _baselines(report: Report) -> Section:
    rows = tuple(
        (
            one.title, percent(one.accuracy.value), span(one.accuracy), f"{one.accuracy.n:,}", percent(one.macro_f1),
            one.how,
        )
        for one in report.baselines
    )  # fmt: skip
    columns = ("Baseline", "Test accuracy", "95 % interval", "n test", "Macro-F1", "Classifier")
    return Section(
        title="Baselines",
        tables=(Table(name="Baselines", columns=columns, rows=rows, numbers=(1, 2, 3, 4)),) if rows else (),
        small=(
            "Baselines use no neural network. They are fitted on train, selected on valid and evaluated once on the "
            "same test clips, and are not part of the verdict.",
        ),
    )


def _definition(report: Report) -> Section:
    table = Table(name="Definition", columns=("Name", "Value"), rows=definition(report))
    spec, lines = report.spec, ()
    if spec is None and len(report.runs) == 1:
        changed = changes_from_defaults(report.runs[0].config)
        lines = tuple(f"{one.field}: {one.values[1]} (default: {one.values[0]})" for one in changed)
    return Section(
        title="Definition",
        lines=lines,
        code=sweep_spec.to_yaml(spec) if spec else "",
        tables=(table,) if table.rows else (),
        small=("To train the same sweep, save the YAML above as FILE: python -m sousa_engine sweep --file FILE",)
        if spec
        else (),
    )


def _method(report: Report) -> Section:
    return Section(
        title="How this was determined",
        lines=(
            verdict.METHOD,
            "Settings are chosen by valid accuracy (best epoch of each run) and evaluated once on test, at the end, "
            f"with the checkpoint of that epoch. {NONE} means not measured.",
        ),
    )


# Wording


def _weights(run: Run) -> str:
    return run.weights_label or ("random weights" if run.is_random else run.config.model.weights)


def _data(run: Run) -> str:
    data = run.facts.get("data") or {}
    clips = data.get("clips") or {}
    counted = ", ".join(f"{split} {count:,}" for split, count in clips.items())
    classes = f"{data['classes']} classes" if data.get("classes") else ""
    more = "; ".join(filter(None, (classes, counted and f"clips: {counted}")))
    return run.config.dataset_name + (f" ({more})" if more else "")


def _contents(run: Run) -> str:
    """The first digits of what identifies the sounds and labels of each split: equal for equal data, wherever it is."""
    found = contents.of_facts(run.facts)
    return ", ".join(found[split][0][:_DIGITS] for split in contents.SPLITS) if found else "not known"


def _each(texts: Iterable[str]) -> Sequence[str]:
    return list(dict.fromkeys(texts))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if value >= 10 or isinstance(value, int) else f"{value:.1f}"
