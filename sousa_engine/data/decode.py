"""Decode a file to its last sample, and say what is wrong with it.

As a program (`python -m sousa_engine.data.decode`), this is a worker of data/scan.py with limited memory and processor
time. It reads lines of {"path": ...} from stdin and answers each with a line of soundness on stdout. A decoder that
crashes or never finishes takes down only this process. With --headers, it reads only headers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sousa_engine.data import headers
from sousa_engine.data.downmix import Power
from sousa_engine.data.headers import FIX, AudioHeader, Unusable
from sousa_engine.data.soundness import Soundness

MEMORY_BYTES = 2 * 2**30  # of address space; ordinary files need a tenth of it
LONG_S = 600.0
_BLOCK = 65_536  # frames
_ENOUGH = 0.98  # of the promised samples: compressed formats only estimate their length
_LOUD, _LOUDEST = 10.0, 2.0**31  # times full scale: odd; beyond any format, and its spectrum would overflow
_SILENT = 2e-4  # between lowest and highest sample: below the noise of 16-bit recordings
_USUAL_HZ = frozenset(
    (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000, 176_400, 192_000)
)
# "data : 32000 (should be 15978)" in libsndfile's log: the size in the header, and the true size.
_SIZE = re.compile(r"^\s*(\w[\w ]*?)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_OF_SAMPLES = {"data", "SSND", "Data Size", "riff"}  # riff: for W64, whose log has no separate size of the samples
_STREAMED = 0x7FFF_0000  # programs that do not know the size yet write this or more


def decode(path: Path) -> Soundness:
    """The soundness of one file, which is read to its end in blocks.

    Raises Unusable only if the file system makes the file unusable.
    """
    facts = headers.file_facts(path)
    stamp: dict[str, Any] = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    try:
        return Soundness(**stamp, **examine(path))
    except Unusable as error:
        return Soundness(**stamp, error=str(error), kind=error.kind)
    except MemoryError:
        return Soundness(
            **stamp, error=f"decoding it needs more than {MEMORY_BYTES / 2**30:g} GiB; {FIX}", kind="memory"
        )


def read_header(path: Path) -> Soundness:
    """Like `decode`, but reads only the header."""
    try:
        header = headers.read_header(path)
    except Unusable as error:
        facts = headers.file_facts(path)
        return Soundness(size=facts.st_size, mtime_ns=facts.st_mtime_ns, error=str(error), kind=error.kind, whole=False)
    return Soundness(**asdict(header), whole=False)


def cpu_limit_s(size: int) -> int:
    """Seconds of processor time that a file of `size` bytes may take: a minute, plus a second per megabyte."""
    return 60 + size // 1_000_000


def limit_memory() -> None:
    """Limit the memory of this process permanently, and let a crash leave no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ValueError, OSError):
        pass  # macOS refuses; time is limited there too


def limit_cpu(seconds: int) -> None:
    """Limit the processor time of this process from now on; the kernel kills it with SIGXCPU beyond that."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


def serve(answer: Callable[[Path], Soundness] = decode) -> None:
    """The worker's loop: one answer per line, until stdin ends."""
    limit_memory()
    _say({"ready": True})
    for line in sys.stdin:
        path = Path(json.loads(line)["path"])
        try:
            limit_cpu(cpu_limit_s(_size(path)))
            _say(asdict(answer(path)))
        except Unusable as error:  # it disappeared or was locked since it was listed
            _say({"gone": str(error), "kind": error.kind})


def examine(path: Path) -> dict[str, Any]:
    """Decode a file; the fields of its Soundness. Raises Unusable for an unusable file."""
    import soundfile

    header = headers.read_header(path)
    digest, every = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    low, high = np.inf, -np.inf
    read = bad = 0
    with headers.opened(path) as file:
        promised, said = file.frames, file.extra_info
        digest.update(f"{file.samplerate} Hz".encode())
        every.update(f"{file.samplerate} Hz, {file.channels} channels".encode())
        buffer = np.empty((_BLOCK, file.channels), dtype=np.float32)
        cancelled = _Cancelled(file.channels, file.samplerate)
        try:
            while len(block := file.read(out=buffer)):
                mono = np.ascontiguousarray(block.mean(axis=1) if file.channels > 1 else block[:, 0])
                digest.update(mono.data)
                if file.channels > 1:
                    every.update(block.data)
                    cancelled.add(block)
                bad += int(block.size - np.isfinite(block).sum())
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                read += len(block)
        except soundfile.LibsndfileError as error:
            why = error.error_string.removeprefix("Error : ").rstrip(".") or "damaged data"
            raise Unusable(
                "corrupt", f"it cannot be decoded beyond sample {read:,} of {promised:,} ({why}); {FIX}"
            ) from None
    promised, warnings = _promises(said, promised, header.size)
    if read < _ENOUGH * promised:
        raise Unusable(
            "truncated", f"it is truncated: its header promises {promised:,} samples, it holds {read:,}; {FIX}"
        )
    if read < header.sample_rate_hz * headers.SHORTEST_S:
        raise headers.too_short(read, header.sample_rate_hz)
    if bad:
        of = read * header.channels
        raise Unusable(
            "not-a-number", f"{bad:,} of its {of:,} samples {'is' if bad == 1 else 'are'} NaN or infinite; {FIX}"
        )
    peak = max(-low, high)
    if peak > _LOUDEST:
        raise Unusable("level", f"its samples reach {peak:.2g} times full scale; {FIX}")
    silent = high - low < _SILENT
    if cancelled.seconds and not silent:  # what is used is not the average, so equal averages are no copies
        digest = every
        warnings.append(cancelled.warning)
    return {
        "duration_s": header.duration_s,
        "sample_rate_hz": header.sample_rate_hz,
        "channels": header.channels,
        "content": "" if silent else digest.hexdigest(),
        "warnings": (*warnings, *_odd(header, silent=silent, peak=peak)),
    }


class _Cancelled:
    """How much of a file's beginning loses its sound when the channels are averaged. seconds: 0 if none does.

    A run uses a beginning of any length, and mixes it down by its own levels, so every half second is a beginning.
    """

    def __init__(self, channels: int, rate_hz: int):
        self._power, self._rate_hz = Power(channels), rate_hz
        self.seconds, self._loudest, self._channels = 0.0, 0, channels

    def add(self, block: np.ndarray) -> None:
        step = self._rate_hz // 2
        for start in range(0, len(block), step):
            self._power.add(block[start : start + step])
            if (loudest := self._power.loudest) is not None:
                self.seconds, self._loudest = self._power.frames / self._rate_hz, loudest

    @property
    def warning(self) -> tuple[str, str]:
        complete = self.seconds == self._power.frames / self._rate_hz
        where = "" if complete else f"in its first {self.seconds:.2g} s, "
        return "polarity", (
            f"{where}its channels cancel each other when they are averaged (opposite polarity), so only the loudest "
            f"one is used there, channel {self._loudest + 1} of {self._channels}; invert the polarity of one channel "
            "to use all of them"
        )


def _promises(said: str, frames: int, size: int) -> tuple[int, list[tuple[str, str]]]:
    """The number of samples that the header promises, and warnings about wrong sizes in it. said: libsndfile's log.

    libsndfile reduces `frames` to what the file can hold; only its log contains the sizes in the header.
    """
    warnings = []
    for name, claimed, found in ((n, int(c), int(f)) for n, c, f in _SIZE.findall(said)):
        if claimed >= _STREAMED > found:
            if not warnings:
                warnings.append(
                    ("header", f"its header does not tell its length ({name}: {claimed:,} bytes); all of it is used; "
                     "export it again to fix that")
                )  # fmt: skip
        elif name in _OF_SAMPLES and claimed > found > 0:
            frames = max(frames, round(frames * claimed / found))
        elif claimed > found and not warnings:
            warnings.append(
                ("header", f"its header claims a file of {claimed:,} bytes ({name}), but it has {size:,}; "
                 "export it again to fix that")
            )  # fmt: skip
    if match := re.search(r"frame count (?:\d+) does not match value from 'ds64' chunk of (\d+)", said):
        frames = max(frames, int(match[1]))
    return frames, warnings


def _odd(header: AudioHeader, *, silent: bool, peak: float) -> list[tuple[str, str]]:
    """Warnings about a usable file."""
    found = []
    if silent:
        level = "all its samples are zero" if peak == 0 else f"its samples are constant (peak {peak:.2g} of 1)"
        found.append(("silent", f"it is silent: {level}; record it again, or remove it"))
    if peak > _LOUD:
        found.append(("level", f"its samples reach {peak:,.0f} times full scale; export it at its true level"))
    if header.channels > 2:
        found.append(
            (
                "channels",
                f"it has {header.channels} channels, which are mixed down to one; export the one that you need",
            )
        )
    if header.sample_rate_hz not in _USUAL_HZ:
        found.append(("rate", f"its sample rate of {header.sample_rate_hz:,} Hz is unusual; check that it is correct"))
    if header.duration_s > LONG_S:
        minutes = round(header.duration_s / 60)
        length = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
        found.append(("long", f"it is {length} long, and only its beginning is used; cut it into clips"))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def _say(value: dict[str, Any]) -> None:
    # Only ASCII: a name that is not UTF-8 survives as an escape. One write: a line is never read half.
    os.write(1, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    serve(read_header if "--headers" in sys.argv else decode)
