"""Fields that show what the session holds, and never undo what is typed meanwhile.

    st.text_input("Seeds", **kept.value("sweep.seeds", "0 1 2"))

Where the browser draws a field anew, for example on the way back to its page, it shows the field's default; so the
default is what the session holds. It does not touch a field that the browser shows already. A value written to
`st.session_state` does: when it arrives, it replaces what was typed since, and the next message brings it back here. So
nothing may be written in each run, but only where the field is to change: by a button, a draft, another field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

_WRITTEN = "values written to fields"  # in the session: {key: the value, which the browser may not show yet}


def value(key: str, first: Any) -> dict[str, Any]:
    """Arguments of a text field, a checkbox or a toggle. first: its value until the session holds one."""
    return {"key": key, "value": _held(key, first), "persist_state": "session"}


def index(key: str, first: Any, options: Sequence[Any]) -> dict[str, Any]:
    """Arguments of a select box, besides its options."""
    held = _held(key, first)
    return {"key": key, "index": options.index(held) if held in options else 0, "persist_state": "session"}


def default(key: str, first: Any) -> dict[str, Any]:
    """Arguments of a multiselect or a segmented control; its options contain what the session holds."""
    return {"key": key, "default": _held(key, first), "persist_state": "session"}


def change(key: str, value: Any) -> None:
    """Let a field hold a value; nothing is written where it does. Call this before the field is drawn."""
    if st.session_state.get(key, value) != value:
        st.session_state[key] = value


def _held(key: str, first: Any) -> Any:
    held = st.session_state.get(key, first)
    written = st.session_state.setdefault(_WRITTEN, {})
    context = get_script_run_ctx()
    if context and context.session_state.is_new_state_value(key):
        written[key] = held
    elif written.pop(key, held) != held:  # typed before the browser knew what was written, which now stands there
        st.session_state[key] = written[key] = held
    return held
