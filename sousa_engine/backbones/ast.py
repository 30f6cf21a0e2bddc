"""AST, the Audio Spectrogram Transformer: variants, roles of its modules, names old and new. Facts only, no torch.

Gong, Chung, Glass: "AST: Audio Spectrogram Transformer", Interspeech 2021. The network is transformers' own
ASTForAudioClassification (ast_network.py). Transformers 5.9 renamed its modules; files on the hub keep the old names,
and the authors' own file uses different names again. `translate` reads all three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sousa_engine.backbones.embedded import mini
from sousa_engine.backbones.spec import Download, Variant
from sousa_engine.frontends import FrontEndSpec

LONGEST = 6000
"""Frames. Beyond the table's length (1024 frames in AST base) the position embeddings are stretched."""

# Path in current transformers -> path before 5.9; an empty replacement: the module did not exist.
OLD_NAMES = (
    (r"\.attention\.q_proj$", ".attention.attention.query"),
    (r"\.attention\.k_proj$", ".attention.attention.key"),
    (r"\.attention\.v_proj$", ".attention.attention.value"),
    (r"\.attention\.o_proj$", ".attention.output.dense"),
    (r"\.mlp\.fc1$", ".intermediate.dense"),
    (r"\.mlp\.activation_fn$", ".intermediate.intermediate_act_fn"),
    (r"\.mlp\.fc2$", ".output.dense"),
    (r"\.layers\.\d+\.(mlp|dropout)$", ""),
    (r"\.layers(?=\.|$)", ".encoder.layer"),
)

ROLES = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "attention.out",
    "fc1": "mlp.in",
    "fc2": "mlp.out",
    "projection": "patch",
    "layernorm": "norm",
    "layernorm_before": "norm",
    "layernorm_after": "norm",
}


def role(path: str) -> tuple[str, int | None]:
    """The role of the module at `path`, and the number of its layer."""
    layer = re.search(r"\.layers\.(\d+)(?=\.|$)", path)
    found = "head" if path.split(".")[0] == "classifier" else ROLES.get(path.rpartition(".")[2], "")
    return found, int(layer[1]) if layer else None


def networks() -> ModuleType:
    """The half of this family that imports torch and transformers."""
    from sousa_engine.backbones import ast_network

    return ast_network


def variants() -> tuple[Variant, ...]:
    base = Variant(
        name="ast-base",
        family="ast",
        aliases=("ast",),
        title="AST base",
        description="Transformer over 16 x 16 patches of a log-mel spectrogram, trained on ImageNet and AudioSet.",
        licence="BSD-3-Clause",
        source="Gong et al. 2021, arXiv:2104.01778; AudioSet weights 10-10-0.4593",
        download=Download(
            page="https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593",
            file="model.safetensors",
            url="https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593/resolve/main/model.safetensors",
            size_bytes=346_404_948,
            sha256="ae0c1e2ad4e1381d851fa9bf298ba13ebc9c5a914cdee2dbe427a6583869924d",
            note="The authors' own audioset_10_10_0.4593.pth can be imported too.",
        ),
        embedded=False,
        needs="346 MB of AudioSet weights: import a file, or download them from the Hugging Face hub.",
        head_path="classifier",
        front_end=FrontEndSpec(
            sample_rate_hz=16000,
            mel_bins=128,
            mean=-4.2677393,
            std=4.5689974,
            min_frames=16,
            max_frames=LONGEST,
        ),
        architecture={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "patch_size": 16,
            "frequency_stride": 10,
            "time_stride": 10,
            "num_mel_bins": 128,
            "max_length": 1024,
        },
    )
    return (
        base,
        mini(
            base,
            "ast-mini",
            title="AST mini",
            description="A small Audio Spectrogram Transformer, 4 × 192, trained for this project on drum strokes.",
        ),
    )


def translate(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict in any of AST's three naming schemes -> current names. Tensors are split, never copied or converted.

    In the authors' file q, k and v are one matrix of 3 x width rows, in this order; `v.head` and `v.head_dist` are
    remnants of ImageNet training that the network never uses.
    """
    today: dict[str, Any] = {}
    for key, value in state.items():
        path, _, parameter = key.rpartition(".")
        if key in _OFFICIAL_TOP:
            today[_OFFICIAL_TOP[key]] = value
        elif block := re.fullmatch(r"v\.blocks\.(\d+)\.(.+)", path):
            stem = f"audio_spectrogram_transformer.layers.{block[1]}"
            if block[2] == "attn.qkv":
                for name, part in zip("qkv", value.chunk(3, dim=0), strict=True):
                    today[f"{stem}.attention.{name}_proj.{parameter}"] = part
            else:
                today[f"{stem}.{_OFFICIAL_BLOCK.get(block[2], block[2])}.{parameter}"] = value
        elif path in _OFFICIAL_PATHS:
            today[f"{_OFFICIAL_PATHS[path]}.{parameter}"] = value
        elif path not in ("v.head", "v.head_dist"):
            for pattern, replacement in _FROM_OLD:
                path = re.sub(pattern, replacement, path)
            today[f"{path}.{parameter}" if path else key] = value
    return today


_OFFICIAL_TOP = {
    "v.cls_token": "audio_spectrogram_transformer.embeddings.cls_token",
    "v.dist_token": "audio_spectrogram_transformer.embeddings.distillation_token",
    "v.pos_embed": "audio_spectrogram_transformer.embeddings.position_embeddings",
}
_OFFICIAL_PATHS = {
    "v.patch_embed.proj": "audio_spectrogram_transformer.embeddings.patch_embeddings.projection",
    "v.norm": "audio_spectrogram_transformer.layernorm",
    "mlp_head.0": "classifier.layernorm",
    "mlp_head.1": "classifier.dense",
}
_OFFICIAL_BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
_FROM_OLD = (
    (r"\.encoder\.layer(?=\.)", ".layers"),
    (r"\.attention\.attention\.query$", ".attention.q_proj"),
    (r"\.attention\.attention\.key$", ".attention.k_proj"),
    (r"\.attention\.attention\.value$", ".attention.v_proj"),
    (r"\.attention\.output\.dense$", ".attention.o_proj"),
    (r"\.intermediate\.dense$", ".mlp.fc1"),
    (r"\.(\d+)\.output\.dense$", r".\1.mlp.fc2"),
)
