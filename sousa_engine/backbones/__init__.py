"""The available backbones, and the functions that build them. Importing this never imports torch.

network = backbones.build("mn10_as", num_classes=40)              # fresh random weights
network = backbones.build("ast-mini", num_classes=40, weights="pretrained")
network = backbones.load_official("mn10_as", "mn10_as_mAP_471.pt")  # with the file's own head
logits = network(waveforms)                                       # (batch, samples) -> (batch, classes)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones import ast, beats, efficientat, htsat, key_tree, pretrained
from sousa_engine.backbones.spec import Download, Network, Variant, WeightsState
from sousa_engine.core import config, grammar
from sousa_engine.core.errors import WeightsError, unknown
from sousa_engine.frontends import FrontEndSpec
from sousa_engine.workspace import Workspace, default_workspace

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms
    from sousa_engine.workspace.intake import Tell

__all__ = [
    "DEFAULTED",
    "FAMILIES",
    "VARIANTS",
    "Download",
    "FrontEndSpec",
    "Network",
    "Variant",
    "WeightsState",
    "build",
    "default_changes",
    "defaults",
    "downloads",
    "family",
    "inspection",
    "load_official",
    "open_network",
    "pretrained",
    "shelf",
    "spec",
    "variant",
    "weights_state",
]

FAMILIES: dict[str, ModuleType] = {"ast": ast, "efficientat": efficientat, "htsat": htsat, "beats": beats}
VARIANTS: dict[str, Variant] = {found.name: found for module in FAMILIES.values() for found in module.variants()}
DEFAULTED = ("training.lr", "training.head_lr", "training.batch_size")  # fields whose default depends on the backbone


def variant(name: str) -> Variant:
    """The variant that any name of a backbone means: its own name, an alias such as `ast`, or a preset of it.

    Raises UnknownNameError.
    """
    return VARIANTS[defaults(name)["model"]["variant"]]


def defaults(name: str) -> grammar.Draft:
    """The settings of a run that names this backbone and nothing else: `model.variant`, and the backbone's defaults.

    name: as for `variant`. This is the only place where names, variants and defaults meet. Raises UnknownNameError.
    """
    names = _names()
    if name not in names:
        raise unknown("backbone", name, names)
    found = names[name]
    return grammar.preset("model", found) if found in grammar.presets("model") else {"model": {"variant": found}}


def default_changes(old: str, new: str) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> its default under backbone `old` and under `new`, for the fields that differ."""
    pair = [config.build(defaults(name)) for name in (old, new)]
    return {name: (before, after) for name, (before, after) in config.differences(pair).items()}


def _names() -> dict[str, str]:
    """Every name of a backbone -> its preset: variants first, then aliases, then presets under another name. A variant
    without a preset has the general defaults."""
    aliases = {alias: found.name for found in VARIANTS.values() for alias in found.aliases}
    return {name: name for name in VARIANTS} | aliases | {name: name for name in grammar.presets("model")}


def family(variant: Variant) -> ModuleType:
    """The module of a variant's family: roles, old names, translate, and networks() for the half that needs torch."""
    return FAMILIES[variant.family]


def build(
    name: str, *, num_classes: int, weights: str | Path | None = None, workspace: Workspace | None = None, seed: int = 0
) -> TakesWaveforms:
    """A backbone with a new head for num_classes classes, in float32 on the CPU, in training mode. Imports torch.

    Called with waveforms (batch, samples) in [-1, 1] at its front_end.sample_rate_hz, it returns logits (batch,
    classes). weights: None for fresh random weights, "pretrained" (embedded, imported or downloaded), or a path to a
    file or folder. The head is always new, drawn from `seed`. Raises UnknownNameError, WeightsError.
    """
    return open_network(
        name,
        num_classes=num_classes,
        weights="random" if weights is None else str(weights),
        workspace=workspace or default_workspace(),
        seed=seed,
    ).module


def load_official(
    name: str, file: str | Path | Mapping[str, Any], *, num_classes: int | None = None, seed: int = 0
) -> TakesWaveforms:
    """A backbone with everything that a published file holds, including its head, in eval mode. Imports torch.

    file: the path of a published file, or the object that torch.load returns for it, with its own envelope and names.
    With num_classes, the head is new instead (required for a file without a head). Raises WeightsError if tensors are
    missing, have another shape, or are unknown.
    """
    chosen = variant(name)
    return key_tree.official_network(chosen, family(chosen), file, num_classes=num_classes, seed=seed)


def weights_state(name: str, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """The weights that `open_network` would load, or a sentence with the options. Waits at most 3 s for the network."""
    return pretrained.weights_state(variant(name), workspace, weights)


def open_network(
    name: str,
    *,
    num_classes: int,
    weights: str = "pretrained",
    workspace: Workspace,
    seed: int = 0,
    tell: Tell | None = None,
) -> Network:
    """A backbone with a new head, and what it was built from: the trainer's entry. Imports torch.

    weights: "pretrained", "random" (a control), or a path to a weights file or folder. The head is always new, drawn
    from `seed`: the head in a file, such as that for AudioSet's 527 classes, is dropped. Raises WeightsError; there is
    no fallback from one kind of weights to another. tell: called during a download, which it may end by raising.
    """
    chosen = variant(name)
    state = pretrained.weights_state(chosen, workspace, weights)
    if not state.available:
        raise WeightsError(state.message)
    module = family(chosen).networks().network(chosen, num_classes, seed)
    label = state.label
    if weights != "random":
        label = pretrained.load_pretrained(module, chosen, family(chosen), state, workspace, tell)
    return Network(
        module=module,
        variant=chosen,
        spec=chosen.front_end,
        weights_label=label,
        head_path=chosen.head_path,
        num_classes=num_classes,
    )
