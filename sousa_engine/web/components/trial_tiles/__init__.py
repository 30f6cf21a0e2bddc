"""The trials of a sweep as tiles: status and link of each run, valid and test accuracy, a line of the valid one a seed.

One component for all tiles, so that 300 of them cost one message. The browser owns the ticks, by trial number, and
leaves what did not change standing; Python is told what is ticked and which run was asked for.
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
MOST_POINTS = 24  # of a line that is some 250 pixels wide
UNITS = 1000  # a line's x and y are whole numbers: thousandths of all epochs, and of accuracy

_component = st.components.v2.component(
    "sousa_trial_tiles",
    html=(HERE / "tiles.html").read_text(),
    css=(HERE / "tiles.css").read_text(),
    js=(HERE / "tiles.js").read_text(),
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """ticked: trial numbers, in their order. opened: the id of a run that was clicked just now."""

    ticked: tuple[int, ...]
    opened: str | None


def trial_tiles(sweep_id: str, rows: Sequence[TrialRow], curves: Mapping[str, Curve]) -> Wish:
    """Draw the tiles in the order of `rows`. curves: run id -> valid accuracy over steps, for those that have one."""
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
    """What the browser draws, as JSON. top: the highest accuracy of all lines in thousandths, their common scale."""
    lines = dict(_lines(rows, curves))
    heights = [y for line in lines.values() for y in line[1::2] if y is not None]
    best = next((row.number for row in best_first(rows) if row.valid or row.test), None)
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
                "lines": [lines[run.id] for run in row.runs if run.id in lines],
            }
            for row in rows
        ],
    }


def state_of(row: TrialRow) -> str:
    """One word for all its runs: what asks for a look first."""
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
    """Why it failed, or else was pruned, in the words of the first run that did."""
    failed = [run.reason for run in row.runs if run.status in (RunStatus.FAILED, RunStatus.LOST)]
    return next(iter([*failed, *(run.reason for run in row.runs if run.is_pruned)]), "") or ""


def _lines(rows: Sequence[TrialRow], curves: Mapping[str, Curve]) -> Iterable[tuple[str, list[int | None]]]:
    for row in rows:
        for run in row.runs:
            if run.id in curves and curves[run.id].steps:
                yield run.id, _line(run, curves[run.id])


def _line(run: Run, curve: Curve) -> list[int | None]:
    """x, y, x, y, ...: the last epoch that was asked for is x = 1,000; y is None where nothing was measured."""
    whole = curve.steps[0] * run.config.training.max_epochs  # each epoch is validated, the first one too
    points = list(zip(curve.steps, curve.mean, strict=True))
    stride = -(-len(points) // MOST_POINTS)
    kept = points[::-stride][::-1]  # from the end, so that the newest is among them
    flat: list[int | None] = []
    for step, value in kept:
        flat += [min(UNITS, round(UNITS * step / whole)), None if value is None else round(UNITS * value)]
    return flat


def _known_trials(rows: Sequence[TrialRow], claimed: Any) -> tuple[int, ...]:
    """What a browser sends is a claim."""
    wanted = {number for number in claimed if type(number) is int} if isinstance(claimed, list) else set()
    return tuple(row.number for row in sorted(rows, key=lambda row: row.number) if row.number in wanted)


def _status(run: Run) -> str:
    return "pruned" if run.is_pruned else run.status.value


def _count(row: TrialRow) -> str:
    """What the test accuracy is a mean of: "3 seeds × 200 clips"."""
    if not row.test:
        return ""
    seeds = f"{len(row.test)} {'seed' if len(row.test) == 1 else 'seeds'}"
    return f"{seeds} × {row.clips:,} clips" if row.clips else seeds


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
