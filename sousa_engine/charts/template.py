"""The look all figures share: transparent, thin grey lines that read on paper and on ink, compact margins.

Text and series colours are left open: st.plotly_chart's theme brings those of light or dark.
"""

import plotly.graph_objects as go

RIGHT = "14,124,117"  # petrol: what was recognised, as r,g,b
WRONG = "196,84,58"  # brick: what was mistaken
GREY = "rgba(128,128,128,{})"


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
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "xaxis": axis,
        "yaxis": axis,
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return go.Layout(base)
