"""One channel from several: their average, or the loudest channel where they cancel each other.

Microphones on both sides of a drum, or a swapped cable, give channels of opposite polarity; their average is silence.
"""

from __future__ import annotations

import numpy as np

CANCELS_BELOW = 0.25
"""Channels cancel if their average has less than this part (-6 dB) of the power that unrelated channels would give."""


class Power:
    """The power of each channel and of their average, without any constant offset, over the blocks seen so far."""

    def __init__(self, channels: int):
        self.frames = 0
        self._sums = np.zeros(channels + 1)
        self._squares = np.zeros(channels + 1)

    def add(self, block: np.ndarray) -> None:
        """block: float32 (frames, channels), the continuation of the earlier ones."""
        every = np.column_stack([block, block.mean(axis=1)]).astype(np.float64)
        self.frames += len(block)
        self._sums += every.sum(axis=0)
        self._squares += np.einsum("ij,ij->j", every, every)

    @property
    def loudest(self) -> int | None:
        """The index of the loudest channel if the channels cancel each other so far, else None."""
        if len(self._sums) < 3 or not self.frames:
            return None
        *powers, average = self._squares - self._sums**2 / self.frames
        unrelated = sum(powers) / len(powers) ** 2
        return int(np.argmax(powers)) if average < CANCELS_BELOW * unrelated else None


def mixed(block: np.ndarray) -> np.ndarray:
    """float32 (frames,) from (frames, channels): the average, or the loudest channel if the channels cancel."""
    if block.shape[1] == 1:
        return block[:, 0]
    power = Power(block.shape[1])
    power.add(block)
    return block.mean(axis=1) if power.loudest is None else block[:, power.loudest]
