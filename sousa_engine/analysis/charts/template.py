"""The shared look of all charts: transparent background, thin grey lines for both themes, compact margins.

Text and series colours are not set: the theme of st.plotly_chart provides those of light or dark.
"""

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

RIGHT = "14,124,117"  # teal: correct, as r,g,b
WRONG = "196,84,58"  # red: wrong
GREY = "rgba(128,128,128,{})"
# Colours of series, the same in all charts, as r,g,b; readable in both themes.
SERIES = (
    "27,156,144", "209,138,51", "108,128,204", "210,96,79", "157,115,181", "120,166,74", "70,160,207", "212,117,159",
)  # fmt: skip
# Low to high, for both themes.
SCALE = [[0, "rgb(196,84,58)"], [0.5, "rgb(209,168,90)"], [1, "rgb(20,150,138)"]]


def series(number: int, opacity: float = 1.0) -> str:
    """The colour of a series by its number from 0; the eight colours repeat."""
    return f"rgba({SERIES[number % len(SERIES)]},{opacity})"


def text(name: str) -> str:
    """A name with its tags escaped: plotly interprets tags, links and entities in all texts."""
    return html.escape(name, quote=False)


def log_axis(values: Sequence[float]) -> dict:
    """Properties of a logarithmic axis for positive values: ticks at 1, 2 and 5 of each magnitude, as plain numbers."""
    low, high = min(values), max(values)
    magnitudes = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in magnitudes for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [_number(tick) for tick in ticks]}


def layout(**changes) -> go.Layout:
    """The shared layout; `changes` are layout properties of plotly that override it."""
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
