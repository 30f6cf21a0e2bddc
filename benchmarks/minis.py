"""The four small backbones of the package: architecture, front end and recipe of each. Contains no training code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sousa_engine import backbones
from sousa_engine.backbones.spec import Variant

CLIP_S = 4.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the weights, besides the scripts and the synthesiser.

    front_end: what differs from the family's published one. window, stride: frames that a step of `embed` sees, and
    from one step to the next.
    """

    variant: str
    like: str  # the published variant whose class this is
    architecture: Mapping[str, Any]
    front_end: Mapping[str, Any] = field(default_factory=dict)
    window: int
    stride: int
    families: int = 2500  # of four patterns each
    renderings: int = 4
    players: int = 300
    seed: int = 20_261_123
    steps: int = 3000
    batch: int = 64  # two renderings of batch / 2 patterns, complete families
    lr: float = 1e-3
    weight_decay: float = 0.05
    muon_lr_factor: float = 2.0  # of the blocks' matrices against everything else
    warmup: int = 150
    w_tags: float = 1.0
    w_sequence: float = 1.0
    w_period: float = 0.3
    w_contrast: float = 0.5
    temperature: float = 0.1


RECIPES = {
    recipe.variant: recipe
    for recipe in (
        Recipe(
            variant="ast-mini",
            like="ast-base",
            architecture={
                "hidden_size": 192,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "intermediate_size": 768,
                "patch_size": 64,
                "frequency_stride": 64,
                "time_stride": 8,
                "max_length": 398,
                "num_mel_bins": 64,
            },
            front_end={"mel_bins": 64, "min_frames": 64},
            window=64,
            stride=8,
        ),
        Recipe(
            variant="efficientat-mini",
            like="mn10_as",
            architecture={"width": 0.3, "head_width": 256, "stem_stride": 2, "strides": [2, [2, 1], 2, [2, 1]]},
            front_end={"mel_bins": 64, "high_hz": 8000.0, "hop_ms": 12.5},
            window=16,
            stride=8,
            families=1250,
            steps=1500,
        ),
        Recipe(
            variant="htsat-mini",
            like="htsat-audioset",
            architecture={
                "num_mel_bins": 64,
                "spec_size": 128,
                "patch_size": 8,
                "embed_dim": 64,
                "depths": [2, 4],
                "num_heads": [4, 8],
                "window_size": 8,
            },
            front_end={"high_hz": 8000.0, "hop_ms": 15.75},  # 254 frames in 4 s, stretched to the 256 that it needs
            window=16,
            stride=16,
            families=1250,
            steps=1500,
        ),
        Recipe(
            variant="beats-mini",
            like="beats-iter3-plus",
            architecture={
                "num_mel_bins": 64,
                "input_patch_size": [16, 64],
                "time_stride": 8,
                "embed_dim": 128,
                "encoder_layers": 4,
                "encoder_embed_dim": 160,
                "encoder_ffn_embed_dim": 640,
                "encoder_attention_heads": 5,
                "conv_pos": 32,
                "conv_pos_groups": 8,
                "num_buckets": 64,
                "max_distance": 64,
            },
            front_end={"mel_bins": 64},
            window=16,
            stride=8,
            steps=1500,
        ),
    )
}


def variant(recipe: Recipe) -> Variant:
    """The backbone of a recipe, not yet normalised: the corpus determines mean and standard deviation."""
    published = backbones.variant(recipe.like)
    front_end = replace(published.front_end, **{"mean": 0.0, "std": 0.5, **recipe.front_end})
    return replace(published, name=recipe.variant, architecture=recipe.architecture, front_end=front_end, aliases=())


def frames(recipe: Recipe) -> int:
    spec = variant(recipe).front_end
    return spec.frames(round(CLIP_S * spec.sample_rate_hz))
