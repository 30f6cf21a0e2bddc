"""The browser's history of a tab, so that Back leads to the page that was left, with its query. Draws nothing."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_component = st.components.v2.component(
    "sousa_browser_tab", js=(Path(__file__).resolve().parent / "tab.js").read_text()
)


def browser_tab() -> None:
    """Call this once on every page, before anything that can change the address."""
    _component(key="browser_tab")
