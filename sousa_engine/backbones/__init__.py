"""The backbones one can choose, and the door to build them. Importing this never imports torch."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sousa_engine.backbones import ast, pretrained
from sousa_engine.backbones.spec import FrontEndSpec, Network, Variant, WeightsState
from sousa_engine.errors import WeightsError, unknown
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "FrontEndSpec",
    "Network",
    "Variant",
    "WeightsState",
    "build",
    "family",
    "import_weights",
    "logits",
    "variant",
    "weights_state",
]

FAMILIES: dict[str, ModuleType] = {"ast": ast}
VARIANTS: dict[str, Variant] = {found.name: found for module in FAMILIES.values() for found in module.variants()}


def variant(name: str) -> Variant:
    """A variant by its name, or a family's published variant by the family's name. Raises UnknownNameError."""
    named = VARIANTS | {alias: found for found in VARIANTS.values() for alias in found.aliases}
    if name not in named:
        raise unknown("backbone", name, named)
    return named[name]


def family(variant: Variant) -> ModuleType:
    """The module of a variant's family: roles, old names, translate, and networks() for the half with torch."""
    return FAMILIES[variant.family]


def weights_state(name: str, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """What `build` would load, or a sentence that names the ways out. Asks the network for at most 3 s."""
    return pretrained.weights_state(variant(name), workspace, weights)


def import_weights(name: str, file: Path, workspace: Workspace) -> WeightsState:
    """Take a weights file into the workspace, once its key tree is seen to fit. Raises WeightsError."""
    chosen = variant(name)
    return pretrained.import_weights(chosen, family(chosen), file, workspace)


def build(name: str, *, num_classes: int, weights: str = "pretrained", workspace: Workspace, seed: int = 0) -> Network:
    """A backbone with a new head for num_classes classes, in float32 on the CPU. Imports torch.

    weights: "pretrained", "random" (a control), or a path to a weights file or folder. The head is always new, drawn
    from `seed`: AudioSet's 527 classes, or whatever a file brings, are left away. Raises WeightsError; there is no
    fallback from one kind of weights to another.
    """
    chosen = variant(name)
    state = pretrained.weights_state(chosen, workspace, weights)
    if not state.available:
        raise WeightsError(state.message)
    module = family(chosen).networks().network(chosen, num_classes, seed)
    label = state.label
    if weights != "random":
        label = pretrained.load_pretrained(module, chosen, family(chosen), state)
    return Network(
        module=module,
        variant=chosen,
        spec=chosen.front_end,
        weights_label=label,
        head_path=chosen.head_path,
        num_classes=num_classes,
    )


def logits(module: nn.Module, features: Tensor, spec: FrontEndSpec) -> Tensor:
    """features: (batch, frames, mel bins), log-mel as log_mel gives it. Returns logits (batch, classes).

    Takes any number of frames from spec.min_frames to spec.max_frames; raises DataError outside. Shorter clips are
    not padded: the network sees the frames there are.
    """
    from sousa_engine import frontends

    spec.check(features.shape[1])
    output = module(frontends.normalise(features.float(), spec))
    return getattr(output, "logits", output)
