"""The soundness of a file: the result of decoding it, or of reading its header."""

from __future__ import annotations

from dataclasses import dataclass

from sousa_engine.data.headers import AudioHeader


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """The known facts of one file, which had this size, mtime_ns and ctime_ns. The last changes with every write, also
    by programs that set the time of modification back.

    error: why it cannot be used, a clause without the file's name; "" if it can be used. kind: the error in one word.
    warnings: (kind, clause) for oddities of a usable file. duration_s, sample_rate_hz, channels: from the header; 0 for
    an unusable file. content: 32 hex digits of the decoded samples, equal for equal audio in different containers; ""
    for silence, since two silent files need not be copies. digest: 32 hex digits of the file's bytes, the same on every
    machine and with every decoder; "" if they were not read. whole: the file was decoded to its end; if False, only its
    header was read.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    error: str = ""
    kind: str = ""
    warnings: tuple[tuple[str, str], ...] = ()
    duration_s: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    content: str = ""
    digest: str = ""
    whole: bool = True

    @property
    def header(self) -> AudioHeader:
        return AudioHeader(
            duration_s=self.duration_s,
            sample_rate_hz=self.sample_rate_hz,
            channels=self.channels,
            size=self.size,
            mtime_ns=self.mtime_ns,
        )
