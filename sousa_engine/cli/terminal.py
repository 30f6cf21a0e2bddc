"""The streams of a command: everything that it prints passes the cleaner, so no command can forget to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from sousa_engine.core import outside


class Clean:
    """A text stream without escape sequences. `raw` is the stream itself, for our own colours and progress bars."""

    def __init__(self, raw: TextIO, keep: str = ""):
        self.raw = raw
        self._keep = keep

    def write(self, text: str) -> int:
        return self.raw.write(outside.for_terminal(text, keep=self._keep))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextlib.contextmanager
def cleaned() -> Iterator[None]:
    """Clean what is printed inside the block. A progress bar returns to the start of its line: on stderr, it may."""
    output, errors = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = Clean(output), Clean(errors, keep="\r")  # type: ignore[assignment]
        yield
    finally:
        sys.stdout, sys.stderr = output, errors


def raw(stream: TextIO) -> TextIO:
    """The stream without its cleaner: for text that is our own, or was cleaned."""
    return getattr(stream, "raw", stream) if isinstance(stream, Clean) else stream
