"""How many parameters a selection of targets trains, in adapters and head, by each method's own formula."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sousa_engine.core.config import HeadPolicy
from sousa_engine.core.methods import METHODS
from sousa_engine.targets.outline import ModuleNode, Outline


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a selection trains. layers: modules that get an adapter, including the head's. adapter_parameters: those
    outside the head; head_parameters: trained in the head, fully or through LoRA. total: of the network without
    adapters. percent: trainable as per cent of total."""

    layers: int
    adapter_parameters: int
    head_parameters: int
    trainable: int
    total: int
    percent: float


def count(
    outline: Outline,
    paths: Iterable[str],
    *,
    r: int,
    head: HeadPolicy,
    num_classes: int,
    method: str = "lora",
    ranks: Mapping[str, int] | None = None,
) -> Counts:
    """What a method of rank `r` on `paths` trains, with a head for `num_classes` classes under policy `head`.

    ranks: ranks of single paths. The head follows its policy alone: paths inside it are not counted twice. LoRA on a
    weight of shape (out, in, ...) has r * (out + in * ...) parameters; for other methods see Method.cost. BitFit trains
    the body's biases, full fine-tuning the complete body; neither takes paths.
    """
    chosen, ranks = METHODS[method], ranks or {}
    adapted = {path for path in paths if not outline.in_head(path)}
    if chosen.takes_targets:
        adapters = sum(chosen.cost(outline.node(path).shape, ranks.get(path, r)) for path in adapted)
    else:
        assert not adapted, f"{chosen.title} takes no targets."
        body = [node for node in outline.nodes if not outline.in_head(node.path)]
        adapters = sum(_bias(node) if method == "bitfit" else node.own_parameters for node in body)
    more_classes = (num_classes - outline.num_classes) * outline.parameters_per_class
    head_layer = outline.head_layer
    head_parameters = {
        "train": outline.node(outline.head_path).parameters + more_classes,
        "lora": chosen.cost((num_classes, *head_layer.shape[1:]), r) if chosen.takes_targets else 0,
        "freeze": 0,
    }[head]
    total = outline.total_parameters + more_classes
    trainable = adapters + head_parameters
    return Counts(
        layers=len(adapted) + (head == "lora"),
        adapter_parameters=adapters,
        head_parameters=head_parameters,
        trainable=trainable,
        total=total,
        percent=100 * trainable / total,
    )


def _bias(node: ModuleNode) -> int:
    """Parameters of a module's bias: as many as its weight has rows, if it has more parameters than its weight."""
    if not node.shape:
        return 0
    weight = math.prod(node.shape)
    more = node.own_parameters - (weight if node.own_parameters >= weight else 0)  # a weight norm's is elsewhere
    return node.shape[0] if more == node.shape[0] else 0
