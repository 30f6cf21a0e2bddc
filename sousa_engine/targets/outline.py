"""The module tree of a backbone as data, with the modules that LoRA can adapt. Never imports torch.

Read from a committed outline (JSON, made from the real network and tested to equal it), so that neither a page nor the
command line builds the network: that costs 8 s and 360 MiB, an outline some milliseconds.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sousa_engine.core.config import TargetModule
from sousa_engine.core.errors import TargetError, nearest, unknown

OUTLINES = Path(__file__).with_name("outlines")


@dataclass(frozen=True, kw_only=True)
class ModuleNode:
    """One module of the network.

    path: dotted, "" for the root. kind: "Linear", "Conv2d", ... if LoRA supports the module's weight, else "".
    shape: of its weight, () if none. parameters: of the complete subtree; own_parameters: of the module alone.
    role: "attention.query", "mlp.in", "patch", "norm", "head", ... or "". layer: number of its block, or None.
    reason: why a module with a weight cannot be adapted, else "". old_path: its name in older releases of the
    library, "" if it never changed.
    """

    path: str
    class_name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    own_parameters: int
    role: str
    layer: int | None
    adaptable: bool
    reason: str
    old_path: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """All modules of one variant in pre-order, root first. Sizes are those of a network for num_classes classes."""

    variant: str
    family: str
    num_classes: int
    head_path: str
    total_parameters: int
    parameters_per_class: int
    versions: Mapping[str, str]
    nodes: tuple[ModuleNode, ...]
    _by_path: Mapping[str, ModuleNode] = field(repr=False)

    def node(self, path: str) -> ModuleNode:
        """The module at `path`. Raises TargetError with the nearest names."""
        if path not in self._by_path:
            raise TargetError(missing(self, path))
        return self._by_path[path]

    def targets(self, paths: Iterable[str]) -> tuple[TargetModule, ...]:
        """The targets that a run stores for ticked paths. Raises TargetError for a module that cannot be adapted."""
        found = []
        for path in paths:
            node = self.node(path)
            if not node.adaptable:
                raise TargetError(f"{path!r} cannot be adapted: {why_not(self, node)}")
            found.append(TargetModule(path=path, kind=node.kind, shape=node.shape))
        return tuple(found)

    def alike(self, path: str) -> tuple[str, ...]:
        """Paths of the same module in every layer, in tree order, including `path`."""
        like = self.node(path)
        mask = _without_numbers(path)
        return tuple(
            node.path
            for node in self.nodes
            if (node.class_name, node.role) == (like.class_name, like.role) and _without_numbers(node.path) == mask
        )

    def in_head(self, path: str) -> bool:
        return path == self.head_path or path.startswith(self.head_path + ".")

    @property
    def head_layer(self) -> ModuleNode:
        """The layer of the head with one row per class, which LoRA adapts under head=lora."""
        layers = [n for n in self.nodes if self.in_head(n.path) and n.kind and n.shape[0] == self.num_classes]
        return layers[-1]


def load_outline(variant_or_family: str) -> Outline:
    """The outline of a variant ("ast-base") or of a family's published variant ("ast"). Raises UnknownNameError."""
    names = _outline_names()
    if variant_or_family not in names:
        raise unknown("backbone", variant_or_family, names)
    return _read_outline(names[variant_or_family])


@functools.cache
def _outline_names() -> dict[str, Path]:
    """Every name of an outline -> its file: variants, and families for their published variant."""
    names: dict[str, Path] = {}
    for path in sorted(OUTLINES.glob("*.json")):
        names[path.stem] = path
        for alias in json.loads(path.read_text())["aliases"]:
            names[alias] = path
    return names


@functools.cache
def _read_outline(path: Path) -> Outline:
    data = json.loads(path.read_text())
    empty: list[Any] = ["", "", (), 0, "", None, ""]  # columns after the path; a row omits empty ones at its end
    rows: list[list[Any]] = [row + empty[len(row) - 1 :] for row in data["nodes"]]
    sizes = [row[4] for row in rows]
    ends = _subtree_ends([row[0] for row in rows])
    nodes = tuple(
        ModuleNode(
            path=module,
            class_name=class_name,
            kind=kind,
            shape=tuple(shape),
            parameters=sum(sizes[i : ends[i]]),
            own_parameters=own,
            role=role,
            layer=layer,
            adaptable=bool(kind) and not reason,
            reason=reason,
            old_path=_old_path(module, data["old_names"]),
        )
        for i, (module, class_name, kind, shape, own, role, layer, reason) in enumerate(rows)
    )
    return Outline(
        variant=data["variant"],
        family=data["family"],
        num_classes=data["num_classes"],
        head_path=data["head_path"],
        total_parameters=nodes[0].parameters,
        parameters_per_class=data["parameters_per_class"],
        versions=data["versions"],
        nodes=nodes,
        _by_path={node.path: node for node in nodes},
    )


def _subtree_ends(paths: list[str]) -> list[int]:
    """Index after the subtree of each path; the list is in pre-order, so a subtree is contiguous."""
    ends = [len(paths)] * len(paths)
    for i, path in enumerate(paths):
        for j in range(i + 1, len(paths)):
            if path and not paths[j].startswith(path + "."):
                ends[i] = j
                break
    return ends


def _old_path(path: str, old_names: Sequence[Sequence[str]]) -> str:
    """The name of `path` before the library renamed it; an empty replacement in a rule: the module did not exist."""
    old = path
    for pattern, replacement in old_names:
        if re.search(pattern, old):
            if not replacement:
                return ""
            old = re.sub(pattern, replacement, old)
    return "" if old == path else old


def path_today(node: ModuleNode) -> str:
    return node.path


def path_before(node: ModuleNode) -> str:
    return node.old_path or node.path


def named(outline: Outline, entry: str, naming: Callable[[ModuleNode], str]) -> list[ModuleNode]:
    """Modules that `entry` names by PEFT's rule: the complete path, or its end at a dot."""
    return list(_endings(outline, naming).get(entry, ())) if entry else []


@functools.cache
def _endings(outline: Outline, naming: Callable[[ModuleNode], str]) -> dict[str, list[ModuleNode]]:
    """Every end of a path at a dot -> the modules with it, in tree order."""
    found: dict[str, list[ModuleNode]] = {}
    for node in outline.nodes:
        parts = naming(node).split(".")
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), []).append(node)
    return found


def near_names(outline: Outline, entry: str) -> tuple[str, ...]:
    """Current names closest to `entry`, whether that is one name, two, a full path or an old name."""
    names: dict[str, str] = {}
    for node in (node for node in outline.nodes if node.adaptable):
        parts, old = node.path.split("."), path_before(node).split(".")
        short = leaf_names([node])[0]
        names |= {short: short, old[-1]: short, ".".join(old[-2:]): short, ".".join(parts[-2:]): ".".join(parts[-2:])}
        names[node.path] = node.path
    # An index in a Sequential is not a name.
    names = {name: short for name, short in names.items() if not short.isdecimal()}
    parts = entry.split(".")
    plain = [k for k in names if k.count(".") < 2] if len(parts) < 3 else names
    found = nearest(entry, plain, n=6) or nearest(parts[-1], plain, n=6)
    if not found:  # nothing similar: all short names of the tree
        every = leaf_names(node for node in outline.nodes if node.adaptable)
        return tuple(name for name in every if not name.isdecimal())[:8]
    return tuple(dict.fromkeys(names[name] for name in found))[:4]


def leaf_names(nodes: Iterable[ModuleNode]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.name for node in nodes))


def missing(outline: Outline, path: str, *, nearest: Sequence[str] = (), note: str = "") -> str:
    """The message for a name that matches nothing. nearest: names to offer, by default those closest to `path`."""
    version = ", ".join(f"{name} {number}" for name, number in outline.versions.items())
    near = nearest or near_names(outline, path)
    why = f" {note}" if note else ""
    return (
        f"{path!r} is not a module of {outline.variant} ({version}) that LoRA can adapt.{why} "
        f"Nearest: {', '.join(near)}."
    )


def why_not(outline: Outline, node: ModuleNode) -> str:
    if node.reason:
        return node.reason
    return f"{node.path or 'The root'} is {_article(node.class_name)} without a weight that LoRA can adapt."


def _article(class_name: str) -> str:
    return f"an {class_name}" if class_name[:1] in "AEIOU" else f"a {class_name}"


def _without_numbers(path: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)
