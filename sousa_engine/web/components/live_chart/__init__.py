"""Curves that move while a run is alive: a components.v2 component around uPlot that polls the studio's JSON.

The browser asks /api/live itself (web/routes.py), so a page's script does not run for a new point, and the zoom stays.
uPlot 1.6.32 (MIT, assets/uPlot.LICENSE) is served by web/routes.py from assets/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from sousa_engine.core.records import Run

FOLDER = Path(__file__).resolve().parent
ASSETS = FOLDER / "assets"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart. metrics: "train/..." becomes a line, any other split a line with a dot at each point."""

    title: str
    metrics: tuple[str, ...]
    percent: bool = False  # values in [0, 1], drawn from 0 as per cent


LOSS = Panel(title="Loss", metrics=("train/loss", "valid/loss"))
ACCURACY = Panel(title="Accuracy", metrics=("train/accuracy", "valid/accuracy"), percent=True)

_component = st.components.v2.component(
    "sousa_live_chart",
    html=(FOLDER / "chart.html").read_text(),
    css=(ASSETS / "uPlot.min.css").read_text() + "\n" + (FOLDER / "chart.css").read_text(),
    js=(FOLDER / "chart.js").read_text(),
)


def live_chart(
    runs: Sequence[Run],
    panels: Sequence[Panel] = (LOSS, ACCURACY),
    *,
    key: str,
    names: Sequence[str] | None = None,
) -> None:
    """Draw the curves of one run (with its status, progress and time left) or of several (one colour a run).

    names: what the runs are called in legends; their titles if not said. The page reruns when a status changes.
    """
    labels = names or [run.title for run in runs]
    data = {
        "runs": [
            {"id": run.id, "label": label, "status": run.status.value} for run, label in zip(runs, labels, strict=True)
        ],
        "panels": [{"title": p.title, "metrics": list(p.metrics), "percent": p.percent} for p in panels],
    }
    _component(key=key, data=data, on_status_change=lambda: None)
