"""What decoding a file showed: whether it is sound."""

from __future__ import annotations

from dataclasses import dataclass

from sousa_engine.data.headers import AudioHeader


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """What decoding one file came to. error: why it cannot be used, one clause without its name; "" if it can.

    kind: of that error, in a word. warnings: (kind, clause) of what is odd about a file that can be used. duration_s,
    sample_rate_hz, channels: as its header says, 0 where it cannot be used. content: 32 hex digits of the decoded
    samples, equal for equal sound in different containers; "" for silence, which is no sign of a copy. whole: decoded
    to the end; else its header alone was read, and nothing is known of what follows.
    """

    size: int
    mtime_ns: int
    error: str = ""
    kind: str = ""
    warnings: tuple[tuple[str, str], ...] = ()
    duration_s: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    content: str = ""
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
