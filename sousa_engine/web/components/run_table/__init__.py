"""The table of runs in the browser: one page of rows, ticks by run id, headings that sort on the server.

The browser owns the ticks, also those of hidden rows, and requests an order and a page. Python reads both with
`asked`, fetches the rows and draws them. A tick follows its run when rows are added or move.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sousa_engine.core.records import RunRow
from sousa_engine.store.listing import SORTS, UP_FIRST
from sousa_engine.web import parts, titles

HERE = Path(__file__).parent
PAGE_ROWS = 100
FIELDS = (
    "id", "title", "tags", "note", "status", "progress", "sparkline", "valid", "valid_n", "test", "test_n", "weights",
    "random", "seed", "created_ms", "took_s", "trainable", "targets", "backbone", "data", "device",
)  # fmt: skip

_component = st.components.v2.component(
    "sousa_run_table",
    html=(HERE / "table.html").read_text(),
    css=(HERE / "table.css").read_text(),
    js=(HERE / "table.js").read_text(),
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of the browser. ticked: run ids in the order of ticking; unverified, like all input from a browser."""

    sort: str = "created"
    descending: bool = True
    page: int = 0
    ticked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The state of a session. seed, seed_rev: the ticks last set by Python; older ticks from the browser are void.

    The seed is not the current ticks: the bytes sent to the browser stay the same from tick to tick.
    answers: the number of the browser's request that `asked` comes from, so that it knows which later ones are pending.
    """

    asked: Asked
    of: str = ""  # the list that this state belongs to
    seed: tuple[str, ...] = ()
    seed_rev: int = 0  # 0: never set, so the tab keeps its ticks from before a reload
    answers: int | None = None


def asked(of: str, *, key: str = "runs_table") -> Asked:
    """The rows to fetch and the ticks, before the table is drawn. of: names the list; a new list starts at its top."""
    memory: _Memory = st.session_state.get(_slot(key)) or _Memory(asked=Asked())
    if memory.of != of:
        memory = replace(memory, of=of, asked=replace(memory.asked, page=0))
    if key not in st.session_state and memory.asked.ticked:
        memory = _newer(memory, memory.asked.ticked)  # the browser drops the state of a component on leaving the page
    state = st.session_state.get(key) or {}
    match state.get("ticks"):
        case {"rev": int(rev), "ids": list(ids)} if rev >= memory.seed_rev:
            memory = replace(memory, asked=replace(memory.asked, ticked=_ids(ids)))
    match state.get("view"):
        case {
            "sort": str(sort),
            "descending": bool(descending),
            "page": int(page),
            "of": str(seen),
            "request": int(request),
        } if sort in SORTS:
            page = max(0, page) if seen == of else memory.asked.page
            look = replace(memory.asked, sort=sort, descending=descending, page=page)
            memory = replace(memory, asked=look, answers=request)
    st.session_state[_slot(key)] = memory
    return memory.asked


def tick(run_ids: Iterable[str], *, key: str = "runs_table") -> None:
    """Tick exactly these runs, from Python. Call this before the table is drawn."""
    memory: _Memory = st.session_state.get(_slot(key)) or _Memory(asked=Asked())
    st.session_state[_slot(key)] = _newer(memory, tuple(run_ids))


def run_table(
    rows: Sequence[RunRow],
    sparklines: Mapping[str, Collection[float | None]],
    *,
    of: str,
    total: int,
    first: int,
    key: str = "runs_table",
) -> str | None:
    """Draw the rows that `asked` requested, from `first` of `total`. Returns the id of the run to open, if any.

    sparklines: run id -> accuracies in [0, 1]; None is drawn as a gap.
    """
    memory: _Memory = st.session_state[_slot(key)]
    result = _component(
        key=key,
        data={
            "fields": FIELDS,
            "rows": [_values(row, sparklines.get(row.id, ())) for row in rows],
            "sortable": {"created_ms": "created", "took_s": "took"} | {name: name for name in SORTS if name in FIELDS},
            "up_first": UP_FIRST,
            "sort": memory.asked.sort,
            "descending": memory.asked.descending,
            "of": of,
            "answers": memory.answers,
            "total": total,
            "first": first,
            "page_rows": PAGE_ROWS,
            "seed": memory.seed,
            "seed_rev": memory.seed_rev,
        },
        on_ticks_change=lambda: None,
        on_view_change=lambda: None,
        on_open_change=lambda: None,
    )
    return result.open if isinstance(result.open, str) else None


def _slot(key: str) -> str:
    return f"{key} memory"


def _newer(memory: _Memory, ticked: tuple[str, ...]) -> _Memory:
    rev = max(int(time.time() * 1000), memory.seed_rev + 1)
    return replace(memory, asked=replace(memory.asked, ticked=ticked), seed=ticked, seed_rev=rev)


def _ids(claimed: list[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run_id for run_id in claimed if isinstance(run_id, str)))


def _values(row: RunRow, sparkline: Collection[float | None]) -> list[Any]:
    """In the order of FIELDS."""
    return [
        row.id,
        row.title,
        row.tags,
        row.note[:200],
        row.status.value,
        _short(titles.progress_share(row)),
        [_short(value) for value in sparkline],
        row.valid,
        row.valid_n,
        row.test,
        row.test_n,
        parts.weights_text(row),
        row.is_random,
        row.seed,
        row.created_at_ms,
        row.seconds,
        row.trainable,
        row.trains,
        row.backbone,
        row.dataset,
        row.device,
    ]


def _short(share: float | None) -> float | None:
    return None if share is None else round(share, 3)
