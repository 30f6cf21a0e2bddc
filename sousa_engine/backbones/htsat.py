"""HTS-AT, the Hierarchical Token-Semantic Audio Transformer: variants, roles of its modules, names. No torch.

Chen, Du, Zhu, Ma, Berg-Kirkpatrick, Dubnov: "HTS-AT: A Hierarchical Token-Semantic Audio Transformer for Sound
Classification and Detection", ICASSP 2022. The network is our own (htsat_network.py) under the authors' names, so
`translate` only has to remove a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sousa_engine.backbones.embedded import mini
from sousa_engine.backbones.spec import Download, Variant
from sousa_engine.frontends import FrontEndSpec

# Path here -> path in transformers' ClapAudioModel, whose query, key and value are one matrix here.
OLD_NAMES = (
    (r"\.attn\.proj$", ".attention.output.dense"),
    (r"\.mlp\.fc1$", ".intermediate.dense"),
    (r"\.mlp\.fc2$", ".output.dense"),
)

# In the authors' file but not in our state dict: the tables of their front end, of shapes (513, 1, 1024) twice and
# (513, 64); a linear head, classes x classes, which they never call; and tables that follow from the architecture.
LEFTOVERS = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
    "head.weight",
    "head.bias",
)
DERIVED = ("attn_mask", "relative_position_index")

FIRST_BLOCKS = (0, 2, 4, 10)
"""Number of each stage's first block, counted through a network of depths 2, 2, 6. Shallower stages leave gaps."""

ROLES = {
    "bn0": "norm",
    "patch_embed.proj": "patch",
    "qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "fc1": "mlp.in",
    "fc2": "mlp.out",
    "reduction": "merge",
    "norm": "norm",
    "norm1": "norm",
    "norm2": "norm",
    "tscam_conv": "head",
}


def role(path: str) -> tuple[str, int | None]:
    """The role of the module at `path`, and the number of its block."""
    names = path.split(".")
    found = ROLES.get(names[-1]) or ROLES.get(".".join(names[-2:]), "")
    block = re.match(r"layers\.(\d+)\.blocks\.(\d+)(?=\.|$)", path)
    return found, FIRST_BLOCKS[int(block[1])] + int(block[2]) if block else None


def networks() -> ModuleType:
    """The half of this family that imports torch."""
    from sousa_engine.backbones import htsat_network

    return htsat_network


def variants() -> tuple[Variant, ...]:
    audioset = {
        "num_mel_bins": 64,
        "spec_size": 256,
        "patch_size": 4,
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (4, 8, 16, 32),
        "window_size": 8,
    }
    published = (
        Variant(
            name="htsat-audioset",
            family="htsat",
            aliases=("htsat",),
            title="HTS-AT",
            description="Transformer with attention in shifted windows and patches that merge from stage to stage, "
            "trained on ImageNet and AudioSet.",
            licence="MIT",
            source="Chen et al. 2022, arXiv:2202.00874; AudioSet weights HTSAT_AudioSet_Saved_1",
            download=Download(
                page="https://drive.google.com/drive/folders/1f5VYMk0uos_YnuBshgmaTVioXbs7Kmz6",
                file="HTSAT_AudioSet_Saved_1.ckpt",
                url=None,
                note="Any file from HTSAT_AudioSet_Saved_1.ckpt to HTSAT_AudioSet_Saved_6.ckpt fits.",
            ),
            embedded=False,
            needs="AudioSet weights: download a file by hand from the authors' Google Drive and import it.",
            head_path="tscam_conv",
            front_end=front_end(audioset["num_mel_bins"]),
            architecture=audioset,
        ),
    )
    small = mini(
        published[0],
        "htsat-mini",
        title="HTS-AT mini",
        description="A small HTS-AT: two stages of 2 and 4 blocks, trained for this project on drum strokes.",
    )
    return (*published, small)


def front_end(mel_bins: int, hop_ms: float = 10.0) -> FrontEndSpec:
    """Section 3.1 of the paper: 32 kHz, 1024-sample frames every 320, decibels; the network's bn0 normalises them."""
    return FrontEndSpec(
        kind="htsat",
        sample_rate_hz=32000,
        mel_bins=mel_bins,
        frame_ms=32.0,
        hop_ms=hop_ms,
        low_hz=50.0,
        high_hz=14000.0,
        floor=1e-10,
        remove_mean=False,
        mean=0.0,
        std=0.5,
        min_frames=16,
        max_frames=6000,
    )


def translate(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict in the authors' names, with or without Lightning's `sed_model.` -> the tensors that we use."""
    named = {key.removeprefix("sed_model."): value for key, value in state.items()}
    return {
        key: value for key, value in named.items() if key not in LEFTOVERS and key.rpartition(".")[2] not in DERIVED
    }
