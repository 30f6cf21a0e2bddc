"""Titles of the browser's tabs: the most telling part first, because tabs are narrow. Knows no Streamlit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sousa_engine.core.records import Run, RunRow, RunStatus

MOST_NAMED = 3  # runs of a comparison


def of_page(title: str) -> str:
    return f"{title} · SOUSA"


def of_run(run: Run) -> str:
    """`42 % · my run · k7vd · SOUSA`. Two runs can share a title, so the end of the id follows, as in pickers."""
    return of_page(f"{_state(run)}{run.title} · {run.id[-4:]}")


def of_comparison(runs: Sequence[Run]) -> str:
    """`Compare my run, another and 2 more · SOUSA`."""
    named = [run.title for run in runs[:MOST_NAMED]]
    more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    return of_page(f"Compare {', '.join(named)}{more}" if named else "Compare")


def progress_share(run: Run | RunRow) -> float | None:
    """The share of training steps done, 0 to 1; None before the first one."""
    if run.status is RunStatus.FINISHED:
        return 1.0
    progress = run.progress
    if progress is None or progress.phase == "preparing" or not progress.total:
        return None
    return 1.0 if progress.phase == "testing" else min(1.0, progress.done / progress.total)


def _state(run: Run) -> str:
    if run.status is RunStatus.FINISHED:
        return ""
    share = progress_share(run) if run.status is RunStatus.RUNNING else None
    return f"{run.status.value} · " if share is None else f"{math.floor(100 * share)} % · "
