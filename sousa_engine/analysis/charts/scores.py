"""Accuracy on parts of the test split: one dot per setting for each rudiment group, class or slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.scores import Score

DOT_PX = 13  # between the dots of one group
SHORT_ROW_PX = 19


class ScoreSeries(NamedTuple):
    """One setting: a score for each group, None if it has no clips in it."""

    name: str
    scores: tuple[Score | None, ...]


class ScoresInfo(NamedTuple):
    """groups: with their n, if it is the same for all settings. intervals: whether to draw them.

    level: a reference, drawn in grey.
    """

    groups: tuple[str, ...]
    series: tuple[ScoreSeries, ...]
    intervals: bool
    level: ScoreSeries | None = None


def scores_info(
    found: Sequence[tuple[str, Mapping[str, Score]]],
    intervals: bool = True,
    level: tuple[str, Mapping[str, Score]] | None = None,
) -> ScoresInfo:
    """found: (name, group -> score) of each setting; level: of a baseline on the same clips.

    Groups are in order of appearance.
    """
    groups = tuple(dict.fromkeys(group for _, scores in found for group in scores))
    clips = {group: {scores[group].n for _, scores in found if group in scores} for group in groups}
    return ScoresInfo(
        groups=tuple(f"{group} · n {min(clips[group])}" if len(clips[group]) == 1 else group for group in groups),
        series=tuple(ScoreSeries(name, tuple(scores.get(group) for group in groups)) for name, scores in found),
        intervals=intervals,
        level=ScoreSeries(level[0], tuple(level[1].get(group) for group in groups)) if level else None,
    )


def scores_figure(info: ScoresInfo) -> go.Figure:
    """With intervals, the dots of a group are below each other, otherwise on one line."""
    count, size = len(info.groups), len(info.series)
    row_px = max(28, DOT_PX * size + 14) if info.intervals else SHORT_ROW_PX
    shift = DOT_PX / row_px if info.intervals else 0.0
    return go.Figure(
        [
            *([_level(info, info.level, row_px)] if info.level else []),
            *(_dots(info, number, (number - (size - 1) / 2) * shift) for number in range(size)),
        ],
        layout=template.layout(
            height=row_px * count + 110,
            showlegend=True,
            legend={"itemsizing": "constant"},
            hovermode="closest",
            xaxis={
                "title": {"text": "test accuracy, 95 % interval" if info.intervals else "test accuracy"},
                "tickformat": ".0%",
                "range": [-0.02, 1.02],
            },
            yaxis={
                "tickmode": "array",
                "tickvals": list(range(count)),
                "ticktext": [template.text(group) for group in info.groups],
                "tickfont": {"size": 12 if info.intervals else 10},
                "range": [count - 0.5, -0.5],
                "showgrid": not info.intervals,
            },
        ),
    )


def _dots(info: ScoresInfo, number: int, shift: float) -> go.Scatter:
    series = info.series[number]
    known = [(i, score) for i, score in enumerate(series.scores) if score is not None]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [score.high - score.value for _, score in known],
        "arrayminus": [score.value - score.low for _, score in known],
        "color": template.series(number, 0.55),
        "thickness": 1.5,
        "width": 0,
    }
    return go.Scatter(
        x=[score.value for _, score in known],
        y=[i + shift for i, _ in known],
        name=template.text(series.name),
        mode="markers",
        marker={"size": 8, "color": template.series(number)},
        error_x=error if info.intervals else None,
        customdata=[f"<b>{template.text(info.groups[i])}</b><br>{_note(score)}" for i, score in known],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _level(info: ScoresInfo, level: ScoreSeries, row_px: int) -> go.Scatter:
    """A thin vertical mark in each group, as high as its dots."""
    known = [(i, score) for i, score in enumerate(level.scores) if score is not None]
    return go.Scatter(
        x=[score.value for _, score in known],
        y=[i for i, _ in known],
        name=template.text(level.name),
        mode="markers",
        marker={
            "symbol": "line-ns-open",
            "size": (row_px - 4) / 1.4,  # plotly draws this symbol 1.4 times as long
            "line": {"width": 1.5},
            "color": template.GREY.format(0.8),
        },
        customdata=[f"<b>{template.text(info.groups[i])}</b><br>{_note(score)}" for i, score in known],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _note(score: Score) -> str:
    seeds = f", mean of {score.seeds} seeds" if score.seeds > 1 else ""
    interval = f"{100 * score.low:.1f} to {100 * score.high:.1f} %"
    return f"{100 * score.value:.1f} % of {score.n} clips{seeds}<br>95 % interval: {interval}"
