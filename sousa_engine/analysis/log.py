"""The last lines of a run's log as plain text, without progress bars and control sequences."""

from __future__ import annotations

import re
from pathlib import Path

# CSI (colours, cursor), OSC (titles, links; ended by BEL or ST), DCS and its like, and two-character escapes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[@-_])")
# All control characters but the tab, and characters that are invisible or change the text direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def tail(path: Path, lines: int = 200, max_bytes: int = 256 * 1024) -> tuple[str, ...]:
    """At most `lines` lines from the last `max_bytes` of a file; none if the file does not exist."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            block = file.read(max_bytes)
    except FileNotFoundError:
        return ()
    found = [clean(line) for line in block.decode("utf-8", "replace").split("\n")]
    if size > max_bytes:
        found = found[1:]  # it is incomplete
    if found and not found[-1]:
        found.pop()
    return tuple(found[-lines:])


def clean(line: str) -> str:
    """One line as a terminal would show it: the text after the last carriage return, without control characters."""
    shown = [part for part in _ESCAPES.sub("", line).split("\r") if part.strip()]
    return _CONTROL.sub("", shown[-1]).rstrip() if shown else ""
