"""Shared by static and dynamic EfficientAT: MobileNetV3's blocks, with the authors' module names. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sousa_engine.backbones.waveforms import TakesWaveforms

# kernel, expanded channels, channels, squeeze-excitation, hard-swish (else ReLU), first block of a strided stage
BLOCKS = (
    (3, 16, 16, False, False, False),
    (3, 64, 24, False, False, True),
    (3, 72, 24, False, False, False),
    (5, 72, 40, True, False, True),
    (5, 120, 40, True, False, False),
    (5, 120, 40, True, False, False),
    (3, 240, 80, False, True, True),
    (3, 200, 80, False, True, False),
    (3, 184, 80, False, True, False),
    (3, 184, 80, False, True, False),
    (3, 480, 112, True, True, False),
    (3, 672, 112, True, True, False),
    (5, 672, 160, True, True, True),
    (5, 960, 160, True, True, False),
    (5, 960, 160, True, True, False),
)
STEM, HIDDEN = 16, 1280  # channels after the first convolution, and in the head's hidden layer
LAST = 6  # the last convolution's width as a multiple of its input's
DROPOUT = 0.2

Stride = int | Sequence[int]  # (frequency, time), or one number for both


class EfficientAT(TakesWaveforms):
    """Base of static and dynamic networks: spectrogram -> map of features -> logits."""

    head: str
    classifier: nn.Sequential

    def maps(self, x: Tensor) -> Tensor:
        """x: (batch, 1, mel bins, frames). Returns the last features (batch, width, frequencies, time steps)."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.maps(x.mT.unsqueeze(1))).flatten(1)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last features averaged over frequency (batch, time steps, width), and the vector before the last layer.

        That is the mlp's hidden layer after its dropout (batch, head width) or, for the fc head, which averages last,
        the average of the features (batch, width).
        """
        maps = self.maps(x.mT.unsqueeze(1))
        whole = self.classifier[:-1](maps) if self.head == "mlp" else maps.mean((2, 3))
        return maps.mean(2).mT, whole


def trunk(
    block: Callable[[BlockSettings], nn.Module], width: float, stem_stride: Stride, strides: Sequence[Stride]
) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    """The first convolution, 15 blocks made by `block`, the last convolution."""
    settings = block_settings(width, strides)
    stem = conv_norm(1, settings[0].inputs, 3, pair(stem_stride), activation=nn.Hardswish)
    last = conv_norm(settings[-1].outputs, LAST * settings[-1].outputs, activation=nn.Hardswish)
    return stem, [block(one) for one in settings], last


def classifier(head: str, num_classes: int, width: float, head_width: int | None) -> nn.Sequential:
    """From the last features to logits (batch, classes); the "fc" head adds two axes of size 1."""
    channels = LAST * scaled(BLOCKS[-1][2], width)
    if head == "fc":
        convolution = nn.Conv2d(channels, num_classes, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(num_classes), nn.AdaptiveAvgPool2d(1))
    assert head == "mlp", head
    hidden = head_width or scaled(HIDDEN, width)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(channels, hidden),
        nn.Hardswish(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden, num_classes),
    )


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """One inverted residual block, its channels scaled. stride: (frequency, time)."""

    inputs: int
    kernel: int
    expanded: int
    outputs: int
    excited: bool
    activation: type[nn.Module]
    stride: tuple[int, int]

    @property
    def is_residual(self) -> bool:
        return self.stride == (1, 1) and self.inputs == self.outputs


def block_settings(width: float, strides: Sequence[Stride]) -> list[BlockSettings]:
    """The 15 blocks at a width."""
    assert len(strides) == 4
    found: list[BlockSettings] = []
    of_stage = iter(strides)
    for kernel, expanded, outputs, excited, hard, strided in BLOCKS:
        found.append(
            BlockSettings(
                inputs=found[-1].outputs if found else scaled(STEM, width),
                kernel=kernel,
                expanded=scaled(expanded, width),
                outputs=scaled(outputs, width),
                excited=excited,
                activation=nn.Hardswish if hard else nn.ReLU,
                stride=pair(next(of_stage)) if strided else (1, 1),
            )
        )
    return found


class InvertedResidual(nn.Module):
    """Widen, filter each channel, weight the channels, narrow again; added to the input if the shapes agree.

    Howard et al. 2019, figure 4. `block` holds the parts in this order; the first is absent if nothing is widened.
    """

    def __init__(self, settings: BlockSettings):
        super().__init__()
        s = settings
        self.is_residual = s.is_residual
        parts = []
        if s.expanded != s.inputs:
            parts.append(conv_norm(s.inputs, s.expanded, activation=s.activation))
        parts.append(conv_norm(s.expanded, s.expanded, s.kernel, s.stride, s.expanded, s.activation))
        if s.excited:
            parts.append(ConcurrentSE(s.expanded))
        parts.append(conv_norm(s.expanded, s.outputs))
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.is_residual else self.block(x)


class ConcurrentSE(nn.Module):
    """Squeeze-excitation with the authors' name for it: theirs can weight other axes at the same time."""

    def __init__(self, channels: int):
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcitation(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.conc_se_layers[0](x)


class SqueezeExcitation(nn.Module):
    """Each channel times a factor in (0, 1) computed from the means of all channels. Hu, Shen, Sun 2018, section 3."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = divisible(channels // 4)
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        factors = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()
        return x * factors[:, :, None, None]


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, unless None, an activation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts = [convolution, batch_norm(outputs)]
    return nn.Sequential(*parts, activation()) if activation else nn.Sequential(*parts)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)


def initialise(module: nn.Module) -> None:
    """The authors' initialisation: He's for convolutions, by fan-out; small random numbers for linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def scaled(channels: int, width: float) -> int:
    return divisible(channels * width)


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not more than a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def pair(stride: Stride) -> tuple[int, int]:
    return (stride, stride) if isinstance(stride, int) else (int(stride[0]), int(stride[1]))
