"""Forms in the address: what is packed comes back, and nothing else gets into a form."""

import base64
import zlib

import pytest

from sousa_engine.core.errors import ConfigError
from sousa_engine.web import drafts


def token(written: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(written)).decode().rstrip("=")


def test_what_is_packed_comes_back_and_the_same_values_give_the_same_word():
    values = {"name": "Ünïcode · \ud800 \n", "r": 8, "rate": 1e-300, "rows": [1, None, True], "deep": {"a": "b"}}
    assert drafts.unpack(drafts.pack(values)) == values
    assert drafts.pack(values) == drafts.pack(dict(reversed(values.items())))
    assert drafts.pack({}) == ""


@pytest.mark.parametrize(
    "bad",
    ["", "x", "!!", "draft", "é", "a" * 9000, token(b""), token(b"[1]"), token(b"{"), token(b"null"), token(b"\xff"),
     token(b'{"a":1}')[:-4], token(b"[" * 100_000), token(b"0" * 10_000_000), token(b'{"a":' + b"9" * 5000 + b"}")],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(bad):
    with pytest.raises(ConfigError, match="The form in this link cannot be read"):
        drafts.unpack(bad)


@pytest.mark.parametrize(
    ("value", "like", "options"),
    [("a\ud800", "", None), ("a\0", "", None), ("a" * 9999, "", None), (None, "", None), (1, "", None),
     (True, 8, None), ("8", 8, None), (8.0, 8, None), (2**53, 8, None), (float("inf"), 1.0, None), (True, 1.0, None),
     (10**400, 1.0, None), (1, True, None), ("c", "a", ("a", "b")), (["a"], "a", ("a", "b")), ({}, "a", ("a", "b"))],
)  # fmt: skip
def test_a_widget_gets_no_value_that_it_cannot_hold(value, like, options):
    assert not drafts.fits(value, like, options)


def test_a_widget_gets_what_it_can_hold():
    assert drafts.fits("7e-4", "0.002") and drafts.fits("{", "") and drafts.fits("b", "a", ("a", "b"))
    assert drafts.fits(3, 8) and drafts.fits(3, 1.0) and drafts.fits(0.5, 1.0) and drafts.fits(False, True)
