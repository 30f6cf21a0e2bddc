"""Download published weights: resumable, checked, complete or absent. Never imports torch."""

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

PATIENCE_S = 3.0  # a server that takes longer to answer counts as unreachable
STALL_S = 30.0  # how long a server may pause in the middle of a file
TRIES = 3  # in a row that receive nothing
PAUSE_S = 1.0  # between two tries
_ANSWER_HOLDS_S = 60.0
_BLOCK = 1 << 18
answers: dict[str, tuple[float, str]] = {}  # server or file -> when it was asked, why it cannot be reached

Progress = Callable[[int, int | None], None]  # bytes received, total bytes if known


def fetch(download: Download, folder: Path, progress: Progress | None = None) -> Path:
    """Download the file into `folder` and return its path there. One process at a time (intake.taking_in).

    Continues an earlier download if the server still has the same file. Reconnects after a broken connection, until
    TRIES attempts in a row receive nothing; the part received so far is kept for the next call. Raises WeightsError,
    with the options, if there is no direct link, no answer within PATIENCE_S, a full disk, or a file with another size
    or checksum than published. `progress(done, total)` is called at every block; an exception from it ends the
    download, which can be resumed.
    """
    by_hand = f"download {download.file} from {download.page} and import it: python -m sousa_engine weights import FILE"
    if download.url is None:
        raise WeightsError(f"{download.file} has no direct link; {by_hand}.")
    final, part = folder / download.file, _part(download, folder)
    if final.exists():  # an earlier process died after its last byte and before using the file
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
    """Bytes of an interrupted download that are kept in `folder` for the next attempt."""
    return _size(_part(download, folder))


def unreachable(url: str, *, fresh: bool = False) -> str:
    """Why this file cannot be reached now, as the beginning of a sentence; "" if it can.

    One small request, at most PATIENCE_S; the answer is remembered for a minute unless `fresh`, and silence counts for
    all files of a server. The request runs in a separate thread, because a name lookup can outlast any timeout.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set, so the network is not used"
    place = _place(url)
    for known in (host(url), place):
        asked_s, reason = answers.get(known, (-_ANSWER_HOLDS_S, ""))
        if not fresh and time.monotonic() - asked_s < _ANSWER_HOLDS_S:
            return reason
    found: list[tuple[bool, str]] = []
    asking = threading.Thread(target=lambda: found.append(ask(place)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    answered, reason = found[0] if found else (False, f"no answer in {PATIENCE_S:g} s")
    if not answered:
        reason = f"{host(url)} cannot be reached ({reason}); this machine may be offline"
    answers.pop(host(url), None)
    answers[place if answered else host(url)] = time.monotonic(), reason
    return reason


def host(url: str) -> str:
    """The server that `url` would be requested from: the mirror, if HF_ENDPOINT names one."""
    return _place(url).split("/")[2]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ask(place: str) -> tuple[bool, str]:
    """(whether the server answers, why it would not send the file)."""
    try:
        with urllib.request.urlopen(_request(place, method="HEAD"), timeout=PATIENCE_S):
            return True, ""
    except urllib.error.HTTPError as error:
        error.close()
        asking_is_refused = error.code in (403, 405, 501)  # HEAD is; that says nothing about the file
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
    """The Hugging Face hub may be a mirror, which HF_ENDPOINT names, as in the hub's own client."""
    mirror = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return re.sub(r"^https://huggingface\.co(?=/)", lambda _: mirror, url)


def _part(download: Download, folder: Path) -> Path:
    return folder / f".{download.file}.part"


def _tag(part: Path) -> Path:
    """The file next to a part that keeps the server's tag of this version of the file, for If-Range."""
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
            if error.code == 416:  # nothing follows the part: it is complete, or belongs to another file
                told = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if _size(part) == (int(told[1]) if told else download.size_bytes):
                    return
                part.unlink()
            elif error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WeightsError(
                    f"The disk of {part.parent} is full. Free some space and download again: it will be resumed."
                ) from None
            trouble = _in_words(error)
        if _size(part) > most:  # some bytes arrived
            tries, most = 0, _size(part)
    here = _size(part)
    kept = f" {here:,} bytes are kept; the next attempt resumes from there." if here else ""
    raise WeightsError(f"{download.file} could not be downloaded ({trouble}).{kept}")


def _continue(download: Download, part: Path, progress: Progress) -> None:
    """Request the missing part; a server that has another file now, or does not support ranges, sends everything."""
    assert download.url is not None
    here, tag = _size(part), _tag(part)
    request = _request(_place(download.url))
    if here and (tag.exists() or download.sha256):  # without either, parts of two files could be joined unnoticed
        request.add_header("Range", f"bytes={here}-")
        if tag.exists():
            request.add_header("If-Range", tag.read_text())
    with urllib.request.urlopen(request, timeout=STALL_S) as answer:
        if answer.status != 206:
            here = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            part.unlink()
            raise ConnectionError("the server sent a different range than requested")
        length = answer.headers.get("Content-Length")
        total = here + int(length) if length else download.size_bytes
        _check_total(download, part.parent, here, total)
        if not here:
            part.unlink(missing_ok=True)
            _keep_tag(tag, answer.headers)
        progress(here, total)
        with part.open("ab") as file:
            # read1 returns what has arrived, so it is written at once and a broken connection loses none of it.
            while (total is None or here < total) and (block := answer.read1(_BLOCK)):
                file.write(block)
                here += len(block)
                progress(here, total)
            file.flush()
            os.fsync(file.fileno())
        if total and here < total:
            raise ConnectionError(f"the connection ended after {here:,} of {total:,} bytes")


def _check_total(download: Download, folder: Path, here: int, total: int | None) -> None:
    """Refuse a file that is not the published one, or that does not fit on the disk, before downloading it."""
    if total and download.size_bytes and total != download.size_bytes:
        raise WeightsError(
            f"{download.file} at {host(download.url or '')} has {total:,} bytes instead of the published "
            f"{download.size_bytes:,}: it is a different file now, and is not used."
        )
    if total and total - here > shutil.disk_usage(folder).free:
        raise WeightsError(
            f"{download.file} needs {(total - here) / 1e6:,.0f} MB in {folder}, which does not have enough space. "
            f"Free some space, or set SOUSA_WORKSPACE to a folder on another disk."
        )


def _keep_tag(tag: Path, headers: http.client.HTTPMessage) -> None:
    """Only a strong validator can prove that two responses are parts of one file."""
    found = headers.get("ETag") or ""
    if not found or found.startswith("W/"):
        found = headers.get("Last-Modified") or ""
    if found:
        tag.write_text(found)
    else:
        tag.unlink(missing_ok=True)


def _check(download: Download, part: Path) -> None:
    """Compare size and checksum with those published, if known; a wrong file is deleted."""
    size = _size(part)
    wrong = ""
    if download.size_bytes and size != download.size_bytes:
        wrong = f"has {size:,} bytes instead of {download.size_bytes:,}"
    elif download.sha256 and (found := sha256(part)) != download.sha256:
        wrong = f"has sha256 {found[:12]}... instead of {download.sha256[:12]}..."
    if wrong:
        part.unlink()
        _tag(part).unlink(missing_ok=True)
        raise WeightsError(f"{download.file} from {host(download.url or '')} {wrong}. It is not used.")
