"""Text from outside cannot command a terminal."""

from __future__ import annotations

import pytest

from sousa_engine.core.outside import for_terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 鼓\n\ttwo lines", "plain, größer, 鼓\n\ttwo lines"),
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("a\x9b2Jb", "ab"),
        ("a\x1b]0;title\x07b\x1b]52;c;cm0gLXJm\x1b\\c", "abc"),
        ("a\x1bP1$q\x1b\\b\x1b(0c", "abc"),
        ("first\rsecond\x08", "first\\rsecond\\x08"),
        ("gnp\u202e.exe\u200b", "gnp\\u202e.exe\\u200b"),
        ("half \ud800", "half \\ud800"),
        ("end\x1b", "end\\x1b"),
    ],
)
def test_sequences_go_and_other_control_characters_are_shown(text, shown):
    assert for_terminal(text) == shown
    for_terminal(text).encode()


def test_a_progress_bar_may_return_to_the_start_of_its_line():
    assert for_terminal("\r 10 %\x1b[A", keep="\r") == "\r 10 %"
