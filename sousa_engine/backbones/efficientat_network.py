"""EfficientAT's static networks: MobileNetV3 on log-mel spectrograms, under the authors' module names. Imports torch.

Howard et al.: "Searching for MobileNetV3", ICCV 2019, table 1, with what Schmid et al. 2023 changed: one input channel,
squeeze-excitation with a plain sigmoid, BatchNorm with eps 0.001, a last convolution six times as wide as its input.
Everything is a convolution, and the head averages over the complete map: clips of any length are used unchanged, not
cut, tiled or padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sousa_engine.backbones.dymn_network import DyMN
from sousa_engine.backbones.mobile_blocks import EfficientAT, InvertedResidual, Stride, classifier, initialise, trunk
from sousa_engine.backbones.spec import Variant


def network(variant: Variant, num_classes: int, seed: int) -> EfficientAT:
    """A newly initialised network, the same for the same seed; the global random state is unchanged.

    variant.architecture: width (multiplies all channels), head ("mlp" or "fc"), head_width (of the mlp's hidden layer;
    by default 1280 times width), stem_stride and strides (of the four strided stages; 2 by default), each a number or
    (frequency, time). With `dynamic` it is a DyMN (dymn_network.py), which also takes a temperature.
    """
    kind = DyMN if "dynamic" in variant.architecture else MN
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(num_classes=num_classes, **variant.architecture)
        initialise(module)
    module.front_end = variant.front_end
    return module


class MN(EfficientAT):
    """MobileNetV3-large: the stem, 15 blocks and the last convolution in `features`."""

    def __init__(
        self,
        *,
        num_classes: int,
        width: float,
        head: str = "mlp",
        head_width: int | None = None,
        stem_stride: Stride = 2,
        strides: Sequence[Stride] = (2, 2, 2, 2),
    ):
        super().__init__()
        stem, blocks, last = trunk(InvertedResidual, width, stem_stride, strides)
        self.features = nn.Sequential(stem, *blocks, last)
        self.head = head
        self.classifier = classifier(head, num_classes, width, head_width)

    def maps(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if x.device.type == "cpu" else torch.preserve_format  # a quarter faster there
        for part in self.features:
            x = part(x).to(memory_format=layout)
        return x
