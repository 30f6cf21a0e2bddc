"""The end of a run's log as text to show: read from its end, progress bars and control sequences taken out."""

from __future__ import annotations

import re
from pathlib import Path

# CSI (colours, cursor), OSC (titles, links; ended by BEL or ST), DCS and its like, and two-character escapes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[@-_])")
# All but the tab; and characters that turn the direction of what follows, or that nobody sees.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def tail(path: Path, lines: int = 200, max_bytes: int = 256 * 1024) -> tuple[str, ...]:
    """The last lines, at most `lines`, found within the last `max_bytes`; none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            block = file.read(max_bytes)
    except FileNotFoundError:
        return ()
    found = [clean(line) for line in block.decode("utf-8", "replace").split("\n")]
    if size > max_bytes:
        found = found[1:]  # its beginning was cut off
    if found and not found[-1]:
        found.pop()
    return tuple(found[-lines:])


def clean(line: str) -> str:
    """One line as a terminal would leave it: what follows the last carriage return, without control characters."""
    shown = [part for part in _ESCAPES.sub("", line).split("\r") if part.strip()]
    return _CONTROL.sub("", shown[-1]).rstrip() if shown else ""
