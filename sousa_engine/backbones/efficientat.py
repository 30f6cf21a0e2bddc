"""EfficientAT: convolutional networks distilled from transformers. Variants, roles of modules. Facts only, no torch.

Schmid, Koutini, Widmer: "Efficient Large-scale Audio Tagging via Transformer-to-CNN Knowledge Distillation", ICASSP
2023 (mn), and "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models", IEEE/ACM TASLP 2024
(dymn). Module and parameter names are the authors'; their files load unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sousa_engine.backbones.embedded import mini
from sousa_engine.backbones.spec import Download, Variant
from sousa_engine.frontends import FrontEndSpec

# Path here -> path in torchvision's MobileNetV3, whose squeeze-excitation is one module fewer.
OLD_NAMES = ((r"\.conc_se_layers\.0\.(fc[12])$", r".\1"),)
LEFTOVERS: dict[str, tuple[int, ...]] = {}  # tensors in the authors' files that our network does not have

RELEASE = "https://github.com/fschmid56/EfficientAT/releases"

ROLES = (  # the first pattern that matches the complete path counts
    (r"classifier\.2", "mlp.in"),
    (r"classifier(\.[015])?", "head"),
    (r"features\.0\.0|in_c\.0", "conv"),
    (r"features\.16\.0|out_c\.0", "pointwise"),
    (r"(features\.1|layers\.0)\.block\.0\.0", "depthwise"),  # the first block does not widen: one conv fewer
    (r"(features\.1|layers\.0)\.block\.1\.0", "pointwise"),
    (r".*\.(block\.1\.0|depth_conv)", "depthwise"),
    (r".*\.(block\.[023]\.0|exp_conv|proj_conv|joint_conv|conv_[ft])", "pointwise"),
    (r".*\.fc[12]", "se"),
    (r".*\.(residuals|coef_net)\.0", "gate"),
    (r"features\.(0|16)\.1|(in|out)_c\.1|.*\.block\.\d\.1|.*_norm", "norm"),
)


def role(path: str) -> tuple[str, int | None]:
    """The role of the module at `path`, and the number of its block, 0 to 14; for networks of width 0.2 and more."""
    found = next((role for pattern, role in ROLES if re.fullmatch(pattern, path)), "")
    block = re.match(r"(features|layers)\.(\d+)(?=\.|$)", path)
    number = int(block[2]) - (block[1] == "features") if block else -1
    return found, number if 0 <= number < 15 else None


def networks() -> ModuleType:
    """The half of this family that imports torch."""
    from sousa_engine.backbones import efficientat_network

    return efficientat_network


def variants() -> tuple[Variant, ...]:
    published = (
        _variant("mn04_as", "mn04_as_mAP_432.pt", 4, "0.4 of MobileNetV3's width", {"width": 0.4}),
        _variant("mn10_as", "mn10_as_mAP_471.pt", 20, "MobileNetV3's own width", {"width": 1.0}, ("efficientat",)),
        _variant("mn20_as", "mn20_as_mAP_478.pt", 72, "twice MobileNetV3's width", {"width": 2.0}),
        _variant("mn40_as_ext", "mn40_as_ext_mAP_487.pt", 275, "four times MobileNetV3's width", {"width": 4.0}),
        _variant(
            "mn10_as_fc",
            "mn10_as_fc_mAP_465.pt",
            14,
            "MobileNetV3's own width, with a single convolution as its head",
            {"width": 1.0, "head": "fc"},
        ),
        _variant("dymn04_as", "dymn04_as.pt", 8, "0.4 of MobileNetV3's width", {"width": 0.4} | _DYNAMIC),
        _variant("dymn10_as", "dymn10_as.pt", 43, "MobileNetV3's own width", {"width": 1.0} | _DYNAMIC),
        _variant("dymn20_as", "dymn20_as_mAP_493.pt", 161, "twice MobileNetV3's width", {"width": 2.0} | _DYNAMIC),
    )
    small = mini(
        published[1],
        "efficientat-mini",
        title="EfficientAT mini",
        description="A small EfficientAT: 0.3 of MobileNetV3's width, trained for this project on drum strokes.",
    )
    return (*published, small)


def translate(state: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' names are ours."""
    return dict(state)


_DYNAMIC = {"dynamic": "all", "temperature": 1.0}


def _variant(
    name: str, file: str, megabytes: int, width: str, architecture: Mapping[str, Any], aliases: tuple[str, ...] = ()
) -> Variant:
    dynamic = "dynamic" in architecture
    precision = re.search(r"mAP_(\d+)", file)
    return Variant(
        name=name,
        family="efficientat",
        aliases=aliases,
        title=f"EfficientAT {name}",
        description=(
            f"Convolutional network{' with filters that depend on the clip' if dynamic else ''}, {width}, "
            f"distilled from transformers on AudioSet{f' (mAP 0.{precision[1]})' if precision else ''}."
        ),
        licence="MIT",
        source=f"Schmid et al. {'2024, arXiv:2310.15648' if dynamic else '2023, arXiv:2211.04772'}; weights {file}",
        download=Download(page=f"{RELEASE}/tag/v0.0.1", file=file, url=f"{RELEASE}/download/v0.0.1/{file}"),
        embedded=False,
        needs=f"About {megabytes} MB of AudioSet weights: download them from GitHub, or import a file.",
        head_path="classifier" if architecture.get("head") == "fc" else "classifier.5",
        front_end=FrontEndSpec(
            kind="efficientat",
            sample_rate_hz=32000,
            mel_bins=128,
            low_hz=0.0,
            high_hz=15000.0,
            floor=1e-5,
            remove_mean=False,
            mean=-4.5,
            std=2.5,
            min_frames=16,
            max_frames=6000,
        ),
        architecture=architecture,
    )
