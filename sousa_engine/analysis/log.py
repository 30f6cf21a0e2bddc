"""The last lines of a run's log as plain text, without progress bars and control sequences."""

from __future__ import annotations

from pathlib import Path

from sousa_engine.core import outside
from sousa_engine.workspace import run_files


def tail(path: Path, lines: int = 200, max_bytes: int = 256 * 1024) -> tuple[str, ...]:
    """At most `lines` lines from the last `max_bytes` of a file; none if the file does not exist."""
    try:
        with run_files.open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            block = file.read(max_bytes)
    except (FileNotFoundError, run_files.Irregular):
        return ()
    found = [clean(line) for line in block.decode("utf-8", "replace").split("\n")]
    if size > max_bytes:
        found = found[1:]  # it is incomplete
    if found and not found[-1]:
        found.pop()
    return tuple(found[-lines:])


def clean(line: str) -> str:
    """One line as a terminal would show it: the text after the last carriage return, without control characters."""
    shown = [part for part in outside.without_sequences(line).split("\r") if part.strip()]
    return outside.without_control(shown[-1]).rstrip() if shown else ""
