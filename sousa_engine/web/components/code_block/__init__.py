"""Monospaced text with a copy button: logs, commands, configs.

Replaces st.code on pages where curves must appear at once: st.code loads a highlighter for any language, which keeps
the browser from painting for 0.6 s (measured on 2 cores).
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
    """Show `text` unchanged, with long lines wrapped."""
    _component(key=key, data={"text": text})
