"""The true length of an mp3 file, found by walking from frame to frame.

Without a Xing header, libsndfile estimates the length from the first frames, which is wrong for variable bit rates, and
it reads no further than that. `Counted` puts a Xing header with the true number of frames in front of such a file.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_KBPS = {  # (MPEG 1, layer) -> by index in a frame's header; 0: free format
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version bits
_TAGS = 4_096  # bytes that tags at the end may take
_BUFFER = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame's header. kind: equal in all frames of a stream."""

    head: bytes
    kind: tuple[int, int, int]
    samples: int
    size: int

    @property
    def xing_at(self) -> int:
        """Where a Xing header stands in this frame: behind the side information of layer 3."""
        version, mono = self.kind[0], self.head[3] >> 6 == 3
        return 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))


def true_length(path: Path, claimed: int) -> Counted | None:
    """The file with a correct length in its header, if `claimed` samples is wrong; None if it can be trusted.

    A Xing header that promises more than the file has is left alone: that file is truncated.
    """
    with path.open("rb", buffering=_BUFFER) as file:
        start = _skip_tags(file)
        frames = _frames(file, start)
        found = next(frames, None)
        if found is None or found[1].kind[1] != 3:
            return None
        at, first = found
        file.seek(at)
        xing = _xing(file.read(first.size), first)
        if xing and xing[1] and at + xing[1] + _TAGS >= file.seek(0, io.SEEK_END):
            return None
        count = sum(1 for _ in frames) + (xing is None)
        wrong = count > xing[0] + 1 if xing else abs(claimed - count * first.samples) > 2 * first.samples
        return Counted(path, first, count, at + (first.size if xing else 0)) if wrong else None


class Counted(io.RawIOBase):
    """An mp3 file that begins with a Xing header for `count` frames, followed by the file from byte `start` on."""

    def __init__(self, path: Path, like: Frame, count: int, start: int):
        frame = bytearray(like.size)
        frame[:4] = like.head
        frame[1] |= 1  # no checksum follows
        frame[like.xing_at : like.xing_at + 12] = b"Xing\0\0\0\1" + count.to_bytes(4, "big")
        self._first, self._start, self._at = bytes(frame), start, 0
        self._file = path.open("rb")

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        view = memoryview(buffer).cast("B")
        head = self._first[self._at : self._at + len(view)]
        view[: len(head)] = head
        self._file.seek(self._start + max(0, self._at - len(self._first)))
        read = len(head) + (self._file.readinto(view[len(head) :]) or 0)
        self._at += read
        return read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += len(self._first) + self._file.seek(0, io.SEEK_END) - self._start
        self._at = max(0, offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _frames(file: BinaryIO, at: int) -> Iterator[tuple[int, Frame]]:
    """(place, frame) of each complete frame of one stream; bytes between frames are passed over.

    A frame counts if another one, or the end of the file, follows it: noise often looks like a single header.
    """
    end, kind = file.seek(0, io.SEEK_END), None
    while at + 4 <= end:
        frame = _frame(_at(file, at, 4))
        if frame and kind in (None, frame.kind) and at + frame.size <= end:
            after = _frame(_at(file, at + frame.size, 4))
            if kind or (after and after.kind == frame.kind) or at + frame.size == end:
                kind = frame.kind
                yield at, frame
                at += frame.size
                continue
        at = _next_sync(file, at + 1)


def _next_sync(file: BinaryIO, at: int) -> int:
    """The place of the next byte 0xFF, or the end of the file."""
    file.seek(at)
    while block := file.read(_BUFFER):
        found = block.find(b"\xff")
        if found >= 0:
            return at + found
        at += len(block)
    return at


@functools.lru_cache(maxsize=256)
def _frame(head: bytes) -> Frame | None:
    """The frame that begins with these four bytes; None if none does, or if it does not tell its size."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate, bits = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return None
    hz, kbps, padding = _HZ[version][rate], _KBPS[version == 3, layer][bits], head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    size = (12_000 * kbps // hz + padding) * 4 if layer == 1 else samples // 8 * 1000 * kbps // hz + padding
    return Frame(head=head, kind=(version, layer, hz), samples=samples, size=size)


def _xing(frame: bytes, first: Frame) -> tuple[int, int] | None:
    """(frames, bytes) of the stream by its Xing header, bytes 0 if unknown; None if there is no number of frames."""
    head = frame[first.xing_at : first.xing_at + 16]
    if head[:4] not in (b"Xing", b"Info") or not head[7] & 1:
        return None
    return int.from_bytes(head[8:12], "big"), int.from_bytes(head[12:16], "big") if head[7] & 2 else 0


def _skip_tags(file: BinaryIO) -> int:
    """The place behind the ID3 tags at the beginning of the file."""
    at = 0
    while (head := _at(file, at, 10))[:3] == b"ID3" and len(head) == 10:
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def _at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
