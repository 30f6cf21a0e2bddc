"""One metric of several runs or settings over steps, epochs or minutes; NaN and infinity leave a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.curves import Line

FEW_POINTS = 60  # up to this many points, each gets a marker


class CurvesInfo(NamedTuple):
    metric: str
    lines: tuple[Line, ...]
    log: bool
    is_share: bool  # values in [0, 1], shown in per cent
    axis: str


def curves_info(metric: str, lines: Sequence[Line], log: bool = False, axis: str = "step") -> CurvesInfo:
    """Lines without points are left out; equal labels of different groups get a number."""
    seen: dict[str, list[int]] = {}
    named = []
    for line in lines:
        if not line.x:
            continue
        groups = seen.setdefault(line.label, [])
        if line.group not in groups:
            groups.append(line.group)
        number = groups.index(line.group) + 1
        named.append(line if number == 1 else replace(line, label=f"{line.label} ({number})"))
    return CurvesInfo(
        metric=metric, lines=tuple(named), log=log and not is_share(metric), is_share=is_share(metric), axis=axis
    )


def is_share(metric: str) -> bool:
    """Whether a metric is in [0, 1] and shown in per cent."""
    return metric.endswith(("accuracy", "macro_f1"))


def curves_figure(info: CurvesInfo, height: int = 400, legend: bool = True) -> go.Figure:
    first = {line.label: i for i, line in reversed(list(enumerate(info.lines)))}  # one legend entry per label
    traces = [_band(line) for line in info.lines if line.low]
    traces += [_line(line, info.is_share, legend=first[line.label] == i) for i, line in enumerate(info.lines)]
    return go.Figure(
        traces,
        layout=template.layout(
            height=height,
            hovermode="x unified",
            showlegend=legend,
            xaxis={"title": {"text": {"minutes": "minutes since the start"}.get(info.axis, info.axis)}},
            yaxis={
                "title": {"text": template.text(info.metric)},
                "type": "log" if info.log else "linear",
                "tickformat": ".1~%" if info.is_share else None,
            },
        ),
    )


def _line(line: Line, share: bool, legend: bool) -> go.Scatter:
    value = "%{y:.1%}" if share else "%{y:.4g}"
    band = ""
    if line.low:
        value += "%{customdata}"
        band = [_reach(low, high, share) for low, high in zip(line.low, line.high, strict=True)]
    return go.Scatter(
        x=line.x,
        y=line.y,
        name=template.text(line.label),
        legendgroup=template.text(line.label),
        showlegend=legend,
        mode="lines+markers" if len(line.x) <= FEW_POINTS else "lines",
        line={"width": 2, "color": template.series(line.group)},
        marker={"size": 5},
        connectgaps=False,
        customdata=band or None,
        hovertemplate=f"{value}<extra>%{{fullData.name}}</extra>",
    )


def _reach(low: float | None, high: float | None, share: bool) -> str:
    if low is None or high is None:
        return ""
    return f" ({100 * low:.1f} to {100 * high:.1f} %)" if share else f" ({low:.4g} to {high:.4g})"


def _band(line: Line) -> go.Scatter:
    """One polygon for each stretch without a gap: along the upper edge and back along the lower one."""
    x: list[float | None] = []
    y: list[float | None] = []
    for start, end in _stretches(line):
        x += [*line.x[start:end], *reversed(line.x[start:end]), None]
        y += [*line.high[start:end], *reversed(line.low[start:end]), None]
    return go.Scatter(
        x=x,
        y=y,
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=template.series(line.group, 0.16),
        legendgroup=template.text(line.label),
        showlegend=False,
        hoverinfo="skip",
    )


def _stretches(line: Line) -> list[tuple[int, int]]:
    """(first, last + 1) of each stretch of points with a band."""
    found, start = [], None
    for i, low in enumerate([*line.low, None]):
        if low is not None and start is None:
            start = i
        elif low is None and start is not None:
            found.append((start, i))
            start = None
    return found
