"""The look all figures share: transparent, thin grey lines that read on paper and on ink, compact margins.

Text and series colours are left open: st.plotly_chart's theme brings those of light or dark.
"""

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

RIGHT = "14,124,117"  # petrol: what was recognised, as r,g,b
WRONG = "196,84,58"  # brick: what was mistaken
GREY = "rgba(128,128,128,{})"
# Series that must keep their colour from chart to chart, as r,g,b: readable on paper and on ink.
SERIES = (
    "27,156,144", "209,138,51", "108,128,204", "210,96,79", "157,115,181", "120,166,74", "70,160,207", "212,117,159",
)  # fmt: skip
# Low to high, for values on either ground.
SCALE = [[0, "rgb(196,84,58)"], [0.5, "rgb(209,168,90)"], [1, "rgb(20,150,138)"]]


def series(number: int, opacity: float = 1.0) -> str:
    """The colour of the series with this number, from 0; after eight they begin again."""
    return f"rgba({SERIES[number % len(SERIES)]},{opacity})"


def text(name: str) -> str:
    """A name as it is written: plotly reads tags, links and entities in every text it draws."""
    return html.escape(name, quote=False)


def log_axis(values: Sequence[float]) -> dict:
    """Axis properties for positive values in logarithms: ticks at 1, 2 and 5 of each magnitude, in plain numbers."""
    low, high = min(values), max(values)
    magnitudes = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in magnitudes for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [_number(tick) for tick in ticks]}


def layout(**changes) -> go.Layout:
    """The shared layout; `changes` are plotly's own layout properties and win."""
    axis = {
        "gridcolor": GREY.format(0.18),
        "linecolor": GREY.format(0.35),
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8},
    }
    base = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "remove": ["select2d", "lasso2d", "autoscale", "zoomin", "zoomout"]},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "xaxis": axis,
        "yaxis": axis,
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return go.Layout(base)


def _number(value: float) -> str:
    """0.0001, 5, 20k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if 1e-6 <= value < 1 else f"{value:g}"
