"""How much of the difference between settings each axis explains: one bar per axis, and the rest."""

from __future__ import annotations

from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.importance import Importance

ROW_PX = 34
REST = "axes combined, and noise"


class ImportanceInfo(NamedTuple):
    """Shares of the variance between settings, highest first; the last bar is what no axis explains alone."""

    names: tuple[str, ...]
    shares: tuple[float, ...]


def importance_info(found: Importance) -> ImportanceInfo:
    return ImportanceInfo(
        names=(*(field.rpartition(".")[2] for field, _ in found.shares), REST),
        shares=(*(share for _, share in found.shares), found.rest),
    )


def importance_figure(info: ImportanceInfo) -> go.Figure:
    teal, grey = f"rgb({template.RIGHT})", template.GREY.format(0.45)
    return go.Figure(
        go.Bar(
            x=info.shares,
            y=list(range(len(info.names))),
            orientation="h",
            marker={"color": [teal] * (len(info.names) - 1) + [grey]},
            text=[f"{100 * share:.0f} %" for share in info.shares],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        ),
        layout=template.layout(
            height=ROW_PX * len(info.names) + 70,
            bargap=0.35,
            xaxis={"title": {"text": "share of the variance"}, "tickformat": ".0%", "range": [0, 1.08]},
            yaxis={
                "tickmode": "array",
                "tickvals": list(range(len(info.names))),
                "ticktext": list(info.names),
                "range": [len(info.names) - 0.5, -0.5],
            },
        ),
    )
