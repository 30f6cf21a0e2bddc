"""What every network of ours shares: waveforms in, logits out, its front end inside. Imports torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sousa_engine import frontends
from sousa_engine.core.errors import DataError
from sousa_engine.frontends import FrontEndSpec


class TakesWaveforms(nn.Module):
    """A network with its front end: `network(waveforms)`, or `network(features=log_mel)` where that is cached.

    A family writes `classify` and `embed`; the front end has no parameters and runs where the waveforms are.
    """

    front_end: FrontEndSpec

    def train(self, mode: bool = True):
        """As nn.Module's, but a BatchNorm whose weight is frozen keeps the statistics it was pre-trained with."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(self, waveforms: Tensor | None = None, *, features: Tensor | None = None) -> Tensor:
        """Logits (batch, classes).

        waveforms: (batch, samples) in [-1, 1] at front_end.sample_rate_hz; or features: (batch, frames, mel bins), raw
        log-mel as frontends.log_mel gives it. Raises DataError for clips shorter or longer than the network takes.
        """
        if features is None:
            if waveforms is None or waveforms.ndim != 2:
                given = "nothing" if waveforms is None else tuple(waveforms.shape)
                raise DataError(f"Waveforms are expected as (batch, samples), given was {given}.")
            features = frontends.log_mel(waveforms, self.front_end)
        else:
            self.front_end.check(features.shape[1])
        return self.classify(frontends.normalise(features.float(), self.front_end))

    def classify(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins), normalised log-mel. Returns logits (batch, classes)."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as for classify. Returns steps in time (batch, steps, width), and the clip as a whole (batch, width)."""
        raise NotImplementedError
