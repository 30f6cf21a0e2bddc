"""One axis of a sweep against accuracy: one dot per setting, and the mean at each listed value."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.settings import SettingAxis

MOST_LEVELS = 8  # numbers with more distinct values get a numeric axis instead of one position each


class SliceInfo(NamedTuple):
    """x: values, or positions 0, 1, ... if `ticks` are given. means: (x, mean accuracy), () for a range."""

    name: str
    accuracy: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...]
    ticks: tuple[str, ...]
    means: tuple[tuple[float, float], ...]
    log: bool


def slice_info(axis: SettingAxis, labels: Sequence[str], reached: Sequence[float | None], accuracy: str) -> SliceInfo:
    """labels, reached: per setting; None in reached leaves it out. accuracy: the name of `reached`."""
    drawn = [i for i, value in enumerate(reached) if value is not None]
    y = tuple(value for value in reached if value is not None)
    listed = not axis.is_number or len(axis.levels) <= MOST_LEVELS
    place = {text: float(i) for i, text in enumerate(axis.levels)}
    x = tuple(place[axis.texts[i]] if listed else float(axis.values[i]) for i in drawn)
    at = {here: [b for a, b in zip(x, y, strict=True) if a == here] for here in sorted(set(x))} if listed else {}
    return SliceInfo(
        name=axis.name,
        accuracy=accuracy,
        x=x,
        y=y,
        labels=tuple(labels[i] for i in drawn),
        ticks=axis.levels if listed else (),
        means=tuple((here, fmean(some)) for here, some in at.items()),
        log=axis.is_log and not listed,
    )


def slice_figure(info: SliceInfo) -> go.Figure:
    ticks = [template.text(_short(tick)) for tick in info.ticks]
    named = {"tickmode": "array", "tickvals": list(range(len(info.ticks))), "ticktext": ticks}
    room = {"range": [-0.5, len(info.ticks) - 0.5]}
    return go.Figure(
        [
            go.Scatter(
                x=info.x,
                y=info.y,
                mode="markers",
                marker={"size": 7, "color": f"rgba({template.RIGHT},0.55)"},
                text=[template.text(label) for label in info.labels],
                hovertemplate="%{text}<br>%{y:.1%}<extra></extra>",
            ),
            go.Scatter(
                x=[x for x, _ in info.means],
                y=[y for _, y in info.means],
                mode="markers",
                marker={"symbol": "line-ew", "size": 26, "line": {"width": 2.5, "color": f"rgb({template.WRONG})"}},
                hovertemplate="mean %{y:.1%}<extra></extra>",
            ),
        ],
        layout=template.layout(
            height=260,
            showlegend=False,
            xaxis={
                "title": {"text": template.text(info.name)},
                **(template.log_axis(info.x) if info.log else {}),
                **({**named, **room} if info.ticks else {}),
            },
            yaxis={"title": {"text": info.accuracy}, "tickformat": ".1~%"},
        ),
    )  # fmt: skip


def _short(text: str, longest: int = 16) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
