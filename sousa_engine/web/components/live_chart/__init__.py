"""Live curves of active runs: a components.v2 component around uPlot that polls the studio's JSON.

The browser polls /api/live itself (web/routes.py), so new points need no rerun of the page, and the zoom is kept.
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
    """One chart. metrics: "train/..." is drawn as a line, any other split as a line with dots."""

    title: str
    metrics: tuple[str, ...]
    percent: bool = False  # values in [0, 1], drawn as percentages from 0


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
    names_tab: bool = False,
) -> None:
    """Draw the curves of one run (with its status, progress and time left) or of several (one colour per run).

    names: names for the legend, by default the titles. names_tab: keep the browser's tab named after the run, with its
    progress, also while another tab is in front. The page reruns when a status changes.
    """
    labels = names or [run.title for run in runs]
    data = {
        "runs": [
            {"id": run.id, "label": label, "status": run.status.value} for run, label in zip(runs, labels, strict=True)
        ],
        "panels": [{"title": p.title, "metrics": list(p.metrics), "percent": p.percent} for p in panels],
        "names_tab": names_tab,
    }
    _component(key=key, data=data, on_status_change=lambda: None)
