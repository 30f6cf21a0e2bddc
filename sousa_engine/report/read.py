"""The data of a report: read from the store and evaluated as on the Compare page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sousa_engine.analysis import baselines, compare, cost, importance, settings, sweeps
from sousa_engine.analysis.compare import Conclusion, Result
from sousa_engine.analysis.curves import Line, placed, seed_line
from sousa_engine.analysis.importance import Importance
from sousa_engine.analysis.scores import Score, group_scores
from sousa_engine.analysis.settings import SettingAxis, Summaries
from sousa_engine.analysis.significance import Proportion, paired
from sousa_engine.analysis.sweeps import Failure, TrialRow
from sousa_engine.core import sweep_spec as sweeps_spec
from sousa_engine.core.records import ClipScore, Curve, Prediction, Run, Sweep
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

METRIC = "valid/accuracy"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Test accuracy of a baseline, which uses no neural network. how: a short description of its classifier."""

    title: str
    accuracy: Proportion
    macro_f1: float
    how: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All data of a report. sweep: None for a list of runs. rows: all settings; those of a sweep come best first.

    shown: the settings with a colour, a curve and a place in the verdict. best: the one with the highest valid
    accuracy, whose confusion matrix is drawn; second: the next. to_come: runs that the sweep has not queued yet.
    """

    title: str
    made_at_ms: int
    sweep: Sweep | None
    runs: tuple[Run, ...]
    names: tuple[str, ...]  # of the runs
    results: tuple[Result, ...]  # of the runs
    summaries: Summaries
    statuses: Counter[str]
    to_come: int
    rows: tuple[TrialRow, ...]
    shown: tuple[TrialRow, ...]
    conclusion: Conclusion
    failures: tuple[Failure, ...]
    lines: tuple[Line, ...]  # of `shown`
    scores: tuple[tuple[str, Mapping[str, Score]], ...]  # of `shown`, by rudiment group
    best: TrialRow | None
    second: TrialRow | None
    predictions: Mapping[str, Sequence[Prediction]]  # run id -> its test split, for `shown`
    axes: tuple[SettingAxis, ...]
    reached: tuple[tuple[float, ...], ...]  # for each row, the valid accuracies of its finished seeds
    weighed: Importance | None  # None if there are too few runs
    baselines: tuple[Reference, ...]

    @property
    def spec(self) -> SweepSpec | None:
        return sweeps_spec.build(self.sweep.spec) if self.sweep else None

    @property
    def pruned(self) -> tuple[tuple[str, Run], ...]:
        """(name, run) of each pruned run."""
        return tuple((name, run) for name, run in zip(self.names, self.runs, strict=True) if run.is_pruned)

    @property
    def open_count(self) -> int:
        """The number of runs that have not ended."""
        return sum(not run.status.is_over for run in self.runs)

    def label_of(self, run: Run) -> str:
        """The setting of a run; "" if a later run of the same setting and seed replaced it."""
        return next((row.label for row in self.rows for other in row.runs if other.id == run.id), "")


def read(
    store: Store,
    *,
    sweep: Sweep | None = None,
    runs: Sequence[Run] = (),
    baselines: Sequence[Reference] = (),
    made_at_ms: int | None = None,
) -> Report:
    """The report of a sweep, or of these runs. Only the latest run of each trial and seed in a sweep counts."""
    runs = sweeps.latest(store.sweeps.runs(sweep.id)) if sweep else tuple(runs)
    summaries = store.metrics.summaries([run.id for run in runs])
    rows, shown = settings.ordered(runs, summaries, of_sweep=sweep is not None)
    drawn = settings.competing(runs, rows, shown, of_sweep=sweep is not None)
    steps = [run for row in shown for run in row.runs if METRIC in summaries[run.id]]
    return build(
        runs=runs,
        summaries=summaries,
        predictions={run.id: store.runs.predictions(run.id, "test") for run in drawn},
        curves={run.id: store.metrics.curve(run.id, METRIC) for run in steps},
        clip_scores={row.number: store.runs.clip_scores([run.id for run in row.runs], "test") for row in shown},
        sweep=sweep,
        baselines=baselines,
        made_at_ms=time.time_ns() // 1_000_000 if made_at_ms is None else made_at_ms,
    )


def build(
    *,
    runs: Sequence[Run],
    summaries: Summaries,
    predictions: Mapping[str, Sequence[Prediction]],
    curves: Mapping[str, Curve],
    clip_scores: Mapping[int, Sequence[ClipScore]],
    made_at_ms: int,
    sweep: Sweep | None = None,
    baselines: Sequence[Reference] = (),
) -> Report:
    """predictions, curves: run id -> test split, valid accuracy. clip_scores: number of a row -> its test clips."""
    of_sweep = sweep is not None
    rows, shown = settings.ordered(runs, summaries, of_sweep=of_sweep)
    drawn = settings.competing(runs, rows, shown, of_sweep=of_sweep)
    tested = [row for row in settings.by_valid(shown) if any(predictions.get(run.id) for run in row.runs)]
    axes = settings.setting_axes(rows) if settings.has_axes(rows, of_sweep) else ()
    reached = tuple(settings.reached(row, summaries, "valid") for row in rows)
    tally = sweeps.tally(sweep, runs) if sweep else None
    scored = ((row.label, group_scores(clip_scores.get(row.number, ()))) for row in shown)
    return Report(
        title=sweep.name if sweep else runs[0].title if len(runs) == 1 else f"{len(runs)} runs",
        made_at_ms=made_at_ms,
        sweep=sweep,
        runs=tuple(runs),
        names=tuple(compare.run_names(runs)),
        results=compare.results(runs, summaries),
        summaries=summaries,
        statuses=tally.statuses if tally else Counter(sweeps.status_word(run) for run in runs),
        to_come=tally.to_come if tally else 0,
        rows=rows,
        shown=shown,
        conclusion=_conclusion(drawn, rows, summaries, predictions),
        failures=sweeps.by_cause(runs),
        lines=tuple(_line(number, row, curves) for number, row in enumerate(shown)),
        scores=tuple((label, found) for label, found in scored if found),
        best=tested[0] if tested else None,
        second=tested[1] if len(tested) > 1 else None,
        predictions=predictions,
        axes=axes,
        reached=reached,
        weighed=importance.importance(axes, reached) if axes else None,
        baselines=tuple(baselines),
    )


def peak_mib(run: Run) -> float | None:
    return cost.cost_of(run, "peak_memory_mib")


def _conclusion(
    runs: Sequence[Run],
    rows: Sequence[TrialRow],
    summaries: Summaries,
    predictions: Mapping[str, Sequence[Prediction]],
) -> Conclusion:
    found = compare.results(runs, summaries)
    names = settings.names_in_verdict(rows, found)
    said = compare.conclude(found, predictions, names=names, excluded=sweeps.out_of_competition(runs))
    named = zip(compare.run_names(runs), (predictions.get(run.id) for run in runs), strict=True)
    measured = [(name, clips) for name, clips in named if clips]
    if len(measured) != 2:
        return said
    (first, of_first), (second, of_second) = measured
    difference = paired(of_first, of_second)
    if difference is None:
        return said
    return Conclusion(
        verdict=said.verdict,
        notes=(*said.notes, compare.paired_sentence(first, second, difference)),
        pairs=said.pairs,
        order=said.order,
    )


def _line(number: int, row: TrialRow, curves: Mapping[str, Curve]) -> Line:
    found = ((run, curves[run.id]) for run in row.runs if run.id in curves)
    seeds = [seed for run, curve in found if curve.steps and (seed := placed(run, curve, "step"))]
    return seed_line(row.label, seeds, group=number)


def of_workspace(store: Store, sweep: Sweep | None, runs: Sequence[Run] = ()) -> Report:
    """The report of a sweep, or of these runs, with the baselines of their data set if they were computed."""
    found = read(store, sweep=sweep, runs=runs)
    return replace(found, baselines=_references(store.workspace, found))


def encoded(text: str, form: str) -> bytes:
    """The bytes of a report file. A CSV gets a byte-order mark, without which Excel assumes another encoding."""
    return text.encode("utf-8-sig" if form == "csv" else "utf-8")


def _references(workspace: Workspace, found: Report) -> tuple[Reference, ...]:
    """The baselines, if all tested runs were evaluated on the same clips as the baselines."""
    tested = [clips for clips in found.predictions.values() if clips]
    data = {run.config.data.model_dump_json(): run.config.data for run in found.runs}
    folders = {baselines.folder_for(one, workspace) for one in data.values()} if tested else set()
    folder = folders.pop() if len(folders) == 1 else None
    known = baselines.read(folder) if folder else None
    if known is None or not all(baselines.of_clips(known, clips) for clips in tested):
        return ()
    if any(row.clips not in (None, known.baselines[0].n) for row in found.rows):
        return ()
    return tuple(
        Reference(title=one.title, accuracy=one.accuracy, macro_f1=one.macro_f1, how=baselines.tried_text(one))
        for one in known.baselines
    )
