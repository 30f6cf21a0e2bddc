"""One metric of several runs over steps; a metric that was no number leaves a gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.curves import Line
from sousa_engine.charts import template

FEW_POINTS = 60  # up to this many, every point gets a marker


class CurvesInfo(NamedTuple):
    metric: str
    lines: tuple[Line, ...]
    log: bool
    is_share: bool  # values in [0, 1], shown as per cent


def curves_info(metric: str, lines: Sequence[Line], log: bool = False) -> CurvesInfo:
    """Lines without a single point are left out; equal labels are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for line in lines:
        if not line.x:
            continue
        seen[line.label] = seen.get(line.label, 0) + 1
        label = line.label if seen[line.label] == 1 else f"{line.label} ({seen[line.label]})"
        named.append(Line(label=label, x=line.x, y=line.y))
    is_share = metric.endswith(("accuracy", "macro_f1"))
    return CurvesInfo(metric=metric, lines=tuple(named), log=log and not is_share, is_share=is_share)


def curves_figure(info: CurvesInfo, height: int = 380) -> go.Figure:
    value = "%{y:.1%}" if info.is_share else "%{y:.4g}"
    return go.Figure(
        [
            go.Scatter(
                x=line.x,
                y=line.y,
                name=line.label,
                mode="lines+markers" if len(line.x) <= FEW_POINTS else "lines",
                line={"width": 2},
                marker={"size": 6},
                connectgaps=False,
                hovertemplate=f"{value}<extra>%{{fullData.name}}</extra>",
            )
            for line in info.lines
        ],
        layout=template.layout(
            height=height,
            hovermode="x unified",
            showlegend=True,
            xaxis={"title": {"text": "step"}},
            yaxis={
                "title": {"text": info.metric},
                "type": "log" if info.log else "linear",
                "tickformat": ".1~%" if info.is_share else None,
            },
        ),
    )
