"""Forms kept in the address: ?draft=... holds what differs from the defaults, so that a reload, Back and a copied link
bring it back.

An address comes from outside. The page checks each value with `fits`, and leaves out with a sentence what does not fit.

After the packed form stands the visit that wrote it: ?draft=FORM.VISIT. A visitor may leave a form before the address
holds the newest value. Back to that visit brings back what the form held, and not what the address says.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import streamlit as st

from sousa_engine.core.errors import ConfigError
from sousa_engine.web import addresses, parts

PARAM = "draft"
LONGEST = 6000  # letters of a token: servers and proxies take addresses of about 8,000
_LARGEST = 200_000  # bytes that a token may unpack to
_LONGEST_TEXT = 4000
_SAFE_INTEGER = 2**53 - 1  # what a number field of the browser can hold
_MOST_VISITS = 100
_VISITS = "visits to forms"  # in the session: {visit: its newest token}
_CURRENT = "current visits to forms"  # in the session: {page: the visit whose values its form holds}


def pack(values: Mapping[str, Any]) -> str:
    """Values as one word for an address; empty if there are none. The same values give the same word."""
    if not values:
        return ""
    written = json.dumps(values, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(zlib.compress(written.encode(), 9)).decode().rstrip("=")


def unpack(token: str) -> dict[str, Any]:
    """The values that `pack` packed; a visit after them is ignored. Raises ConfigError for any other text."""
    token = token.partition(".")[0]
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        unpacking = zlib.decompressobj()
        written = unpacking.decompress(packed, _LARGEST)
        if not unpacking.eof:
            raise ValueError("cut or too large")
        values = json.loads(written)
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, binascii.Error, zlib.error, RecursionError):
        raise ConfigError("The form in this link cannot be read; the link may be incomplete. Copy it again.") from None
    return values


def fits(value: Any, like: Any, options: Collection[Any] | None = None) -> bool:
    """Whether a widget that holds `like` by default can hold `value`. options: the only possible values."""
    if options is not None:
        return isinstance(value, str) and value in options
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, int):
        return type(value) is int and abs(value) <= _SAFE_INTEGER
    if isinstance(like, float):
        return type(value) in (int, float) and abs(value) <= _SAFE_INTEGER  # so neither NaN nor infinite
    return is_text(value)


def is_text(value: Any) -> bool:
    """Whether a text field can hold the value."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_texts(value: Any, most: int = 200) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(is_text, value))


def left_out(label: str, value: Any) -> str:
    """The sentence about a value that does not fit."""
    written = str(value)
    return f"{label}: this link says {written if len(written) <= 60 else written[:59] + '…'!r}, which cannot be used."


def asked(page: str) -> tuple[dict[str, Any], str] | None:
    """(the form that the visitor's address asks for, an error); None if `page` shows that form or none is asked for."""
    address = st.query_params.get(PARAM, "")
    if not addresses.is_asked(address):
        return None
    addresses.note(address)
    token, _, visit = address.partition(".")
    visits, current = _remembered(_VISITS), _remembered(_CURRENT)
    if visit and visit == current.get(page):
        return None
    if visit in visits:
        current[page] = visit
        return (unpack(visits[visit]) if visits[visit] else {}), ""
    current[page] = secrets.token_urlsafe(3)
    if not token:
        return None
    try:
        return unpack(token), ""
    except ConfigError as error:
        return {}, str(error)


def keep(page: str, values: Mapping[str, Any]) -> None:
    """Let the address hold these values of the form of `page`, and nothing else."""
    token = pack(values)
    if len(token) > LONGEST:
        st.caption("This form is too long for an address: a reload will lose it.")
        token = ""
    visit = _remembered(_CURRENT).setdefault(page, secrets.token_urlsafe(3))
    visits = _remembered(_VISITS)
    visits[visit] = token
    while len(visits) > _MOST_VISITS:
        del visits[next(iter(visits))]
    address = f"{token}.{visit}" if token else ""
    # Sent each time: after a link from a page to itself, the browser still shows the query of before (Streamlit 1.67).
    st.query_params.from_dict({PARAM: address} if address else {})
    addresses.note(address)


def end_visit(page: str) -> None:
    """Say that the form of `page` was emptied because it was started: Back to its visit fills it again."""
    _remembered(_CURRENT).pop(page, None)


def _remembered(name: str) -> dict[str, str]:
    return st.session_state.setdefault(name, {})


def say(lines: Collection[str]) -> None:
    """Show what was left out of a form."""
    if lines:
        st.warning(parts.plain("\n\n".join(lines)), icon=":material/link_off:")
