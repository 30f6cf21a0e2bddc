"""What the pages Runs, Run and Queue do to runs: stop, resume, move, clone, archive, tag, delete; dialogs ask.

A button asks with `ask`; the page draws what was asked for with `dialogs`, outside of what refreshes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from sousa_engine.core.errors import SousaError
from sousa_engine.core.records import LONGEST_TAG, RunRow, RunStatus, checked_note, checked_tags
from sousa_engine.runs import ensure, orders
from sousa_engine.store import Store, trash
from sousa_engine.web import parts
from sousa_engine.workspace import default_workspace

_ASKED, _SAID, _NEWS = "manage asked", "manage said", "manage news"
_NAMED = 200  # runs that the dialog of a deletion names


@dataclass(frozen=True, kw_only=True)
class _Asked:
    what: Literal["tag", "delete", "kill"]
    run_ids: tuple[str, ...]
    size_bytes: int = 0


# For callbacks of buttons


def stop(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        after = [store.request_stop(run_id) for run_id in run_ids]
        ensure.ensure(store.workspace)  # it may have left, or died: the stop needs somebody to see to it
        if len(after) > 1:
            return f"{len(after)} runs: those that train save a checkpoint first, the others left the queue."
        said = {
            RunStatus.STOPPING: "Stopping: a checkpoint is saved first, if it has trained a step.",
            RunStatus.STOPPED: "Taken out of the queue.",
        }
        return said.get(after[0].status, f"The run is over already: {after[0].status.value}.")

    _do(work, ":material/stop_circle:")


def resume(run_id: str) -> None:
    def work(store: Store) -> str:
        _, found = orders.resume(store.workspace, run_id)
        return f"Queued: it goes on from step {found.step:,}."

    _do(work, ":material/resume:")


def move(run_id: str, to: int) -> None:
    """To this place in the queue, from 1."""
    _do(lambda store: f"Now at place {store.move(run_id, to)} of the queue.", ":material/swap_vert:")


def move_by(run_id: str, places: int) -> None:
    """-1: one place forward, 1: one back."""
    _do(lambda store: f"Now at place {store.move_by(run_id, places)} of the queue.", ":material/swap_vert:")


def pause_queue() -> None:
    def work(store: Store) -> str:
        store.pause_queue()
        return "The queue is paused: what trains goes on, nothing new starts."

    _do(work, ":material/pause_circle:")


def resume_queue() -> None:
    def work(store: Store) -> str:
        store.resume_queue()
        ensure.ensure(store.workspace)
        return "The queue goes on."

    _do(work, ":material/play_circle:")


def set_cpu_slots(slots: int) -> None:
    def work(store: Store) -> str:
        store.set_cpu_slots(slots)
        ensure.ensure(store.workspace)
        return f"{slots} run{'s' if slots > 1 else ''} may share the CPU."

    _do(work, ":material/memory:")


def clone(run_ids: Sequence[str], form_token: str) -> tuple[str, ...]:
    """Queue runs with the settings of these. Returns their ids; none, and a toast says why, if one could only fail."""
    made: list[str] = []

    def work(store: Store) -> str:
        runs = [store.find(run_id) for run_id in run_ids]
        made.extend(run.id for run in orders.clone(store.workspace, runs, created_by="page", form_token=form_token))
        return f"{count(made)} queued."

    _do(work, ":material/replay:")
    return tuple(made)


def archive(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        store.archive(run_ids)
        return f"{count(run_ids)} archived: out of the list, and kept."

    _do(work, ":material/archive:")


def unarchive(run_ids: Sequence[str]) -> None:
    def work(store: Store) -> str:
        store.unarchive(run_ids)
        return f"{count(run_ids)} back in the list."

    _do(work, ":material/unarchive:")


def edit(run_id: str, name: str, tags: Collection[str], note: str) -> None:
    """Title, tags and note of one run at once: all of them are checked before any is written."""

    def work(store: Store) -> str:
        checked_tags(tags)
        checked_note(note)
        title = store.rename(run_id, name).title
        store.set_tags(run_id, tags)
        store.set_note(run_id, note)
        return f"Saved: {title}."

    _do(work, ":material/edit:")


def ask(what: Literal["tag", "delete", "kill"], run_ids: Sequence[str]) -> None:
    """Open a dialog about these runs, and no other."""
    size = trash.size_bytes(default_workspace(), run_ids) if what == "delete" else 0
    st.session_state[_ASKED] = _Asked(what=what, run_ids=tuple(run_ids), size_bytes=size)
    st.session_state[_NEWS] = True


# For the page


def has_news() -> bool:
    """Whether something was asked for or done that the page has yet to draw: a fragment then reruns the page."""
    return _NEWS in st.session_state


def dialogs(after_deletion: Callable[[Sequence[str]], None]) -> None:
    """Draw the dialog that was asked for, if any, and say what was done. after_deletion: told the ids that went."""
    st.session_state.pop(_NEWS, None)
    if said := st.session_state.pop(_SAID, None):
        st.toast(parts.plain(said[0]), icon=said[1])
    asked: _Asked | None = st.session_state.get(_ASKED)
    if asked is None:
        return
    with parts.open_store() as store:
        rows = store.rows(asked.run_ids)
        known = list(store.tags())
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
        placeholder="Choose a tag, or write a new one",
        help=f"One line of up to {LONGEST_TAG} characters.",
    )
    worn = list(dict.fromkeys(tag for row in rows for tag in row.tags))
    less = st.pills("Take off", worn, key="tags_removed", selection_mode="multi") if worn else []
    if st.button("Save", type="primary", disabled=not more and not less, key="tags_save"):
        run_ids = [row.id for row in rows]

        def work(store: Store) -> str:
            store.add_tags(run_ids, more)
            store.remove_tags(run_ids, less)
            return f"{count(rows)} tagged."

        if _do(work, ":material/sell:"):
            _close()
            st.rerun()


@st.dialog("Stop now", icon=":material/dangerous:", on_dismiss=_close)
def _kill(rows: Sequence[RunRow]) -> None:
    st.markdown(
        f"**{parts.plain(rows[0].title) if len(rows) == 1 else count(rows)}** "
        f"{'is' if len(rows) == 1 else 'are'} killed at once. What was learnt since the last checkpoint goes; "
        "metrics stay. *Stop and save* loses nothing, and takes a minute at most."
    )
    if st.button("Stop now", type="primary", icon=":material/dangerous:", key="kill_now"):

        def work(store: Store) -> str:
            for row in rows:
                store.request_stop(row.id, at_once=True)
            ensure.ensure(store.workspace)
            return f"{count(rows)}: stopped at once."

        if _do(work, ":material/dangerous:"):
            _close()
            st.rerun()


@st.dialog("Delete for good", icon=":material/delete:", on_dismiss=_close)
def _delete(rows: Sequence[RunRow], size_bytes: int, after_deletion: Callable[[Sequence[str]], None]) -> None:
    st.markdown(
        f"**{count(rows)}**, {_megabytes(size_bytes)}: metrics, predictions, checkpoints and adapter "
        f"{'goes' if len(rows) == 1 else 'go'} and cannot be had back. Archive what you may want again."
    )
    with st.container(height=220 if len(rows) > 6 else "content", border=len(rows) > 6):
        st.markdown("\n".join(f"- {parts.plain(row.title)} · {row.status.value} · `{row.id}`" for row in rows[:_NAMED]))
        if len(rows) > _NAMED:
            st.markdown(f"and {len(rows) - _NAMED:,} more.")
    sure = True
    if len(rows) > 1:
        word = f"delete {len(rows)}"
        typed = st.text_input(f"Type `{word}` to go on", key="delete_word", live=True, autocomplete="off")
        sure = typed.strip() == word
    if st.button("Delete", type="primary", icon=":material/delete:", disabled=not sure, key="delete_now"):
        run_ids = [row.id for row in rows]

        def work(store: Store) -> str:
            store.delete(run_ids)
            return f"{count(rows)} deleted."

        if _do(work, ":material/delete:"):
            _close()
            after_deletion(run_ids)
            st.rerun()


def _do(work: Callable[[Store], str], icon: str) -> bool:
    """Do it and have the page say so; an error is said at once, where the visitor looks."""
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
