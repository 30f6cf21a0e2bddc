"""Actions on runs for the pages Runs, Run and Queue: stop, resume, move, clone, archive, tag, delete.

A button requests a dialog with `ask`; the page draws it with `dialogs`, outside of the parts that refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from sousa_engine.core import inputs
from sousa_engine.core.errors import SousaError
from sousa_engine.core.records import LONGEST_TAG, MOST_CPU_SLOTS, RunRow, RunStatus, checked_note, checked_tags
from sousa_engine.runs import ensure, orders
from sousa_engine.store import Store, trash
from sousa_engine.web import parts
from sousa_engine.workspace import default_workspace

_ASKED, _SAID, _NEWS = "manage asked", "manage said", "manage news"
_NAMED = 200  # runs listed in the dialog for deletion


@dataclass(frozen=True, kw_only=True)
class _Asked:
    what: Literal["tag", "delete", "kill"]
    run_ids: tuple[str, ...]
    size_bytes: int = 0


# Callbacks for buttons


def stop(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        after = [store.runs.request_stop(run_id) for run_id in run_ids]
        ensure.ensure(store.workspace)  # it may have ended; the stop needs a supervisor
        if len(after) > 1:
            return f"Stopping {len(after)} runs. Running ones save a checkpoint first; queued ones left the queue."
        said = {
            RunStatus.STOPPING: "Stopping. The run saves a checkpoint first if it has trained a step.",
            RunStatus.STOPPED: "Removed from the queue.",
        }
        return said.get(after[0].status, f"The run has already ended: {after[0].status.value}.")

    _do(work, ":material/stop_circle:")


def resume(run_id: str) -> None:
    def work(store: Store) -> str:
        _, found = orders.resume(store.workspace, run_id)
        return f"Queued. The run continues from step {found.step:,}."

    _do(work, ":material/resume:")


def move(run_id: str, to: int) -> None:
    """Move the run to this place in the queue, counted from 1."""
    _do(lambda store: f"Now at place {store.queue.move(run_id, to)} in the queue.", ":material/swap_vert:")


def move_by(run_id: str, places: int) -> None:
    """Move the run by this many places: -1 is one place up, 1 is one down."""
    _do(lambda store: f"Now at place {store.queue.move_by(run_id, places)} in the queue.", ":material/swap_vert:")


def pause_queue() -> None:
    def work(store: Store) -> str:
        store.queue.pause()
        return "Queue paused. Active runs continue; no new run starts."

    _do(work, ":material/pause_circle:")


def resume_queue() -> None:
    def work(store: Store) -> str:
        store.queue.resume()
        ensure.ensure(store.workspace)
        return "Queue resumed."

    _do(work, ":material/play_circle:")


def set_cpu_slots(typed: str) -> None:
    def work(store: Store) -> str:
        slots = inputs.number(typed, "CPU slots", whole=True, low=1, high=MOST_CPU_SLOTS)
        store.queue.set_cpu_slots(slots)
        ensure.ensure(store.workspace)
        return f"Up to {slots} run{'s' if slots > 1 else ''} at a time on the CPU."

    _do(work, ":material/memory:")


def clone(run_ids: Sequence[str], form_token: str) -> tuple[str, ...]:
    """Queue runs with the same settings. Returns their ids; if one is invalid, queues none and shows why in a toast."""
    made: list[str] = []

    def work(store: Store) -> str:
        runs = [store.runs.find(run_id) for run_id in run_ids]
        made.extend(run.id for run in orders.clone(store.workspace, runs, created_by="page", form_token=form_token))
        return f"{count(made)} queued."

    _do(work, ":material/replay:")
    return tuple(made)


def archive(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        store.marks.archive(run_ids)
        return f"{count(run_ids)} archived: hidden from the list, not deleted."

    _do(work, ":material/archive:")


def unarchive(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        store.marks.unarchive(run_ids)
        return f"{count(run_ids)} unarchived."

    _do(work, ":material/unarchive:")


def edit(run_id: str, name: str, tags: Collection[str], note: str) -> None:
    """Save title, tags and note of one run together: all are checked before any is written."""

    def work(store: Store) -> str:
        checked_tags(tags)
        checked_note(note)
        title = store.runs.rename(run_id, name).title
        store.marks.set_tags(run_id, tags)
        store.marks.set_note(run_id, note)
        return f"Saved: {title}."

    _do(work, ":material/edit:")


def ask(what: Literal["tag", "delete", "kill"], run_ids: Sequence[str]) -> None:
    """Open a dialog about exactly these runs."""
    size = trash.size_bytes(default_workspace(), run_ids) if what == "delete" else 0
    st.session_state[_ASKED] = _Asked(what=what, run_ids=tuple(run_ids), size_bytes=size)
    st.session_state[_NEWS] = True


# Functions for pages


def has_news() -> bool:
    """Whether a dialog or message is waiting to be drawn: a fragment then reruns the page."""
    return _NEWS in st.session_state


def dialogs(after_deletion: Callable[[Sequence[str]], None]) -> None:
    """Draw the requested dialog, if any, and report what was done. after_deletion: called with the deleted ids."""
    st.session_state.pop(_NEWS, None)
    if said := st.session_state.pop(_SAID, None):
        st.toast(parts.plain(said[0]), icon=said[1])
    asked: _Asked | None = st.session_state.get(_ASKED)
    if asked is None:
        return
    with parts.open_store() as store:
        rows = store.runs.rows(asked.run_ids)
        known = list(store.marks.tags())
    if not rows:
        _close()
    elif asked.what == "tag":
        _tag(rows, known)
    elif asked.what == "kill":
        _kill(rows)
    else:
        _delete(rows, asked.size_bytes, after_deletion)


def count(run_ids: Sequence[object]) -> str:
    return "1 run" if len(run_ids) == 1 else f"{len(run_ids):,} runs"


def _close() -> None:
    st.session_state.pop(_ASKED, None)


@st.dialog("Tag", icon=":material/sell:", on_dismiss=_close)
def _tag(rows: Sequence[RunRow], known: Sequence[str]) -> None:
    st.caption(parts.plain(rows[0].title) if len(rows) == 1 else count(rows))
    more = st.multiselect(
        "Add",
        known,
        key="tags_added",
        accept_new_options=True,
        placeholder="Choose a tag or enter a new one",
        help=f"One line, up to {LONGEST_TAG} characters.",
    )
    present = list(dict.fromkeys(tag for row in rows for tag in row.tags))
    less = st.pills("Remove", present, key="tags_removed", selection_mode="multi") if present else []
    if st.button("Save", type="primary", disabled=not more and not less, key="tags_save"):
        run_ids = [row.id for row in rows]

        def work(store: Store) -> str:
            store.marks.add_tags(run_ids, more)
            store.marks.remove_tags(run_ids, less)
            return f"{count(rows)} tagged."

        if _do(work, ":material/sell:"):
            _close()
            st.rerun()


@st.dialog("Stop now", icon=":material/dangerous:", on_dismiss=_close)
def _kill(rows: Sequence[RunRow]) -> None:
    st.markdown(
        f"**{parts.plain(rows[0].title) if len(rows) == 1 else count(rows)}** "
        "will be killed now. Progress since the last checkpoint is lost; metrics are kept. "
        "*Stop and save* loses nothing and takes at most a minute."
    )
    if _sure("Stop now", icon=":material/dangerous:", key="kill_now"):

        def work(store: Store) -> str:
            for row in rows:
                store.runs.request_stop(row.id, at_once=True)
            ensure.ensure(store.workspace)
            return f"{count(rows)} stopped."

        if _do(work, ":material/dangerous:"):
            _close()
            st.rerun()


@st.dialog("Delete permanently", icon=":material/delete:", on_dismiss=_close)
def _delete(rows: Sequence[RunRow], size_bytes: int, after_deletion: Callable[[Sequence[str]], None]) -> None:
    st.markdown(
        f"**{count(rows)}** ({_megabytes(size_bytes)}), with metrics, predictions, checkpoints and adapter"
        f"{'' if len(rows) == 1 else 's'}, will be deleted permanently. Archive instead if you may need "
        f"{'it' if len(rows) == 1 else 'them'} again."
    )
    with st.container(height=220 if len(rows) > 6 else "content", border=len(rows) > 6):
        st.markdown("\n".join(f"- {parts.plain(row.title)} · {row.status.value} · `{row.id}`" for row in rows[:_NAMED]))
        if len(rows) > _NAMED:
            st.markdown(f"and {len(rows) - _NAMED:,} more.")
    sure = True
    if len(rows) > 1:
        word = f"delete {len(rows)}"
        typed = st.text_input(f"Type `{word}` to confirm", key="delete_word", live=True, autocomplete="off")
        sure = typed.strip() == word
    if _sure("Delete", icon=":material/delete:", key="delete_now", disabled=not sure):
        run_ids = [row.id for row in rows]

        def work(store: Store) -> str:
            store.marks.delete(run_ids)
            return f"{count(rows)} deleted."

        if _do(work, ":material/delete:"):
            _close()
            after_deletion(run_ids)
            st.rerun()


def _sure(label: str, *, icon: str, key: str, disabled: bool = False) -> bool:
    """Draw the button of a dialog that cannot be undone, and Cancel. Returns whether the first was pressed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = parts.danger_button(label, icon=icon, key=key, disabled=disabled)
        if st.button("Cancel", key=f"{key}_not"):
            _close()
            st.rerun()
    return pressed


def _do(work: Callable[[Store], str], icon: str) -> bool:
    """Do it and let the page report it. An error is shown at once, in a toast."""
    try:
        with Store.open(default_workspace()) as store:
            said = work(store)
    except SousaError as error:
        st.toast(parts.plain(str(error)), icon=":material/error:")
        return False
    st.session_state[_SAID] = (said, icon)
    st.session_state[_NEWS] = True
    return True


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
