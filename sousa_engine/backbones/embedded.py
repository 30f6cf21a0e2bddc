"""The small backbones whose weights come with this package: small versions of published ones. Facts only, no torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sousa_engine.backbones.spec import Variant

FOLDER = Path(__file__).parent / "weights"
"""One folder per backbone: model.safetensors, its card config.json, the log of its pre-training."""


def mini(published: Variant, name: str, *, title: str, description: str) -> Variant:
    """`published` with the size and the front end that are given in the card of the embedded backbone `name`."""
    card = json.loads((FOLDER / name / "config.json").read_text())
    return replace(
        published,
        name=name,
        aliases=(),
        title=title,
        description=description,
        licence=card["licence"],
        source=f"this project, {card['made_by']}",
        download=None,
        embedded=True,
        needs="Nothing: its weights come with this package.",
        front_end=replace(published.front_end, **card["front_end"]),
        architecture=card["architecture"],
    )
