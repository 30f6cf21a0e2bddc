"""EfficientAT's dynamic networks: filters that depend on the clip, under the authors' module names. Imports torch.

Schmid, Koutini, Widmer: "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models", IEEE/ACM TASLP
2024, arXiv:2310.15648. The blocks are MobileNetV3's. Each computes a short context vector from its input, and from it
the mixture of its filters (dynamic convolution), its activation (Dy-ReLU-B) and, from the same layer, factors for every
frequency and time step (coordinate attention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sousa_engine.backbones.mobile_blocks import (
    BlockSettings,
    EfficientAT,
    InvertedResidual,
    Stride,
    batch_norm,
    classifier,
    divisible,
    scaled,
    trunk,
)

FILTERS = 4  # sets of filters that a dynamic convolution mixes
CONTEXT = (32, 128)  # smallest and largest size of the context vector, before scaling by the width


class DyMN(EfficientAT):
    """MobileNetV3-large with dynamic blocks: the stem `in_c`, 15 blocks in `layers`, the last convolution `out_c`.

    dynamic: "all" blocks, or "replace_se": only those with squeeze-excitation in MobileNetV3. temperature: of the
    softmax over filter sets; the authors' training ends at 1, and a state dict does not contain it.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        width: float,
        dynamic: str,
        temperature: float = 1.0,
        head: str = "mlp",
        head_width: int | None = None,
        stem_stride: Stride = 2,
        strides: Sequence[Stride] = (2, 2, 2, 2),
    ):
        super().__init__()
        assert dynamic in ("all", "replace_se"), dynamic

        def block(settings: BlockSettings) -> nn.Module:
            if dynamic == "all" or settings.excited:
                return DynamicBlock(settings, width, temperature)
            return InvertedResidual(settings)

        self.in_c, blocks, self.out_c = trunk(block, width, stem_stride, strides)
        self.layers = nn.Sequential(*blocks)
        self.head = head
        self.classifier = classifier(head, num_classes, width, head_width)

    def maps(self, x: Tensor) -> Tensor:
        return self.out_c(self.layers(self.in_c(x)))


class DynamicBlock(nn.Module):
    """An inverted residual block that adapts to each clip. Schmid et al. 2024."""

    def __init__(self, settings: BlockSettings, width: float, temperature: float):
        super().__init__()
        s = settings
        least, largest = (scaled(size, width) for size in CONTEXT)
        context = min(max(divisible(s.expanded // 4), least), largest)
        self.is_residual = s.is_residual
        self.context_gen = ContextGenerator(s.inputs, context, s.expanded, s.stride)
        self.expands = s.expanded != s.inputs
        if self.expands:
            self.exp_conv = DynamicConv(s.inputs, s.expanded, context, temperature)
            self.exp_norm = batch_norm(s.expanded)
            self.exp_act = s.activation()
        self.depth_conv = DynamicConv(
            s.expanded, s.expanded, context, temperature, s.kernel, s.stride, groups=s.expanded
        )
        self.depth_norm = batch_norm(s.expanded)
        self.depth_act = DynamicReLU(s.expanded, context)
        self.proj_conv = DynamicConv(s.expanded, s.outputs, context, temperature)
        self.proj_norm = batch_norm(s.outputs)

    def forward(self, x: Tensor) -> Tensor:
        context, by_frequency, by_time = self.context_gen(x)
        y = self.exp_act(self.exp_norm(self.exp_conv(x, context))) if self.expands else x
        y = self.depth_act(self.depth_norm(self.depth_conv(y, context)), context)
        y = self.proj_norm(self.proj_conv(y * by_frequency * by_time, context))
        return x + y if self.is_residual else y


class ContextGenerator(nn.Module):
    """The context that a block adapts to: the means over time and those over frequency, through one small layer."""

    def __init__(self, inputs: int, context: int, expanded: int, stride: tuple[int, int]):
        super().__init__()
        self.joint_conv = nn.Conv2d(inputs, context, 1, bias=False)
        self.joint_norm = batch_norm(context)
        self.joint_act = nn.Hardswish()
        self.conv_f = nn.Conv2d(context, expanded, 1)
        self.conv_t = nn.Conv2d(context, expanded, 1)
        frequency, time = stride
        self.pool_f = nn.AvgPool2d((3, 1), (frequency, 1), (1, 0)) if frequency > 1 else nn.Identity()
        self.pool_t = nn.AvgPool2d((1, 3), (1, time), (0, 1)) if time > 1 else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (batch, inputs, F, T). Returns the context (batch, size) and the factors of coordinate attention in
        (0, 1), (batch, expanded, F', 1) and (batch, expanded, 1, T'), with the size after the block's stride.

        Hou, Zhou, Feng: "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021.
        """
        profiles = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT), dim=2)
        profiles = self.joint_act(self.joint_norm(self.joint_conv(profiles)))
        by_frequency, by_time = profiles.split((x.shape[2], x.shape[3]), dim=2)
        by_frequency = self.conv_f(self.pool_f(by_frequency)).sigmoid()
        by_time = self.conv_t(self.pool_t(by_time.mT)).sigmoid()
        return profiles.mean((2, 3)), by_frequency, by_time


class DynamicConv(nn.Module):
    """A convolution without bias whose filters are mixed for each clip: softmax(residuals(context) / temperature).

    weight: (1, 1, filter sets, outputs * inputs / groups * kernel * kernel). Chen et al.: "Dynamic Convolution", CVPR
    2020. A convolution with kernel 1 is one matrix product per clip; others run as a grouped convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        temperature: float,
        kernel: int = 1,
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ):
        super().__init__()
        self.shape = (outputs, inputs // groups, kernel, kernel)
        self.groups, self.stride, self.temperature = groups, stride, temperature
        self.residuals = nn.Sequential(nn.Linear(context, FILTERS))
        self.weight = nn.Parameter(torch.empty(1, 1, FILTERS, math.prod(self.shape)))
        for filters in self.weight.detach().view(FILTERS, *self.shape):
            nn.init.kaiming_normal_(filters, mode="fan_out")

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (batch, inputs, F, T), context: (batch, size). Returns (batch, outputs, F', T')."""
        shares = (self.residuals(context) / self.temperature).softmax(dim=-1)
        mixed = shares @ self.weight[0, 0]
        outputs, inputs, kernel, _ = self.shape
        if kernel == 1 and self.groups == 1:
            return (mixed.view(-1, outputs, inputs) @ x.flatten(2)).unflatten(2, x.shape[2:])
        y = nn.functional.conv2d(
            x.reshape(1, -1, *x.shape[2:]),  # each clip's channels form separate groups
            mixed.view(-1, inputs, kernel, kernel),
            stride=self.stride,
            padding=kernel // 2,
            groups=len(x) * self.groups,
        )
        return y.view(len(x), outputs, *y.shape[2:])


class DynamicReLU(nn.Module):
    """The maximum of two lines whose slopes and offsets are computed for each clip and channel.

    Chen et al.: "Dynamic ReLU", ECCV 2020, form B. Coefficients are init_v + lambdas * a number in (-1, 1): for each
    channel two slopes, then two offsets; if that number is 0 it is the ordinary ReLU. init_v and lambdas are constants
    that the authors' files contain.
    """

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.coef_net = nn.Sequential(nn.Linear(context, 4 * channels))
        self.register_buffer("lambdas", torch.tensor([1.0, 1.0, 0.5, 0.5]))
        self.register_buffer("init_v", torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (batch, channels, F, T), context: (batch, size)."""
        drawn = 2 * self.coef_net(context).sigmoid() - 1
        coefficients = drawn.view(len(x), -1, 1, 1, 4) * self.lambdas + self.init_v
        slope, other_slope, offset, other_offset = coefficients.unbind(-1)
        return torch.maximum(x * slope + offset, x * other_slope + other_offset)
