"""Fetching published weights: resumed where it broke off, checked, whole or not there. Never imports torch."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sousa_engine.backbones.spec import Download
from sousa_engine.core.errors import WeightsError

PATIENCE_S = 3.0  # how long a server may take to answer before we call ourselves offline
STALL_S = 30.0  # how long it may send nothing in the middle of a file
TRIES = 3  # in a row that bring nothing
PAUSE_S = 1.0  # between two of them
_ANSWER_HOLDS_S = 60.0
_BLOCK = 1 << 18
answers: dict[str, tuple[float, str]] = {}  # of servers lately: when they were asked, and why they cannot be reached

Progress = Callable[[int, int | None], None]  # bytes here, bytes in all if known


def fetch(download: Download, folder: Path, progress: Progress | None = None) -> Path:
    """Download the file into `folder` and return its path there. One process at a time (intake.taking_in).

    What an earlier attempt left is continued, if the server still has the same file. A connection that breaks is taken
    up again until TRIES attempts in a row bring nothing; what came so far stays for the next call. Raises WeightsError,
    with the ways out, if there is no direct link, no answer within PATIENCE_S, a full disk, or a file of another size
    or checksum than published. `progress(done, total)` is called at every block; what it raises ends the download,
    resumably.
    """
    by_hand = f"take {download.file} from {download.page} and import it: python -m sousa_engine weights import FILE"
    if download.url is None:
        raise WeightsError(f"{download.file} has no direct link; {by_hand}.")
    final, part = folder / download.file, _part(download, folder)
    if final.exists():  # an earlier process died between its last byte and its use
        return final
    if reason := unreachable(download.url, fresh=True):
        raise WeightsError(f"{reason}. Nothing was downloaded. On another machine, {by_hand}.")
    folder.mkdir(parents=True, exist_ok=True)
    _fetch_part(download, part, progress or (lambda done, total: None))
    _check(download, part)
    part.replace(final)
    _tag(part).unlink(missing_ok=True)
    return final


def kept(download: Download, folder: Path) -> int:
    """Bytes of a broken download that wait in `folder` for the next attempt."""
    return _size(_part(download, folder))


def unreachable(url: str, *, fresh: bool = False) -> str:
    """Why this file cannot be reached now, as the beginning of a sentence; "" if it can.

    One small request, at most PATIENCE_S, remembered a minute unless `fresh`; a server that is silent is so for all of
    its files. The request runs in a thread of its own, because looking up a name can hang longer than any timeout.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set, so nothing is asked of the network"
    place = _place(url)
    for known in (host(url), place):
        asked_s, reason = answers.get(known, (-_ANSWER_HOLDS_S, ""))
        if not fresh and time.monotonic() - asked_s < _ANSWER_HOLDS_S:
            return reason
    found: list[tuple[bool, str]] = []
    asking = threading.Thread(target=lambda: found.append(_ask(place)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    answered, reason = found[0] if found else (False, f"in {PATIENCE_S:g} s")
    if not answered:
        reason = f"{host(url)} does not answer ({reason}): this machine seems to be offline"
    answers.pop(host(url), None)
    answers[place if answered else host(url)] = time.monotonic(), reason
    return reason


def host(url: str) -> str:
    """The server that would be asked for `url`: the mirror, where HF_ENDPOINT names one."""
    return _place(url).split("/")[2]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ask(place: str) -> tuple[bool, str]:
    """(does the server answer, why it would not send the file)."""
    try:
        with urllib.request.urlopen(_request(place, method="HEAD"), timeout=PATIENCE_S):
            return True, ""
    except urllib.error.HTTPError as error:
        error.close()
        asking_is_refused = error.code in (403, 405, 501)  # which says nothing about the file
        return True, "" if asking_is_refused else f"{host(place)} answered {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, _in_words(error)


def _in_words(error: Exception) -> str:
    """ "Name or service not known", not "<urlopen error [Errno -2] ...>"."""
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)


def _request(place: str, **options: str) -> urllib.request.Request:
    request = urllib.request.Request(place, **options)  # pyright: ignore[reportArgumentType]
    request.add_header("User-Agent", "sousa-engine")
    return request


def _place(url: str) -> str:
    """The Hugging Face hub may be a mirror: HF_ENDPOINT, as its own client reads it."""
    mirror = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return re.sub(r"^https://huggingface\.co(?=/)", lambda _: mirror, url)


def _part(download: Download, folder: Path) -> Path:
    return folder / f".{download.file}.part"


def _tag(part: Path) -> Path:
    """Beside a part: what the server calls this state of the file, for If-Range."""
    return part.with_suffix(".tag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_part(download: Download, part: Path, progress: Progress) -> None:
    trouble, tries, most = "", 0, _size(part)
    while tries < TRIES:
        if tries:
            time.sleep(PAUSE_S)
        tries += 1
        try:
            _continue(download, part, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            trouble = f"{host(download.url or '')} answered {error.code} {error.reason}"
            if error.code == 416:  # nothing follows what is here: it is whole, or of another file
                told = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if _size(part) == (int(told[1]) if told else download.size_bytes):
                    return
                part.unlink()
            elif error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WeightsError(
                    f"The disk of {part.parent} is full. Free some space and fetch again: it goes on where it was."
                ) from None
            trouble = _in_words(error)
        if _size(part) > most:  # it moves
            tries, most = 0, _size(part)
    here = _size(part)
    kept = f" {here:,} bytes are kept; the next attempt goes on from there." if here else ""
    raise WeightsError(f"{download.file} could not be downloaded ({trouble}).{kept}")


def _continue(download: Download, part: Path, progress: Progress) -> None:
    """Ask for what is missing; a server that has another file now, or knows no ranges, sends it all again."""
    assert download.url is not None
    here, tag = _size(part), _tag(part)
    request = _request(_place(download.url))
    if here and (tag.exists() or download.sha256):  # without either, two files could be joined unnoticed
        request.add_header("Range", f"bytes={here}-")
        if tag.exists():
            request.add_header("If-Range", tag.read_text())
    with urllib.request.urlopen(request, timeout=STALL_S) as answer:
        if answer.status != 206:
            here = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            part.unlink()
            raise ConnectionError("it sent another range than the one asked for")
        length = answer.headers.get("Content-Length")
        total = here + int(length) if length else download.size_bytes
        _check_total(download, part.parent, here, total)
        if not here:
            part.unlink(missing_ok=True)
            _keep_tag(tag, answer.headers)
        progress(here, total)
        with part.open("ab") as file:
            # read1: what has come is written at once, so that a break loses nothing of it.
            while (total is None or here < total) and (block := answer.read1(_BLOCK)):
                file.write(block)
                here += len(block)
                progress(here, total)
            file.flush()
            os.fsync(file.fileno())
        if total and here < total:
            raise ConnectionError(f"the connection ended after {here:,} of {total:,} bytes")


def _check_total(download: Download, folder: Path, here: int, total: int | None) -> None:
    """Refuse what cannot become the published file, or has no room, before a byte of it comes."""
    if total and download.size_bytes and total != download.size_bytes:
        raise WeightsError(
            f"{host(download.url or '')} has {total:,} bytes for {download.file}, published are "
            f"{download.size_bytes:,}: it is another file now. It is not used."
        )
    if total and total - here > shutil.disk_usage(folder).free:
        raise WeightsError(
            f"{download.file} needs {(total - here) / 1e6:,.0f} MB in {folder}, and there is less. "
            f"Free some space, or set SOUSA_WORKSPACE to a folder on another disk."
        )


def _keep_tag(tag: Path, headers: http.client.HTTPMessage) -> None:
    """Only a strong validator can prove that two answers are parts of one file."""
    found = headers.get("ETag") or ""
    if not found or found.startswith("W/"):
        found = headers.get("Last-Modified") or ""
    if found:
        tag.write_text(found)
    else:
        tag.unlink(missing_ok=True)


def _check(download: Download, part: Path) -> None:
    """Size and checksum as published, where they are known; what is wrong is not kept."""
    size = _size(part)
    wrong = ""
    if download.size_bytes and size != download.size_bytes:
        wrong = f"has {size:,} bytes, published are {download.size_bytes:,}"
    elif download.sha256 and (found := sha256(part)) != download.sha256:
        wrong = f"has sha256 {found[:12]}..., published is {download.sha256[:12]}..."
    if wrong:
        part.unlink()
        _tag(part).unlink(missing_ok=True)
        raise WeightsError(f"What {host(download.url or '')} sent for {download.file} {wrong}. It is not used.")
