"""Text from outside (logs, names, reasons, what a library said) on its way to a terminal.

A terminal obeys escape sequences in the text that it shows: they can rename its window, overwrite lines, or write to
the clipboard. Web pages have their own cleaner, for Markdown: web/parts.py.
"""

from __future__ import annotations

import re

# CSI (colours, cursor), OSC (titles, links; ended by BEL or ST), DCS and its like, and two-character escapes.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)?|\x1b[ -/]*[0-~]"
)
# All control characters but tab and line feed, characters that are invisible or change the text's direction, and
# halves of characters, which no stream can encode.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def without_sequences(text: str) -> str:
    """The text without escape sequences of terminals."""
    return _SEQUENCES.sub("", text)


def without_control(text: str) -> str:
    """The text without control characters, other than tab and line feed, and without invisible ones."""
    return _CONTROL.sub("", text)


def for_terminal(text: str, *, keep: str = "") -> str:
    """The text without escape sequences; other control characters and invisible ones are shown as escapes.

    keep: control characters that may pass.
    """
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(),
        without_sequences(text),
    )
