"""A confusion matrix, and the difference of two: teal is correct, or better; red is wrong, or worse."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.confusion import Confusion, ConfusionDifference

ROW_PX = 17
MOST_NAMED = 12


class ConfusionInfo(NamedTuple):
    """shares: counts divided by the sum of their row; negative off the diagonal, None for a count of zero.

    blocks: (name, number of classes) of neighbours that form a group, or ().
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]
    n: int
    right: int
    blocks: tuple[tuple[str, int], ...] = ()


class ConfusionDifferenceInfo(NamedTuple):
    """gains: how much better the second is in each cell, in [-1, 1]; texts: hover texts."""

    classes: tuple[str, ...]
    gains: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, int], ...]
    largest: float  # the largest gain or loss, for the colours


def confusion_info(matrix: Confusion, blocks: Sequence[tuple[str, int]] = ()) -> ConfusionInfo:
    shares = tuple(
        tuple((count / sum(row) if i == j else -count / sum(row)) if count else None for j, count in enumerate(row))
        for i, row in enumerate(matrix.counts)
    )
    return ConfusionInfo(
        classes=matrix.classes,
        counts=matrix.counts,
        shares=shares,
        n=matrix.n,
        right=matrix.right,
        blocks=tuple(blocks),
    )


def confusion_difference_info(
    found: ConfusionDifference, first: str, second: str, blocks: Sequence[tuple[str, int]] = ()
) -> ConfusionDifferenceInfo:
    """first, second: the names of the two."""
    classes = found.first.classes
    names = tuple(map(template.text, classes))
    first, second = template.text(first), template.text(second)
    texts = tuple(
        tuple(
            f"<b>{label}</b><br>predicted as <b>{predicted}</b>"
            f"<br>{first}: {of_first} of {sum(row_first)}<br>{second}: {of_second} of {sum(row_second)}"
            for predicted, of_first, of_second in zip(names, row_first, row_second, strict=True)
        )
        for label, row_first, row_second in zip(names, found.first.counts, found.second.counts, strict=True)
    )
    sizes = [abs(gain) for row in found.gains for gain in row if gain is not None]
    return ConfusionDifferenceInfo(
        classes=classes, gains=found.gains, texts=texts, blocks=tuple(blocks), largest=max(sizes, default=0.0)
    )


def confusion_figure(info: ConfusionInfo, labels: bool = True) -> go.Figure:
    """labels=False shows class names only on hover, for several matrices side by side; blocks are always named."""
    names = [template.text(name) for name in info.classes]
    hover = [
        [
            f"<b>{label}</b><br>predicted as <b>{predicted}</b><br>{count} of {sum(row)} clips"
            for predicted, count in zip(names, row, strict=True)
        ]
        for label, row in zip(names, info.counts, strict=True)
    ]
    return _matrix(info.classes, info.shares, 1.0, hover, labels, info.blocks)


def confusion_difference_figure(info: ConfusionDifferenceInfo, labels: bool = True) -> go.Figure:
    """The colours range from the largest loss to the largest gain."""
    return _matrix(info.classes, info.gains, max(info.largest, 0.01), info.texts, labels, info.blocks)


def _matrix(
    classes: Sequence[str],
    values: Sequence[Sequence[float | None]],
    reach: float,
    hover: Sequence[Sequence[str]],
    labels: bool,
    blocks: Sequence[tuple[str, int]],
) -> go.Figure:
    """values: in [-reach, reach], red to teal."""
    count = len(classes)
    places = list(range(1, count + 1))  # not names: two classes may have the same shortened name
    numbered = count > MOST_NAMED  # too many names for the columns, which get numbers instead
    short = [template.text(_short(name)) for name in classes]
    names = [f"{name}  {i}" if numbered else name for i, name in zip(places, short, strict=True)]
    named = {"tickmode": "array", "tickvals": places, "ticktext": names, "tickangle": 0}
    bare = {"showgrid": False, "showticklabels": labels, "ticks": "", "showline": False, "tickfont": {"size": 10}}
    by_block = _block_ticks(blocks) if blocks and not labels else {}
    frame = {"x0": 0.5, "x1": count + 0.5, "y0": 0.5, "y1": count + 0.5}
    square = {} if labels else {"scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}
    return go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=values,
            zmin=-reach,
            zmax=reach,
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
            height=max(320, ROW_PX * count + 90) if labels else 430,
            xaxis={
                **bare,
                **({} if numbered else named),
                **by_block,
                "range": [0.5, count + 0.5],
                "constrain": "domain",
                "title": {"text": "predicted", "standoff": 6},
            },
            yaxis={
                **bare,
                **named,
                **(by_block and {**by_block, "tickangle": -90}),
                "range": [count + 0.5, 0.5],
                **square,
                "title": {"text": "true class", "standoff": 6},
            },
            shapes=[
                {"type": "rect", **frame, "line": {"color": template.GREY.format(0.35), "width": 1}},
                *_borders(blocks, count),
            ],
        ),
    )  # fmt: skip


def _borders(blocks: Sequence[tuple[str, int]], count: int) -> list[dict]:
    """Thin lines between blocks."""
    ends = list(accumulate(size for _, size in blocks))[:-1]
    line = {"color": template.GREY.format(0.55), "width": 1}
    down = [{"type": "line", "x0": e + 0.5, "x1": e + 0.5, "y0": 0.5, "y1": count + 0.5, "line": line} for e in ends]
    return down + [
        {"type": "line", "y0": e + 0.5, "y1": e + 0.5, "x0": 0.5, "x1": count + 0.5, "line": line} for e in ends
    ]


def _block_ticks(blocks: Sequence[tuple[str, int]]) -> dict:
    """The name of each block, centred on its classes."""
    ends = [0, *accumulate(size for _, size in blocks)]
    middles = [(start + end + 1) / 2 for start, end in pairwise(ends)]
    names = [template.text(name) for name, _ in blocks]
    return {"tickmode": "array", "tickvals": middles, "ticktext": names, "showticklabels": True}


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
