"""Accuracy against cost, with the frontier: no cheaper setting is as accurate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.cost import MEASURES, CostPoint

MOST_NAMED = 8  # with more points, the frontier has no labels
LOG_FROM = 8
NEAR = 0.05  # share of the axis; labels of closer levels would overlap


class Level(NamedTuple):
    """A reference accuracy: a dashed line across the chart."""

    name: str
    value: float


class CostInfo(NamedTuple):
    """notes: the hover text of each point. levels: the lines that are drawn, lowest first."""

    measure: str
    points: tuple[CostPoint, ...]
    notes: tuple[str, ...]
    log: bool
    levels: tuple[Level, ...] = ()


def cost_info(points: Sequence[CostPoint], measure: str, levels: Sequence[Level] = ()) -> CostInfo:
    """Draws the highest of `levels`, and others unless they would extend the axis by more than a third."""
    costs = [point.cost for point in points]
    log = bool(costs) and min(costs) > 0 and max(costs) >= LOG_FROM * min(costs)
    return CostInfo(
        measure=measure,
        points=tuple(points),
        notes=tuple(_note(p, measure) for p in points),
        log=log,
        levels=_drawn(points, levels),
    )


def cost_text(cost: float, measure: str) -> str:
    """118,696 parameters; 3 min 20 s; 812 MiB."""
    if measure == "trainable":
        return f"{cost:,.0f} parameters"
    if measure == "peak_memory_mib":
        return f"{cost:,.0f} MiB"
    minutes, seconds = divmod(cost, 60)
    return f"{minutes:,.0f} min {seconds:02.0f} s" if minutes else f"{seconds:.1f} s"


def cost_figure(info: CostInfo, names: bool = True) -> go.Figure:
    """names: whether to label the points on the frontier, if there are few."""
    frontier = [i for i, point in enumerate(info.points) if point.on_frontier]
    others = [i for i, point in enumerate(info.points) if not point.on_frontier and not point.is_control]
    controls = [i for i, point in enumerate(info.points) if point.is_control]
    named = names and len(frontier) <= MOST_NAMED
    teal, grey = f"rgb({template.RIGHT})", template.GREY.format(0.75)
    traces = [
        go.Scatter(
            x=[_shown(info, i) for i in frontier],
            y=[info.points[i].score.value for i in frontier],
            mode="lines",
            line={"shape": "hv", "width": 1.5, "dash": "dot", "color": teal},
            hoverinfo="skip",
            showlegend=False,
        ),
        _dots(info, others, "settings", {"color": grey, "size": 8}),
        _dots(info, frontier, "on the frontier", {"color": teal, "size": 11}, named=named),
        _dots(info, controls, "random weights (control)", {"color": f"rgb({template.WRONG})", "size": 9,
                                                            "symbol": "diamond-open"}),
    ]  # fmt: skip
    unit = {"trainable": "", "train_s": ", minutes", "peak_memory_mib": ", MiB"}[info.measure]
    return go.Figure(
        [trace for trace in traces if trace.x],
        layout=template.layout(
            height=420,
            showlegend=True,
            hovermode="closest",
            xaxis={
                "title": {"text": f"{MEASURES[info.measure].lower()}{unit}"},
                **(template.log_axis([_shown(info, i) for i in range(len(info.points))]) if info.log else {}),
            },
            yaxis={"title": {"text": "test accuracy, 95 % interval"}, "tickformat": ".0%"},
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": level.value,
                    "y1": level.value,
                    "layer": "below",
                    "line": {"dash": "dash", "width": 1, "color": template.GREY.format(0.7)},
                }
                for level in info.levels
            ],
            annotations=_labels(info),
        ),
    )


def _labels(info: CostInfo) -> list[dict]:
    """At the right end, above each line, or below it if the next line is too close."""
    if not info.levels:
        return []
    near = NEAR * _span([*_ends(info.points), *(level.value for level in info.levels)])
    followers = [*info.levels, None][1:]
    return [
        {
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": level.value,
            "yanchor": "top" if after and after.value - level.value < near else "bottom",
            "text": f"{template.text(level.name)} {100 * level.value:.1f} %",
            "showarrow": False,
            "font": {"size": 11, "color": template.GREY.format(1)},
        }
        for level, after in zip(info.levels, followers, strict=True)
    ]


def _drawn(points: Sequence[CostPoint], levels: Sequence[Level]) -> tuple[Level, ...]:
    ordered = sorted(levels, key=lambda level: level.value)
    if not ordered:
        return ()
    held = [*_ends(points), ordered[-1].value]
    lowest = min(held) - _span(held) / 3
    return tuple(level for level in ordered if level.value >= lowest)


def _ends(points: Sequence[CostPoint]) -> list[float]:
    return [end for point in points for end in (point.score.low, point.score.high)]


def _span(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _place(x: float, info: CostInfo) -> float:
    """The position of x between the leftmost point (0) and the rightmost (1)."""
    every = [_shown(info, i) for i in range(len(info.points))]
    if info.log:
        x, *every = (math.log10(value) for value in (x, *every))
    return (x - min(every)) / (_span(every) or 1)


def _dots(info: CostInfo, which: Sequence[int], name: str, marker: dict, named: bool = False) -> go.Scatter:
    scores = [info.points[i].score for i in which]
    places = [_place(_shown(info, i), info) for i in which]
    return go.Scatter(
        x=[_shown(info, i) for i in which],
        y=[score.value for score in scores],
        name=name,
        mode="markers+text" if named else "markers",
        marker=marker,
        text=[template.text(info.points[i].name) for i in which] if named else None,
        textposition=["top left" if place > 0.7 else "top right" for place in places],
        textfont={"size": 11},
        cliponaxis=False,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [score.high - score.value for score in scores],
            "arrayminus": [score.value - score.low for score in scores],
            "color": template.GREY.format(0.4),
            "thickness": 1.2,
            "width": 0,
        },
        customdata=[info.notes[i] for i in which],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _shown(info: CostInfo, i: int) -> float:
    cost = info.points[i].cost
    return cost / 60 if info.measure == "train_s" else cost


def _note(point: CostPoint, measure: str) -> str:
    score = point.score
    seeds = f", mean of {score.seeds} seeds" if score.seeds > 1 else ""
    return (
        f"<b>{template.text(point.name)}</b><br>{cost_text(point.cost, measure)}"
        f"<br>{100 * score.value:.1f} % of n = {score.n:,}{seeds}"
        f"<br>95 % interval: {100 * score.low:.1f} to {100 * score.high:.1f} %"
    )
