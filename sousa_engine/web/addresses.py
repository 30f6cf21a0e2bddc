"""Tell an address that a visitor asked for from one that this session wrote: a page takes over only the first kind.

A message that the browser sent before it knew the newest address carries an older one. A page that followed it would
undo the newest choice.
"""

from __future__ import annotations

from collections.abc import Hashable

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

_KEPT = 100  # written addresses; a message is late by a few
_PAGE, _KNOWN = "page of the addresses", "known addresses"


def enter(page: str) -> bool:
    """Whether `page` has just been opened; then every address is asked for. Call this once per run, for every page."""
    if st.session_state.get(_PAGE) == page:
        return False
    st.session_state[_PAGE], st.session_state[_KNOWN] = page, ()
    return True


def is_asked(address: Hashable) -> bool:
    """Whether the visitor asks this page for the address: by a link, by Back or Forward, or by a reload."""
    context = get_script_run_ctx()
    return bool(context and context.is_history_navigation) or address not in st.session_state.get(_KNOWN, ())


def note(address: Hashable) -> None:
    """Remember an address that this page wrote or has taken over."""
    known = st.session_state.get(_KNOWN, ())
    if address not in known[-1:]:
        st.session_state[_KNOWN] = (*known, address)[-_KEPT:]
