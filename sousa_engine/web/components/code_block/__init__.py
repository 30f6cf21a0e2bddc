"""Text in a fixed-width face with a button that copies it: logs, commands, configs.

In place of st.code where a curve is to be painted at once: loading the highlighter that st.code brings, for whatever
language, keeps the browser from painting for 0.6 s (measured on 2 cores).
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

FOLDER = Path(__file__).resolve().parent

_component = st.components.v2.component(
    "sousa_code_block",
    html=(FOLDER / "block.html").read_text(),
    css=(FOLDER / "block.css").read_text(),
    js=(FOLDER / "block.js").read_text(),
)


def code_block(text: str, *, key: str) -> None:
    """Show `text` as it is, long lines wrapped."""
    _component(key=key, data={"text": text})
