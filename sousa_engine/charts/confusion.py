"""A confusion matrix: each row adds up to its class's clips; petrol is right, brick is wrong."""

from __future__ import annotations

from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.confusion import Confusion
from sousa_engine.charts import template

ROW_PX = 17
MOST_NAMED = 12


class ConfusionInfo(NamedTuple):
    """shares: counts over their row's sum; negative off the diagonal, None where nothing was counted."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]
    n: int
    right: int


def confusion_info(matrix: Confusion) -> ConfusionInfo:
    shares = tuple(
        tuple((count / sum(row) if i == j else -count / sum(row)) if count else None for j, count in enumerate(row))
        for i, row in enumerate(matrix.counts)
    )
    return ConfusionInfo(classes=matrix.classes, counts=matrix.counts, shares=shares, n=matrix.n, right=matrix.right)


def confusion_figure(info: ConfusionInfo, labels: bool = True) -> go.Figure:
    """labels=False leaves the class names to the hover text: for several matrices side by side."""
    hover = [
        [
            f"<b>{label}</b><br>taken for <b>{predicted}</b><br>{count} of {sum(row)} clips"
            for predicted, count in zip(info.classes, row, strict=True)
        ]
        for label, row in zip(info.classes, info.counts, strict=True)
    ]
    count = len(info.classes)
    places = list(range(1, count + 1))  # not names: two classes may share a name once it is shortened
    numbered = count > MOST_NAMED  # so many names do not fit under the columns: they get numbers
    names = [f"{_short(name)}  {i}" if numbered else _short(name) for i, name in zip(places, info.classes, strict=True)]
    named = {"tickmode": "array", "tickvals": places, "ticktext": names, "tickangle": 0}
    bare = {"showgrid": False, "showticklabels": labels, "ticks": "", "showline": False, "tickfont": {"size": 10}}
    frame = {"x0": 0.5, "x1": count + 0.5, "y0": 0.5, "y1": count + 0.5}
    square = {} if labels else {"scaleanchor": "x", "constrain": "domain"}
    return go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=info.shares,
            zmin=-1,
            zmax=1,
            xgap=1,
            ygap=1,
            colorscale=[
                [0, f"rgba({template.WRONG},1)"],
                [0.4, f"rgba({template.WRONG},0.45)"],
                [0.5, f"rgba({template.WRONG},0.25)"],
                [0.5, f"rgba({template.RIGHT},0.25)"],
                [1, f"rgba({template.RIGHT},1)"],
            ],
            showscale=False,
            hoverongaps=False,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        ),
        layout=template.layout(
            height=max(320, ROW_PX * count + 90) if labels else 460,
            xaxis={
                **bare,
                **({} if numbered else named),
                "range": [0.5, count + 0.5],
                "constrain": "domain",
                "title": {"text": "taken for", "standoff": 6},
            },
            yaxis={
                **bare,
                **named,
                "range": [count + 0.5, 0.5],
                **square,
                "title": {"text": "played", "standoff": 6},
            },
            shapes=[{"type": "rect", **frame, "line": {"color": template.GREY.format(0.35), "width": 1}}],
        ),
    )  # fmt: skip


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
