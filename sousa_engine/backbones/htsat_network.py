"""HTS-AT's network: our own code, with the authors' parameter names. Imports torch.

Chen et al. 2022, section 2; windows, shifts and merging: Liu et al. 2021, "Swin Transformer", arXiv:2103.14030.
Stochastic depth (0.1 in the authors' training) is left out: LoRA freezes the backbone that it would act on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sousa_engine.backbones.spec import Variant
from sousa_engine.backbones.waveforms import TakesWaveforms


def network(variant: Variant, num_classes: int, seed: int) -> nn.Module:
    """A newly initialised network, the same for the same seed; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HTSAT(variant, num_classes)


class HTSAT(TakesWaveforms):
    """A square picture of the spectrogram, stages of windowed attention on it, and a convolution over time as head.

    The picture has spec_size x spec_size points: `parts` = spec_size / mel bins stretches of time, each of spec_size
    frames, are stacked one above the other. So the network sees parts * spec_size frames at once (AudioSet: 4 * 256 =
    1024):

    - a shorter clip is repeated as often as it fits completely, then stretched to the full length (bicubic): the
      authors do this at inference, we do it in training too;
    - a longer clip is split into evenly spaced windows of the full length, each overlapping the next by half or more,
      and their logits are averaged. This is our decision: the authors crop at random in training, and average over
      windows of half the clip at inference.
    """

    def __init__(self, variant: Variant, num_classes: int):
        super().__init__()
        settings = variant.architecture
        self.front_end = variant.front_end
        mel_bins, self.spec_size = settings["num_mel_bins"], settings["spec_size"]
        self.parts = self.spec_size // mel_bins
        self.frames = self.parts * self.spec_size
        assert self.parts * mel_bins == self.spec_size, "mel bins must divide spec_size"
        width, side = settings["embed_dim"], self.spec_size // settings["patch_size"]
        self.bn0 = nn.BatchNorm2d(mel_bins)
        self.patch_embed = PatchEmbed(settings["patch_size"], width)
        stages = len(settings["depths"])
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(settings["depths"], settings["num_heads"], strict=True)):
            merges = stage < stages - 1
            self.layers.append(Stage(width, depth, heads, side, min(settings["window_size"], side), merges))
            if merges:
                width, side = 2 * width, side // 2
        self.norm = nn.LayerNorm(width)
        self.tscam_conv = nn.Conv2d(width, num_classes, kernel_size=(side // self.parts, 3), padding=(0, 1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def classify(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins), log-mel in decibels. Returns logits (batch, classes)."""
        return self.framewise(x).mean(dim=1)

    def framewise(self, x: Tensor) -> Tensor:
        """Logits over time, (batch, time steps, classes), of which `classify` takes the mean. AudioSet: 32 steps.

        Steps refer to the repeated and stretched clip; the windows of a longer clip follow one another.
        """
        logits = self.tscam_conv(self.grid(x)).squeeze(2).mT
        return logits.reshape(len(x), -1, logits.shape[2])

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means over frequency (batch, time steps, width), steps as in `framewise`; their mean (batch, width)."""
        steps = self.grid(x).mean(dim=2).mT
        steps = steps.reshape(len(x), -1, steps.shape[2])
        return steps, steps.mean(dim=1)

    def grid(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins). Returns the head's input (batch * windows, width, frequencies, steps)."""
        x = self.bn0(x.mT.unsqueeze(3)).squeeze(3).mT
        x = self.norm(self.stages(self.picture(self.fitted(x))))  # (batch * windows, side, side, width)
        x = x.unflatten(1, (self.parts, -1))
        return x.permute(0, 4, 2, 1, 3).flatten(3)

    def stages(self, picture: Tensor) -> Tensor:
        """picture: (batch, 1, spec_size, spec_size). Returns (batch, side, side, width)."""
        x = self.patch_embed(picture)
        for stage in self.layers:
            x = stage(x)
        return x

    def fitted(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins) to (batch * windows, self.frames, mel bins): repeated and stretched, or cut."""
        frames, wanted = x.shape[1], self.frames
        if frames > wanted:
            count = 1 + -(-2 * (frames - wanted) // wanted)
            starts = [i * (frames - wanted) // (count - 1) for i in range(count)]
            return torch.stack([x[:, start : start + wanted] for start in starts], dim=1).flatten(0, 1)
        if frames < wanted:
            x = x.repeat(1, wanted // frames, 1).unsqueeze(1)
            x = functional.interpolate(x, (wanted, x.shape[3]), mode="bicubic", align_corners=True).squeeze(1)
        return x

    def picture(self, x: Tensor) -> Tensor:
        """x: (batch, self.frames, mel bins) to (batch, 1, spec_size, spec_size); row = part * mel bins + mel bin."""
        return x.unflatten(1, (self.parts, self.spec_size)).mT.reshape(-1, 1, self.spec_size, self.spec_size)


class PatchEmbed(nn.Module):
    """Turns each patch of the picture into one vector."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: Tensor) -> Tensor:
        """picture: (batch, 1, points, points). Returns (batch, side, side, width)."""
        return self.norm(self.proj(picture).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows; then merging, except in the last stage."""

    def __init__(self, width: int, depth: int, heads: int, side: int, window: int, merges: bool):
        super().__init__()
        shift = window // 2 if side > window else 0
        self.blocks = nn.ModuleList(Block(width, heads, side, window, shift * (i % 2)) for i in range(depth))
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, side, side, width). Returns the same shape, or (batch, side / 2, side / 2, 2 * width)."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Attention inside windows, then an MLP, each after a LayerNorm and with the input added.

    attn_mask: for shifted windows, (windows, points, points); -100 between points that were not neighbours before the
    picture was rolled around its edges.
    """

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int):
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.register_buffer("attn_mask", _shift_mask(side, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, side, side, width). Returns the same shape."""
        heard = self.norm1(x)
        if self.shift:
            heard = self.attn(heard.roll((-self.shift, -self.shift), (1, 2)), self.attn_mask)
            x = x + heard.roll((self.shift, self.shift), (1, 2))
        else:
            x = x + self.attn(heard)
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Self-attention inside each window x window square, with a learned bias for each offset between two points."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, side, side, width), mask: (windows, points, points). Returns the shape of x."""
        batch, side, points = len(x), x.shape[1], self.window**2
        across = side // self.window
        split = (batch, across, self.window, across, self.window)
        qkv = self.qkv(x).view(*split, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        bias = functional.embedding(self.relative_position_index, self.relative_position_bias_table).permute(2, 0, 1)
        if mask is None:
            rows = (batch * across**2, self.heads)
        else:  # one mask per window: windows and heads share an axis, batches are kept apart
            rows = (batch, across**2 * self.heads)
            bias = (bias + mask.unsqueeze(1)).flatten(0, 1)
        q, k, v = qkv.reshape(3, *rows, points, -1).unbind()
        heard = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).unsqueeze(0))
        heard = heard.reshape(batch, across, across, self.heads, self.window, self.window, -1)
        return self.proj(heard.permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape))


class Mlp(nn.Module):
    """Two layers with the exact GELU between them; the hidden layer is four times as wide."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PatchMerging(nn.Module):
    """Each square of four vectors becomes one of twice their width."""

    def __init__(self, width: int):
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, side, side, width). Returns (batch, side / 2, side / 2, 2 * width)."""
        half = x.shape[1] // 2
        x = x.unflatten(2, (half, 2)).unflatten(1, (half, 2))  # batch, row, row's half, column, column's half, width
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


def _relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of points of a window, (points, points): offset of rows, then of columns."""
    at = torch.arange(window)
    offset = at.unsqueeze(1) - at + window - 1  # (window, window), 0 to 2 * window - 2
    rows = offset.repeat_interleave(window, 0).repeat_interleave(window, 1)
    return rows * (2 * window - 1) + offset.repeat(window, window)


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """(windows, points, points): 0 between points of one region, -100 between others. Liu et al. 2021, figure 4."""
    at = torch.arange(side)
    band = (at >= side - window).long() + (at >= side - shift)  # 0, 1, 2: inside, before the seam, behind it
    region = 3 * band.unsqueeze(1) + band
    across = side // window
    region = region.view(across, window, across, window).transpose(1, 2).reshape(across**2, window**2)
    return (region.unsqueeze(1) != region.unsqueeze(2)) * -100.0
