"""Rename, note, archive and delete one sweep, on its page."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from sousa_engine.core.errors import SousaError
from sousa_engine.core.records import LONGEST_NOTE, RunFilter, Sweep
from sousa_engine.core.sweep_spec import MOST_LETTERS
from sousa_engine.store import Store, trash
from sousa_engine.web import parts
from sousa_engine.workspace import default_workspace

_ASKED, _DELETED = "sweep.delete.asked", "sweep.deleted"


def marks(found: Sweep) -> None:
    """The buttons Edit, Archive and Delete, and the dialog of the last one."""
    with st.popover("Edit", icon=":material/edit:", help="Name and note"):
        name, note = f"sweep.name.{found.id}", f"sweep.note.{found.id}"
        st.session_state.setdefault(name, found.spec.get("name") or "")
        st.session_state.setdefault(note, found.note)
        st.text_input("Name", key=name, max_chars=MOST_LETTERS, placeholder="automatic: the axes")
        st.text_area("Note", key=note, max_chars=LONGEST_NOTE)
        st.button("Save", key="sweep.edit.save", type="primary", on_click=save, args=(found.id, name, note))
    if found.archived_at_ms is not None:
        st.button(
            "Unarchive", icon=":material/unarchive:", key="sweep.unarchive", on_click=do,
            args=(lambda store: store.sweeps.unarchive([found.id]), "Sweep and runs are in the lists again."),
        )  # fmt: skip
    elif found.status.is_over:
        st.button(
            "Archive", icon=":material/archive:", key="sweep.archive", on_click=do,
            args=(lambda store: store.sweeps.archive([found.id]), "Archived: hidden from the lists, not deleted."),
            help="Hides the sweep and its runs from the lists.",
        )  # fmt: skip
    if found.status.is_over:
        st.button("Delete", icon=":material/delete:", key="sweep.delete", on_click=ask, args=(found.id,))
    if st.session_state.get(_ASKED) == found.id:
        confirm(found)


def say_deleted() -> None:
    """Report a deletion on the page that follows it."""
    if said := st.session_state.pop(_DELETED, None):
        st.toast(parts.plain(said), icon=":material/delete:")


def ask(sweep_id: str) -> None:
    st.session_state[_ASKED] = sweep_id


def close() -> None:
    st.session_state.pop(_ASKED, None)


def save(sweep_id: str, name: str, note: str) -> None:
    """name, note: session keys of the fields."""

    def work(store: Store) -> None:
        store.sweeps.rename(sweep_id, st.session_state[name])
        store.sweeps.set_note(sweep_id, st.session_state[note])

    do(work, "Saved.")


def do(work: Callable[[Store], object], said: str) -> bool:
    """Do it and say so, unless `said` is empty; or say why it was refused. Returns whether it was done."""
    try:
        with parts.open_store() as store:
            work(store)
    except SousaError as error:
        st.toast(parts.plain(str(error)), icon=":material/error:")
        return False
    if said:
        st.toast(said, icon=":material/info:")
    return True


@st.dialog("Delete permanently", icon=":material/delete:", on_dismiss=close)
def confirm(found: Sweep) -> None:
    with parts.open_store() as store:
        runs = [row.id for row in store.runs.listing(RunFilter(sweep_id=found.id, archived=None)).rows]
    size = trash.size_bytes(default_workspace(), runs)
    count = f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'}"
    st.markdown(
        f"**{parts.plain(found.name)}** and its {count} ({size / 1e6:,.1f} MB), with metrics, predictions, checkpoints "
        "and adapters, will be deleted permanently. Archive instead if you may need them again."
    )
    word = f"delete {len(runs)}"
    typed = st.text_input(f"Type `{word}` to confirm", key="sweep.delete.word", live=True, autocomplete="off")
    with st.container(horizontal=True):
        sure = parts.danger_button(
            "Delete", icon=":material/delete:", disabled=typed.strip() != word, key="sweep.delete.now"
        )
        if st.button("Cancel", key="sweep.delete.cancel"):
            close()
            st.rerun()
    if sure and do(lambda store: store.sweeps.delete([found.id]), ""):
        close()
        st.session_state[_DELETED] = f"{found.name} and {count} deleted."
        st.query_params.clear()
        st.rerun()
