"""The trials of a sweep as tiles: status and link of each run, accuracies, and a sparkline of valid accuracy per seed.

One component draws all tiles, so that 300 of them need only one message. The browser owns the ticks, by trial number,
and keeps unchanged tiles; it sends Python the ticks and the run to open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from sousa_engine.analysis.sweeps import TrialRow, best_first
from sousa_engine.core.records import Curve, Run, RunStatus

HERE = Path(__file__).parent
MOST_POINTS = 24  # per sparkline, which is about 250 pixels wide
UNITS = 1000  # x and y of a sparkline are whole numbers: thousandths of all epochs, and of accuracy

_component = st.components.v2.component(
    "sousa_trial_tiles",
    html=(HERE / "tiles.html").read_text(),
    css=(HERE / "tiles.css").read_text(),
    js=(HERE / "tiles.js").read_text(),
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """ticked: trial numbers, in ascending order. opened: the id of the run that was just clicked."""

    ticked: tuple[int, ...]
    opened: str | None


def trial_tiles(sweep_id: str, rows: Sequence[TrialRow], curves: Mapping[str, Curve]) -> Wish:
    """Draw the tiles in the order of `rows`. curves: run id -> valid accuracy over steps, for runs that have it."""
    result = _component(
        key=f"tiles-{sweep_id}",
        data={"sweep": sweep_id, **tiles_data(rows, curves)},
        default={"ticked": []},
        on_ticked_change=lambda: None,
        on_opened_change=lambda: None,
    )
    return Wish(
        ticked=_known_trials(rows, result.ticked),
        opened=next((run.id for row in rows for run in row.runs if run.id == result.opened), None),
    )


def tiles_data(rows: Sequence[TrialRow], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The data to draw, as JSON. top: the highest accuracy of all sparklines in thousandths, their common scale."""
    sparklines = dict(_sparklines(rows, curves))
    heights = [y for line in sparklines.values() for y in line[1::2] if y is not None]
    best = next((row.number for row in best_first(rows) if row.valid), None)
    return {
        "top": max(heights, default=UNITS),
        "tiles": [
            {
                "trial": row.number,
                "label": row.label,
                "state": state_of(row),
                "best": row.number == best and len(rows) > 1,
                "runs": [[run.id, run.config.seed, _status(run)] for run in row.runs],
                "valid": _percent(row.mean_valid),
                "test": _percent(row.mean_test),
                "n": _count(row),
                "note": note_of(row),
                "sparklines": [sparklines[run.id] for run in row.runs if run.id in sparklines],
            }
            for row in rows
        ],
    }


def state_of(row: TrialRow) -> str:
    """One word for all runs of a trial: the state that needs attention first."""
    statuses = row.statuses
    for state, of in (
        ("failed", (RunStatus.FAILED, RunStatus.LOST)),
        ("running", (RunStatus.STARTING, RunStatus.RUNNING, RunStatus.STOPPING)),
        ("pruned", ("pruned",)),
        ("queued", (RunStatus.QUEUED,)),
        ("stopped", (RunStatus.STOPPED,)),
    ):
        if any(statuses[status] for status in of):
            return state
    return "finished"


def note_of(row: TrialRow) -> str:
    """Why a run failed, or otherwise why it was pruned: the reason of the first such run."""
    failed = [run.reason for run in row.runs if run.status in (RunStatus.FAILED, RunStatus.LOST)]
    return next(iter([*failed, *(run.reason for run in row.runs if run.is_pruned)]), "") or ""


def _sparklines(rows: Sequence[TrialRow], curves: Mapping[str, Curve]) -> Iterable[tuple[str, list[int | None]]]:
    for row in rows:
        for run in row.runs:
            if run.id in curves and curves[run.id].steps:
                yield run.id, _sparkline(run, curves[run.id])


def _sparkline(run: Run, curve: Curve) -> list[int | None]:
    """x, y, x, y, ...: x = 1,000 is the last planned epoch; y is None if there is no value."""
    total = curve.steps[0] * run.config.training.max_epochs  # every epoch is validated, also the first one
    points = list(zip(curve.steps, curve.mean, strict=True))
    stride = -(-len(points) // MOST_POINTS)
    kept = points[::-stride][::-1]  # from the end, to keep the newest point
    flat: list[int | None] = []
    for step, value in kept:
        flat += [min(UNITS, round(UNITS * step / total)), None if value is None else round(UNITS * value)]
    return flat


def _known_trials(rows: Sequence[TrialRow], claimed: Any) -> tuple[int, ...]:
    """The ticked trials that exist: input from a browser is not trusted."""
    wanted = {number for number in claimed if type(number) is int} if isinstance(claimed, list) else set()
    return tuple(row.number for row in sorted(rows, key=lambda row: row.number) if row.number in wanted)


def _status(run: Run) -> str:
    return "pruned" if run.is_pruned else run.status.value


def _count(row: TrialRow) -> str:
    """The sample behind the mean test accuracy: "3 seeds × 200 clips"."""
    if not row.test:
        return ""
    seeds = f"{len(row.test)} {'seed' if len(row.test) == 1 else 'seeds'}"
    return f"{seeds} × {row.clips:,} clips" if row.clips else seeds


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
