"""From waveforms to the log-mel frames of a backbone. Torch is imported by the first call, not with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sousa_engine.frontends.spec import FrontEndSpec

if TYPE_CHECKING:
    from sousa_engine.frontends.mel import log_mel, normalise

__all__ = ["FrontEndSpec", "log_mel", "normalise"]


def __getattr__(name: str) -> Any:
    if name in ("log_mel", "normalise"):
        from sousa_engine.frontends import mel

        return getattr(mel, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
