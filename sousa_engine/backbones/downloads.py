"""Fetching published weights: resumed where it broke off, checked, whole or not there. Never imports torch."""

from __future__ import annotations

import errno
import fcntl
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
from sousa_engine.errors import WeightsError

PATIENCE_S = 3.0  # how long a server may take to answer before we call ourselves offline
STALL_S = 30.0  # how long it may send nothing in the middle of a file
TRIES = 3
_ANSWER_HOLDS_S = 60.0
_BLOCK = 1 << 18
_answers: dict[str, tuple[float, bool]] = {}

Progress = Callable[[int, int | None], None]  # bytes here, bytes in all if known


def fetch(download: Download, folder: Path, progress: Progress | None = None) -> Path:
    """Download the file into `folder` and return its path there.

    What an earlier attempt left is continued, if the server still has the same file. A connection that breaks is taken
    up again, TRIES times; what came so far stays for the next call. Raises WeightsError, with the ways out, if there is
    no direct link, no answer within PATIENCE_S, a full disk, or a file of another size or checksum than published.
    `progress(done, total)` is called at every block; what it raises ends the download, resumably.
    """
    if download.url is None:
        raise WeightsError(f"{download.file} has no direct link. Download it from {download.page} and import the file.")
    if not answers(download.url):
        raise WeightsError(
            f"{host(download.url)} does not answer: this machine seems to be offline. Nothing was downloaded. "
            f"On another machine, take {download.file} from {download.page}, and import the file here."
        )
    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / download.file, folder / f".{download.file}.part"
    with (folder / ".fetch.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the file
        if not final.exists():
            _fetch_part(download, part, progress or (lambda done, total: None))
            _check(download, part)
            part.replace(final)
            part.with_suffix(".tag").unlink(missing_ok=True)
    return final


def answers(url: str) -> bool:
    """Whether this file can be reached now: one small request, at most PATIENCE_S, remembered a minute.

    The request runs in a thread of its own, because looking up a name can hang longer than any timeout.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    asked_s, answer = _answers.get(url, (-_ANSWER_HOLDS_S, False))
    if time.monotonic() - asked_s < _ANSWER_HOLDS_S:
        return answer
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(_asks(url)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    _answers[url] = (time.monotonic(), bool(found and found[0]))
    return _answers[url][1]


def host(url: str) -> str:
    return url.split("/")[2]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _asks(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(_place(url), method="HEAD"), timeout=PATIENCE_S):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _place(url: str) -> str:
    """The Hugging Face hub may be a mirror: HF_ENDPOINT, as its own client reads it."""
    return re.sub(r"^https://huggingface\.co(?=/)", os.environ.get("HF_ENDPOINT", "https://huggingface.co"), url)


def _fetch_part(download: Download, part: Path, progress: Progress) -> None:
    trouble = ""
    for _ in range(TRIES):
        try:
            _continue(download, part, progress)
            return
        except urllib.error.HTTPError as error:
            trouble = f"{host(download.url or '')} answered {error.code} {error.reason}"
            if error.code == 416:  # nothing follows what is here: it is whole, or of another file
                if download.size_bytes in (None, part.stat().st_size):
                    return
                part.unlink()
            elif error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            if _is_full(error):
                raise WeightsError(
                    f"The disk of {part.parent} is full. Free some space and fetch again: it goes on where it was."
                ) from None
            trouble = str(error) or type(error).__name__
    here = part.stat().st_size if part.exists() else 0
    kept = f" {here:,} bytes are kept; the next attempt goes on from there." if here else ""
    raise WeightsError(f"{download.file} could not be downloaded ({trouble}).{kept}")


def _continue(download: Download, part: Path, progress: Progress) -> None:
    """Ask for what is missing; a server that has another file now, or knows no ranges, sends it all again."""
    assert download.url is not None
    here, tag = part.stat().st_size if part.exists() else 0, part.with_suffix(".tag")
    headers = {"User-Agent": "sousa-engine"}
    if here:
        headers["Range"] = f"bytes={here}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()
    request = urllib.request.Request(_place(download.url), headers=headers)
    with urllib.request.urlopen(request, timeout=STALL_S) as answer:
        if here and answer.status != 206:
            here = 0
        length = answer.headers.get("Content-Length")
        total = here + int(length) if length else download.size_bytes
        if total and total - here > shutil.disk_usage(part.parent).free:
            raise WeightsError(
                f"{download.file} needs {(total - here) / 2**20:,.0f} MiB in {part.parent}, and there is less. "
                f"Free some space, or set SOUSA_WORKSPACE to a folder on another disk."
            )
        if answer.headers.get("ETag"):
            tag.write_text(answer.headers["ETag"])
        progress(here, total)
        with part.open("ab" if here else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                here += len(block)
                progress(here, total)
            file.flush()
            os.fsync(file.fileno())
        if total and here < total:
            raise ConnectionError(f"the connection ended after {here:,} of {total:,} bytes")


def _check(download: Download, part: Path) -> None:
    """Size and checksum as published, where they are known; what is wrong is not kept."""
    size = part.stat().st_size
    wrong = ""
    if download.size_bytes and size != download.size_bytes:
        wrong = f"has {size:,} bytes, published are {download.size_bytes:,}"
    elif download.sha256 and (found := sha256(part)) != download.sha256:
        wrong = f"has sha256 {found[:12]}..., published is {download.sha256[:12]}..."
    if wrong:
        part.unlink()
        raise WeightsError(f"What {host(download.url or '')} sent for {download.file} {wrong}. It is not used.")


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
