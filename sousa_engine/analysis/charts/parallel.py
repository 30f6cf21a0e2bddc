"""Parallel coordinates: each setting is a line through its values, coloured by its accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.settings import SettingAxis

LONGEST_TEXT = 22
MOST_TICKS = 12


class ParallelAxis(NamedTuple):
    """places: the position of each setting on the axis; ticks: (position, text)."""

    name: str
    places: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]


class ParallelInfo(NamedTuple):
    """reached: accuracy of each drawn setting, in [0, 1]; left_out: number of settings without one."""

    axes: tuple[ParallelAxis, ...]
    reached: tuple[float, ...]
    accuracy: str
    left_out: int


def parallel_info(axes: Sequence[SettingAxis], reached: Sequence[float | None], accuracy: str) -> ParallelInfo:
    """accuracy: the name of `reached`, such as "valid accuracy"."""
    drawn = [i for i, value in enumerate(reached) if value is not None]
    return ParallelInfo(
        axes=tuple(_axis(axis, drawn) for axis in axes),
        reached=tuple(value for value in reached if value is not None),
        accuracy=accuracy,
        left_out=len(reached) - len(drawn),
    )


def parallel_figure(info: ParallelInfo) -> go.Figure:
    percent = [100 * value for value in info.reached]
    dimensions = [
        {
            "label": template.text(axis.name),
            "values": axis.places,
            "tickvals": [place for place, _ in axis.ticks],
            "ticktext": [text for _, text in axis.ticks],  # the only text that plotly does not interpret
            "range": _range(axis.places),
        }
        for axis in info.axes
    ]
    dimensions.append({"label": f"{info.accuracy}, %", "values": percent, "tickformat": ".1f"})
    return go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": percent, "colorscale": template.SCALE, "showscale": False},
            unselected={"line": {"color": "rgb(128,128,128)", "opacity": 0.12}},
            labelfont={"size": 13},
            tickfont={"size": 12},
            rangefont={"size": 11},
        ),
        layout=template.layout(height=400, margin={"l": _left(info), "r": 60, "t": 50, "b": 24}),
    )


def _axis(axis: SettingAxis, drawn: Sequence[int]) -> ParallelAxis:
    if not axis.is_number:
        places = {text: float(i) for i, text in enumerate(axis.levels)}
        ticks = tuple((place, _short(text)) for text, place in places.items())
        return ParallelAxis(axis.name, tuple(places[axis.texts[i]] for i in drawn), ticks)
    turn = math.log10 if axis.is_log else float
    values = sorted(set(axis.values))
    shown = values if len(values) <= MOST_TICKS else [values[0], values[len(values) // 2], values[-1]]
    return ParallelAxis(
        axis.name,
        tuple(turn(axis.values[i]) for i in drawn),
        tuple((turn(value), f"{value:g}") for value in shown),
    )


def _range(places: Sequence[float]) -> list[float] | None:
    """None lets plotly choose; a single position gets room on both sides."""
    return [places[0] - 1, places[0] + 1] if len(set(places)) == 1 else None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _left(info: ParallelInfo) -> int:
    """Pixels for the tick labels to the left of the first axis."""
    longest = max((len(text) for axis in info.axes[:1] for _, text in axis.ticks), default=0)
    return min(max(90, 8 * longest), 220)
