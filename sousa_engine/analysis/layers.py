"""How much training changed each target of a run: by layer and role, strongest first; and target sets without some.

An update is the change of a weight relative to that weight (lora.update_norms). It does not measure how much a target
contributes to accuracy: only a run without the target shows that. `pruned` and `ablations` define such runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sousa_engine.core.config import RunConfig
from sousa_engine.core.methods import METHODS
from sousa_engine.core.records import UPDATE, MetricPoint
from sousa_engine.targets import Outline

_PARTS = ("query", "key", "value", "qkv", "in", "out")  # of a role, in the order of the module tree's columns


@dataclass(frozen=True, kw_only=True)
class TargetUpdate:
    """One target. norm: ||update|| / ||weight||, a share (0.05: 5 %); None if it was not measured or not finite.

    layer: number of its block, None outside all blocks. role: "" if it has none. parameters: trainable, in its adapter.
    share: of all trainable parameters of the run, head included (0 to 1).
    """

    path: str
    layer: int | None
    role: str
    norm: float | None
    parameters: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Updates:
    """All targets of a run at one step, in tree order. trainable: parameters, head included."""

    step: int
    epoch: int | None
    targets: tuple[TargetUpdate, ...]
    trainable: int

    def without(self, kept: Iterable[str]) -> int:
        """Trainable parameters if only the targets `kept` are adapted; the head is unchanged."""
        remaining = set(kept)
        return self.trainable - sum(target.parameters for target in self.targets if target.path not in remaining)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The targets of one role in one layer. mean: of their norms; None if none were measured."""

    mean: float | None
    targets: tuple[TargetUpdate, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """cells[i][j]: layers[i], roles[j]; None if it has no targets. Layer None: targets outside all layers."""

    layers: tuple[int | None, ...]
    roles: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


def updates(
    config: RunConfig, outline: Outline, points: Sequence[MetricPoint], trainable: int | None
) -> Updates | None:
    """The targets of a run with their updates from the store; None if there are no updates.

    trainable: the trainable parameters counted by the trainer. A target that is no longer in the outline keeps its norm
    and its parameters; it comes last, without layer and role.
    """
    if not points or not trainable:
        return None
    nodes = {node.path: node for node in outline.nodes}
    place = {path: i for i, path in enumerate(nodes)}
    norms = {point.metric.removeprefix(UPDATE): point.value for point in points}
    method, targets = METHODS[config.lora.method], []
    for target in sorted(config.lora.targets, key=lambda target: place.get(target.path, len(place))):
        node, norm = nodes.get(target.path), norms.get(target.path)
        parameters = method.cost(target.shape, config.lora.ranks.get(target.path, config.lora.r))
        targets.append(
            TargetUpdate(
                path=target.path,
                layer=node.layer if node else None,
                role=node.role if node else "",
                norm=norm if norm is not None and math.isfinite(norm) else None,
                parameters=parameters,
                share=parameters / trainable,
            )
        )
    return Updates(step=points[0].step, epoch=points[0].epoch, targets=tuple(targets), trainable=trainable)


def ranked(found: Updates) -> tuple[TargetUpdate, ...]:
    """Strongest first; targets that were not measured come last."""
    return tuple(sorted(found.targets, key=lambda t: -math.inf if t.norm is None else t.norm, reverse=True))


def strongest(found: Updates, share: float) -> tuple[str, ...]:
    """Paths of the strongest `share` (above 0, up to 1) of the targets, at least one, in tree order."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be greater than 0 and at most 1 (got {share!r}).")
    count = math.ceil(round(share * len(found.targets), 9))
    chosen = {target.path for target in ranked(found)[:count]}
    return tuple(target.path for target in found.targets if target.path in chosen)


def grid(found: Updates) -> Grid:
    """Layers by roles, ordered as in the module tree: outside first; roles in groups, in the order of the network."""
    layers = tuple(sorted({target.layer for target in found.targets}, key=lambda layer: -1 if layer is None else layer))
    roles = _roles(target.role for target in found.targets)
    return Grid(
        layers=layers,
        roles=roles,
        cells=tuple(
            tuple(_cell([t for t in found.targets if (t.layer, t.role) == (layer, role)]) for role in roles)
            for layer in layers
        ),
    )


def pruned(config: RunConfig, paths: Iterable[str]) -> RunConfig:
    """The same config with only these of its targets, and an automatic name. Nothing else differs.

    Raises ValueError for a path that is not one of its targets.
    """
    kept = set(paths)
    if unknown := kept - {target.path for target in config.lora.targets}:
        raise ValueError(f"{min(unknown)} is not a target of this run.")
    values = config.model_dump(mode="json")
    lora = values["lora"]
    lora["targets"] = [target for target in lora["targets"] if target["path"] in kept]
    lora["rank_pattern"] = [(path, rank) for path, rank in lora["rank_pattern"] if path in kept]
    return RunConfig.model_validate({**values, "name": "", "lora": {**lora, "target_set": ""}})


def ablations(outline: Outline, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name -> paths in tree order: the sets to train to find out which targets are needed.

    "all"; "without ROLE" and "ROLE alone" for each role; "early layers" and "late layers": the halves of the layers
    that occur (the middle one of an odd number is late), without targets outside all layers. Empty sets are left out,
    and equal sets appear once, under their first name. The head is never included: it has its own policy. Raises
    TargetError for a path that is not a module.
    """
    chosen = {path for path in paths if not outline.in_head(outline.node(path).path)}
    nodes = [node for node in outline.nodes if node.path in chosen]
    layers = sorted({node.layer for node in nodes if node.layer is not None})
    early = layers[: len(layers) // 2]
    roles = _roles(node.role for node in nodes)
    sets = {"all": nodes}
    sets |= {f"without {role or 'other'}": [node for node in nodes if node.role != role] for role in roles}
    sets |= {f"{role or 'other'} alone": [node for node in nodes if node.role == role] for role in roles}
    if early:
        sets["early layers"] = [node for node in nodes if node.layer in early]
        sets["late layers"] = [node for node in nodes if node.layer is not None and node.layer not in early]
    named: dict[tuple[str, ...], str] = {}
    for name, members in sets.items():
        if members:
            named.setdefault(tuple(node.path for node in members), name)
    return {name: members for members, name in named.items()}


def _roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Each role once: groups in order of appearance, within a group in the order of the module tree."""
    found = list(dict.fromkeys(roles))
    groups = list(dict.fromkeys(role.partition(".")[0] for role in found))

    def place(role: str) -> tuple[int, int]:
        group, _, part = role.partition(".")
        return groups.index(group), _PARTS.index(part) if part in _PARTS else -1

    return tuple(sorted(found, key=place))


def _cell(targets: list[TargetUpdate]) -> Cell | None:
    if not targets:
        return None
    norms = [target.norm for target in targets if target.norm is not None]
    return Cell(mean=sum(norms) / len(norms) if norms else None, targets=tuple(targets))
