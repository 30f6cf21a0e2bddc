"""Accuracy per class with Wilson's interval, lowest at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.confusion import ClassResult

ROW_PX = 17


class ClassAccuracyInfo(NamedTuple):
    labels: tuple[str, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    notes: tuple[str, ...]  # "3 of 5 clips correct; most often predicted as drag"


def class_accuracy_info(rows: Sequence[ClassResult]) -> ClassAccuracyInfo:
    return ClassAccuracyInfo(
        labels=tuple(row.label for row in rows),
        values=tuple(row.recall.value for row in rows),
        low=tuple(row.recall.low for row in rows),
        high=tuple(row.recall.high for row in rows),
        notes=tuple(_note(row) for row in rows),
    )


def class_accuracy_figure(info: ClassAccuracyInfo) -> go.Figure:
    places = list(range(len(info.labels)))
    return go.Figure(
        go.Scatter(
            x=info.values,
            y=places,
            mode="markers",
            marker={"size": 8, "color": f"rgb({template.RIGHT})"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high - value for high, value in zip(info.high, info.values, strict=True)],
                "arrayminus": [value - low for value, low in zip(info.values, info.low, strict=True)],
                "color": template.GREY.format(0.55),
                "thickness": 1.5,
                "width": 0,
            },
            text=[
                f"<b>{template.text(label)}</b><br>{template.text(note)}"
                for label, note in zip(info.labels, info.notes, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
        ),
        layout=template.layout(
            height=max(240, ROW_PX * len(places) + 70),
            xaxis={
                "title": {"text": "accuracy, 95 % interval"},
                "range": [-0.02, 1.02],
                "tickformat": ".0%",
            },
            yaxis={
                "tickmode": "array",
                "tickvals": places,
                "ticktext": [template.text(label) for label in info.labels],
                "tickfont": {"size": 10},
                "range": [len(places) - 0.5, -0.5],
            },
        ),
    )


def _note(row: ClassResult) -> str:
    counted = f"{row.recall.right} of {row.recall.n} clips correct"
    return f"{counted}; most often predicted as {row.taken_for}" if row.taken_for else counted
