"""The charts of a report by name, as drawn on the Compare page, each with a text alternative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from sousa_engine.analysis import cost, rudiment_groups, settings
from sousa_engine.analysis.charts.confusion import (
    confusion_difference_figure,
    confusion_difference_info,
    confusion_figure,
    confusion_info,
)
from sousa_engine.analysis.charts.cost import Level, cost_figure, cost_info
from sousa_engine.analysis.charts.curves import curves_figure, curves_info
from sousa_engine.analysis.charts.importance import importance_figure, importance_info
from sousa_engine.analysis.charts.parallel import parallel_figure, parallel_info
from sousa_engine.analysis.charts.scores import scores_figure, scores_info
from sousa_engine.analysis.confusion import Confusion, confusion, difference
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.report.read import METRIC, Report


@dataclass(frozen=True, kw_only=True)
class Chart:
    """title is shown above the figure, note below; either may be "". wide: a phone scrolls it sideways.

    by_setting: the figure uses the colours of the shown settings and needs their legend.
    """

    title: str
    alt: str
    figure: go.Figure
    wide: bool = False
    by_setting: bool = False
    note: str = ""


def figures(report: Report, names: Sequence[str]) -> dict[str, Chart]:
    """The charts that the sections of a report name, in their order."""
    found: dict[str, Chart] = {}
    for name in names:
        kind, _, of = name.partition(" ")
        found[name] = _cost(report, of) if kind == "cost" else _DRAW[name](report)
    return found


def _curves(report: Report) -> Chart:
    figure = curves_figure(curves_info(METRIC, report.lines), legend=False)
    return Chart(title="", alt="Valid accuracy over steps, one line per setting", figure=figure, by_setting=True)


def _cost(report: Report, measure: str) -> Chart:
    levels = [Level(one.title, one.accuracy.value) for one in report.baselines]
    figure = cost_figure(cost_info(cost.cost_points(report.rows, measure), measure, levels))
    title = cost.MEASURES[measure]
    return Chart(title=title, alt=f"Test accuracy against {title.lower()}", figure=figure)


def _scores(report: Report) -> Chart:
    figure = scores_figure(scores_info(report.scores))
    figure.update_layout(showlegend=False)
    return Chart(title="", alt="Test accuracy by rudiment group, one dot per setting", figure=figure, by_setting=True)


def _confusion(report: Report) -> Chart:
    assert report.best is not None
    matrix, blocks = _matrix(report, report.best, _classes(report))
    figure = confusion_figure(confusion_info(matrix, blocks), labels=False)
    return Chart(
        title=report.best.label,
        alt=f"Confusion matrix of {report.best.label}",
        figure=figure,
        note="Rows: true class; columns: predicted class. Teal = correct, red = wrong.",
    )


def _difference(report: Report) -> Chart:
    assert report.best is not None and report.second is not None
    classes = _classes(report)
    second, blocks = _matrix(report, report.second, classes)
    best, _ = _matrix(report, report.best, classes)
    info = confusion_difference_info(difference(second, best), report.second.label, report.best.label, blocks)
    return Chart(
        title=f"{report.best.label} against {report.second.label}",
        alt=f"Where {report.best.label} is better (teal) or worse (red) than {report.second.label}",
        figure=confusion_difference_figure(info, labels=False),
        note=f"Teal: {report.best.label} is better (more clips correct, or fewer of this error); red: worse. "
        f"The darkest cell is {100 * info.largest:.0f} percentage points of its row.",
    )


def _importance(report: Report) -> Chart:
    assert report.weighed is not None
    return Chart(
        title="Importance of the axes",
        alt="Share of the variance between settings explained by each axis",
        figure=importance_figure(importance_info(report.weighed)),
    )


def _parallel(report: Report) -> Chart:
    means = [settings.mean(values) for values in report.reached]
    return Chart(
        title="Settings as lines through their values",
        alt="Each setting as a line through its values, coloured by its valid accuracy",
        figure=parallel_figure(parallel_info(report.axes, means, "valid accuracy")),
        wide=True,
    )


_DRAW = {
    "curves": _curves,
    "scores": _scores,
    "confusion": _confusion,
    "difference": _difference,
    "importance": _importance,
    "parallel": _parallel,
}


def _classes(report: Report) -> tuple[str, ...]:
    """The classes of the two settings in the confusion charts, so that their matrices can be subtracted."""
    rows = [row for row in (report.best, report.second) if row]
    return rudiment_groups.by_group(
        {c for row in rows for p in _clips(report.predictions, row) for c in (p.label, p.predicted)}
    )


def _matrix(report: Report, row: TrialRow, classes: tuple[str, ...]) -> tuple[Confusion, tuple[tuple[str, int], ...]]:
    return confusion(_clips(report.predictions, row), classes), rudiment_groups.blocks(classes)


def _clips(predictions: Mapping, row: TrialRow) -> list:
    return [p for run in row.runs for p in predictions.get(run.id, ())]
