"""BEATs: variants, roles of its modules, names in the authors' files. Facts only, no torch.

Chen, Wu, Wang, Liu, Tompkins, Chen, Wei: "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023,
arXiv:2212.09058. The network is our own (beats_network.py); its modules have the names in the authors' files, which
contain {"cfg": settings, "model": state dict[, "label_dict": classes]}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sousa_engine.backbones.embedded import mini
from sousa_engine.backbones.spec import Download, Variant
from sousa_engine.core.errors import WeightsError
from sousa_engine.frontends import FrontEndSpec

# Path here -> path in transformers' WavLM and its relatives.
OLD_NAMES = (
    (r"\.self_attn\.(q|k|v|out)_proj$", r".attention.\1_proj"),
    (r"\.fc1$", ".feed_forward.intermediate_dense"),
    (r"\.fc2$", ".feed_forward.output_dense"),
)

ROLES = {
    "patch_embedding": "patch",
    "post_extract_proj": "patch",
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "out_proj": "attention.out",
    "grep_linear": "gate",
    "relative_attention_bias": "position",
    "fc1": "mlp.in",
    "fc2": "mlp.out",
    "layer_norm": "norm",
    "self_attn_layer_norm": "norm",
    "final_layer_norm": "norm",
}

# The files list the one table of relative positions under every layer; our network has it in layer 0 only.
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"

# Weight norm of the positional convolution: name in the files -> name in current torch.
RENAMED = {
    "encoder.pos_conv.0.weight_g": "encoder.pos_conv.0.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": "encoder.pos_conv.0.parametrizations.weight.original1",
}


def role(path: str) -> tuple[str, int | None]:
    """The role of the module at `path`, and the number of its layer."""
    layer = re.search(r"\.layers\.(\d+)(?=\.|$)", path)
    if path.split(".")[0] == "predictor":
        found = "head"
    elif path == "encoder.pos_conv.0":
        found = "position"
    else:
        found = ROLES.get(path.rpartition(".")[2], "")
    return found, int(layer[1]) if layer else None


def networks() -> ModuleType:
    """The half of this family that imports torch."""
    from sousa_engine.backbones import beats_network

    return beats_network


def variants() -> tuple[Variant, ...]:
    architecture = {
        "encoder_layers": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "embed_dim": 512,
        "input_patch_size": 16,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "num_buckets": 320,
        "max_distance": 800,
        "num_mel_bins": 128,
    }
    same = {
        "family": "beats",
        "licence": "MIT",
        "embedded": False,
        "head_path": "predictor",
        "front_end": front_end(128, min_frames=16),
        "architecture": architecture,
    }
    published = (
        Variant(
            name="beats-iter3-plus",
            aliases=("beats",),
            title="BEATs iter3+",
            description="Transformer over 16 x 16 patches, trained on AudioSet to predict masked sounds.",
            source="Chen et al. 2023, arXiv:2212.09058; self-supervised weights BEATs_iter3+ (AS2M)",
            download=_download(
                "BEATs_iter3_plus_AS2M.pt",
                361_499_833,
                "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
            ),
            needs="361 MB of AudioSet weights: import a file, or download them from a third party's mirror.",
            **same,
        ),
        Variant(
            name="beats-iter3",
            title="BEATs iter3, fine-tuned",
            description="The same Transformer from another round of that training, fine-tuned on AudioSet's labels.",
            source="Chen et al. 2023, arXiv:2212.09058; weights BEATs_iter3 fine-tuned on AS2M (cpt1)",
            download=_download(
                "BEATs_iter3_finetuned_on_AS2M_cpt1.pt",
                363_145_291,
                "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7",
                " The link is unverified.",
            ),
            needs="363 MB of AudioSet weights: import a file, or download them from a third party's mirror.",
            **same,
        ),
    )
    small = mini(
        published[0],
        "beats-mini",
        title="BEATs mini",
        description="A small BEATs: 4 layers × 160, one token every 80 ms, trained for this project on drum strokes.",
    )
    return (*published, small)


def front_end(mel_bins: int, *, min_frames: int) -> FrontEndSpec:
    """Section 4.2 of the paper; mean and standard deviation from the authors' code. min_frames: of one patch."""
    return FrontEndSpec(
        sample_rate_hz=16000,
        mel_bins=mel_bins,
        window="povey",
        scale=2.0**15,
        remove_mean=False,
        mean=15.41663,
        std=6.55582,
        min_frames=min_frames,
        max_frames=6000,
    )


def translate(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict in the authors' names or in ours -> our names; the tensors are unchanged.

    Raises WeightsError if the layers have different tables of relative positions: in BEATs all layers share one.
    """
    ours: dict[str, Any] = {}
    table, first = TABLE.format(0), None
    for key, value in state.items():
        if not re.fullmatch(re.escape(TABLE).replace(r"\{\}", r"\d+"), key):
            ours[RENAMED.get(key, key)] = value
        elif first is None:
            first, ours[table] = key, value
        elif not _same(ours[table], value):
            raise WeightsError(
                f"{key} differs from {first}, but in BEATs all layers share one table of relative positions."
            )
    return ours


def cfg_differences(cfg: Mapping[str, Any], architecture: Mapping[str, Any]) -> list[str]:
    """Settings in a file's `cfg` that differ from this network's, one phrase each; [] if the file fits.

    A setting missing from `cfg` has the default of the authors' code. Settings of training (dropout, layer drop,
    decay of gradients) and of the head are not compared: they do not affect the output of a loaded backbone.
    """
    theirs = {**_DEFAULTS, **cfg}
    ours = {**_FIXED, **architecture}
    return [f"{key} is {theirs[key]!r} in the file, not {ours[key]!r}" for key in _DEFAULTS if theirs[key] != ours[key]]


# The defaults of the authors' BEATsConfig, for settings that a file's cfg lacks, and the settings of our network.
_DEFAULTS = {
    "input_patch_size": -1,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "gru_rel_pos": False,
}
_FIXED = {
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}


def _download(file: str, size_bytes: int, sha256: str, more: str = "") -> Download:
    page = "https://huggingface.co/lpepino/beats_ckpts"
    return Download(
        page=page,
        file=file,
        url=f"{page}/resolve/main/{file}",
        size_bytes=size_bytes,
        sha256=sha256,
        note=f"A third party's mirror, because the authors' links are dead; the file is checked by its sha256.{more}",
    )


def _same(one: Any, other: Any) -> bool:
    return one is other or (one.shape == other.shape and bool((one == other).all()))
