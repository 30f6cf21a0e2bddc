"""The base of every network: waveforms in, logits out, with the front end inside. Imports torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sousa_engine import frontends
from sousa_engine.core.errors import DataError
from sousa_engine.frontends import FrontEndSpec


class TakesWaveforms(nn.Module):
    """A network with its front end: `network(waveforms)`, or `network(features=log_mel)` if features are cached.

    Families implement `classify` and `embed`; the front end has no parameters and runs on the waveforms' device.
    """

    front_end: FrontEndSpec

    def train(self, mode: bool = True):
        """Like nn.Module.train, but a BatchNorm with a frozen weight keeps the statistics from pre-training."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(self, waveforms: Tensor | None = None, *, features: Tensor | None = None) -> Tensor:
        """Logits (batch, classes).

        waveforms: (batch, samples) in [-1, 1] at front_end.sample_rate_hz; or features: (batch, frames, mel bins), raw
        log-mel from frontends.log_mel. Raises DataError for clips shorter or longer than the network accepts.
        """
        if features is None:
            if waveforms is None or waveforms.ndim != 2:
                given = "nothing" if waveforms is None else tuple(waveforms.shape)
                raise DataError(f"Expected waveforms as (batch, samples), got {given}.")
            features = frontends.log_mel(waveforms, self.front_end)
        else:
            self.front_end.check(features.shape[1])
        return self.classify(frontends.normalise(features.float(), self.front_end))

    def classify(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins), normalised log-mel. Returns logits (batch, classes)."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as for classify. Returns steps in time (batch, steps, width), and one vector per clip (batch, width)."""
        raise NotImplementedError
