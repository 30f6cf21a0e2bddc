"""BEATs' network: a Transformer over log-mel patches whose attention depends on their distance. Imports torch.

Chen et al. 2023, arXiv:2212.09058, section 3.3; its gated relative position bias is that of Chi et al. 2022 ("XLM-E"),
its residual weights and initialisation (deep norm) are those of Wang et al. 2022 ("DeepNet"). Modules and parameters
have the names in the authors' files.

The authors' training also used dropout, layer drop, and gradients scaled by 0.6 per layer from the top down. None of
these is implemented here: the last would leave layer 0 with 0.0036 of its gradient, and LoRA in the lower layers
untrained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm

from sousa_engine.backbones.spec import Variant
from sousa_engine.backbones.waveforms import TakesWaveforms


def network(variant: Variant, num_classes: int, seed: int) -> nn.Module:
    """A newly initialised network, the same for the same seed; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BEATs(variant, num_classes)


class BEATs(TakesWaveforms):
    """Patches -> tokens -> Transformer -> mean of the tokens -> classes.

    Settings of variant.architecture: input_patch_size (edge length, or frames and mel bins), time_stride (frames from
    patch to patch, if patches overlap in time), embed_dim (of a patch), num_mel_bins, and those of `Encoder`.

    Accepts clips of any length of at least one patch: positions enter as distances only, and all distances from
    max_distance on count as equal. Frames and mel bins at the end that do not fill a patch are dropped.
    """

    def __init__(self, variant: Variant, num_classes: int):
        super().__init__()
        settings = variant.architecture
        size = settings["input_patch_size"]
        frames, bins = (size, size) if isinstance(size, int) else size
        patch, width = settings["embed_dim"], settings["encoder_embed_dim"]
        self.front_end = variant.front_end
        self.rows = settings["num_mel_bins"] // bins
        self.patch_embedding = nn.Conv2d(
            1, patch, (frames, bins), stride=(settings.get("time_stride", frames), bins), bias=False
        )
        self.layer_norm = nn.LayerNorm(patch)
        self.post_extract_proj = nn.Linear(patch, width) if patch != width else nn.Identity()
        self.encoder = Encoder(settings)
        self.predictor = nn.Linear(width, num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """x: (batch, frames, mel bins), normalised log-mel. Returns logits (batch, classes).

        The authors average the class logits over tokens and return probabilities, the sigmoid of these. Here the
        tokens are averaged first: the head is linear, so the logits are the same.
        """
        return self.predictor(self.represent(x)[1])

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as for classify. Returns the means of the tokens over frequency (batch, time steps, width) and over both
        axes (batch, width)."""
        tokens, pooled = self.represent(x)
        return tokens.unflatten(1, (-1, self.rows)).mean(2), pooled

    def represent(self, x: Tensor, *, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x as for classify. Returns all tokens (batch, tokens, width), by time and then from low to high frequencies,
        and their mean (batch, width).

        padding: (batch, frames), True where a clip was padded; such tokens are neither attended to nor averaged.
        """
        tokens = self.patch_embedding(x.unsqueeze(1)).flatten(2).mT
        tokens = self.post_extract_proj(self.layer_norm(tokens))
        if padding is None:
            tokens = self.encoder(tokens)
            return tokens, tokens.mean(1)
        padding = coarser(padding, tokens.shape[1])
        tokens = self.encoder(tokens, padding)
        heard = tokens.masked_fill(padding.unsqueeze(2), 0.0)
        return tokens, heard.sum(1) / (~padding).sum(1, keepdim=True)


def coarser(padding: Tensor, parts: int) -> Tensor:
    """A mask with fewer parts, as in the authors' code: (batch, n) -> (batch, parts), True where n // parts entries in
    a row are all True; the remainder at the end is dropped."""
    length = padding.shape[1] // parts
    return padding[:, : parts * length].unflatten(1, (parts, length)).all(2)


class Encoder(nn.Module):
    """Add a convolution over neighbouring tokens, then run the layers.

    Settings: encoder_layers, encoder_embed_dim, encoder_ffn_embed_dim, encoder_attention_heads; conv_pos and
    conv_pos_groups (kernel and groups of that convolution); num_buckets, max_distance.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        width, kernel = settings["encoder_embed_dim"], settings["conv_pos"]
        convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=settings["conv_pos_groups"])
        nn.init.normal_(convolution.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(convolution.bias)
        self.pos_conv = nn.Sequential(weight_norm(convolution, dim=2), nn.GELU())
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(settings, first=i == 0) for i in range(settings["encoder_layers"]))

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """tokens: (batch, tokens, width); padding: (batch, tokens), True for tokens to be ignored."""
        if padding is not None:
            tokens = tokens.masked_fill(padding.unsqueeze(2), 0.0)
        count = tokens.shape[1]
        tokens = self.layer_norm(tokens + self.pos_conv(tokens.mT)[..., :count].mT)  # an even kernel adds one
        bias = self.layers[0].self_attn.position_bias(count, tokens.device)
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None], -math.inf)
        for layer in self.layers:
            tokens = layer(tokens, bias)
        return tokens


class Layer(nn.Module):
    """Attention, then two linear layers, each with a scaled-up residual and a norm after the sum (deep norm)."""

    def __init__(self, settings: Mapping[str, Any], *, first: bool):
        super().__init__()
        width, inner, depth = (settings[f"encoder_{name}"] for name in ("embed_dim", "ffn_embed_dim", "layers"))
        self.residual = (2 * depth) ** 0.25
        self.self_attn = Attention(settings, first=first)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        beta = (8 * depth) ** -0.25
        for linear, gain in (
            (self.self_attn.q_proj, 1.0),
            (self.self_attn.k_proj, 1.0),
            (self.self_attn.v_proj, beta),
            (self.self_attn.out_proj, beta),
            (self.fc1, beta),
            (self.fc2, beta),
        ):
            nn.init.xavier_normal_(linear.weight, gain=gain)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(torch.add(self.self_attn(x, bias), x, alpha=self.residual))
        return self.final_layer_norm(torch.add(self.fc2(gelu(self.fc1(x))), x, alpha=self.residual))


class Attention(nn.Module):
    """Self-attention with a bias that depends on distance; every query scales it with its own gate.

    first: holds the table of biases, one row per bucket of distances, which all layers use.
    """

    def __init__(self, settings: Mapping[str, Any], *, first: bool):
        super().__init__()
        width, self.heads = settings["encoder_embed_dim"], settings["encoder_attention_heads"]
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // self.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))
        nn.init.normal_(self.grep_linear.weight, std=0.02)
        nn.init.zeros_(self.grep_linear.bias)
        if first:
            self.buckets, self.max_distance = settings["num_buckets"], settings["max_distance"]
            self.relative_attention_bias = nn.Embedding(self.buckets, self.heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=0.02)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: (batch, tokens, width); bias: (heads, tokens, tokens), or one per clip."""
        q, k, v = (project(x).unflatten(2, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        gates = self.grep_linear(q).unflatten(3, (2, 4)).sum(4).sigmoid().transpose(1, 2)
        opened, reset = gates[..., :1], gates[..., 1:]
        gate = opened * (reset * self.grep_a - 1.0) + 2.0  # (batch, heads, tokens, 1)
        mask = (gate * bias).to(q.dtype)
        if mask.requires_grad:  # if only the mask does, torch's CUDA kernel reads stray memory (pytorch issue 148476)
            v.requires_grad_()
        heard = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return self.out_proj(heard.transpose(1, 2).flatten(2))

    def position_bias(self, tokens: int, device: torch.device) -> Tensor:
        """The bias for every query (row) and key (column): (heads, tokens, tokens)."""
        buckets = distance_buckets(tokens, self.buckets, self.max_distance, str(device))
        by_distance = self.relative_attention_bias(buckets).T  # (heads, 2 * tokens - 1)
        return by_distance.unfold(1, tokens, 1).flip(1)  # the last query sees the most negative distances


@functools.lru_cache(maxsize=32)
def distance_buckets(tokens: int, buckets: int, max_distance: int, device: str) -> Tensor:
    """The bucket of every distance from 1 - tokens to tokens - 1, key minus query: (2 * tokens - 1,), int64.

    Half of the buckets are for keys after the query. In each half, the first half has one distance per bucket, the
    rest is logarithmic up to max_distance; larger distances share the last one. As in T5 (Raffel et al. 2020, section
    2.1). Cached for the next call, on the requested device.
    """
    with torch.inference_mode(False):
        distances = torch.arange(1 - tokens, tokens, device="cpu")
        half = buckets // 2
        exact = half // 2
        far = distances.abs().clamp(min=exact)
        logarithmic = torch.log(far / exact) / math.log(max_distance / exact) * (half - exact)
        one_sided = torch.where(distances.abs() < exact, distances.abs(), exact + logarithmic.long()).clamp(
            max=half - 1
        )
        return (one_sided + half * (distances > 0)).to(device)
