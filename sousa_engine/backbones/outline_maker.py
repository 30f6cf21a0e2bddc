"""Write the committed outlines from the real networks: python -m sousa_engine.backbones.outline_maker [VARIANT ...]

Run it after an architecture or transformers has changed; the diff of the JSON shows what was renamed.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sousa_engine import __version__, backbones
from sousa_engine.backbones.spec import Variant
from sousa_engine.targets import OUTLINES

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTED = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding")
NUM_CLASSES = 40


def outline(variant: Variant) -> dict[str, Any]:
    """The outline of `variant` as committed. Built without memory for the weights."""
    import torch

    family = backbones.family(variant)
    with torch.device("meta"):
        module = family.networks().network(variant, NUM_CLASSES, 0)
        more_classes = family.networks().network(variant, NUM_CLASSES + 1, 0)
    return {
        "variant": variant.name,
        "family": variant.family,
        "aliases": list(variant.aliases),
        "num_classes": NUM_CLASSES,
        "head_path": variant.head_path,
        "parameters_per_class": _size(more_classes) - _size(module),
        "versions": {"transformers": version("transformers")}
        if variant.family == "ast"
        else {"sousa-engine": __version__},
        "old_names": [list(rule) for rule in family.OLD_NAMES],
        "columns": ["path", "class_name", "kind", "shape", "own_parameters", "role", "layer", "reason"],
        "nodes": [_row(path, child, *family.role(path)) for path, child in module.named_modules()],
    }


def text(data: dict[str, Any]) -> str:
    """JSON with one module per line, so that a diff names the modules that changed."""
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in data.items() if key != "nodes")
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in data["nodes"])
    return f'{{\n{head}"nodes": [\n{rows}\n]\n}}\n'


def _row(path: str, module: nn.Module, role: str, layer: int | None) -> list[Any]:
    """One line of the outline, without the empty columns at its end."""
    weight = _weight(module)
    name = _class_name(module)
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    row = [
        path,
        name,
        name if name in ADAPTED else "",
        list(weight.shape) if weight is not None else [],
        own,
        role,
        layer,
        _reason(module),
    ]
    empty = (None, None, "", [], 0, "", None, "")
    while type(row[-1]) is type(empty[len(row) - 1]) and row[-1] == empty[len(row) - 1]:
        row.pop()
    return row


def _reason(module: nn.Module) -> str:
    """Why LoRA cannot adapt a module that has a weight; "" if it can, or if the module has no weight."""
    name, weight = _class_name(module), _weight(module)
    if weight is None:
        return ""
    if getattr(module, "groups", 1) > 1 and name in ADAPTED:
        return f"A convolution in {module.groups} groups: its LoRA could not be merged back."
    if name not in ADAPTED:
        if weight.ndim == 1:
            return f"LoRA adapts matrices; the weight of {name} is a vector."
        return f"{name} mixes its filters for each clip; LoRA can only adapt fixed weights."
    return ""


def _weight(module: nn.Module) -> Tensor | None:
    from torch import Tensor

    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None  # a weight norm's container has a module named weight


def _class_name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")  # weight norm creates a separate class


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    for chosen in sys.argv[1:] or backbones.VARIANTS:
        path = OUTLINES / f"{backbones.variant(chosen).name}.json"
        path.write_text(text(outline(backbones.variant(chosen))))
        print(f"{path.name}: {path.stat().st_size:,} bytes")
