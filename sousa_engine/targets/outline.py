"""The module tree of a backbone as data: which modules LoRA can adapt, what a list of names means, what it costs.

Read from a committed outline (JSON, made from the real network and tested equal to it), so that a page or the command
line never builds the network: that costs 8 s and 360 MiB, an outline some milliseconds. Never imports torch.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sousa_engine.core.config import HeadPolicy, TargetModule
from sousa_engine.core.errors import TargetError, nearest, unknown
from sousa_engine.core.methods import METHODS

OUTLINES = Path(__file__).with_name("outlines")

Via = Literal["path", "suffix", "regex", "old name", "all-linear", "none"]


@dataclass(frozen=True, kw_only=True)
class ModuleNode:
    """One module of the network.

    path: dotted, "" for the root. kind: "Linear", "Conv2d", ... where the module has a weight LoRA knows, else "".
    shape: of its weight, () if none. parameters: of the whole subtree; own_parameters: of the module itself.
    role: "attention.query", "mlp.in", "patch", "norm", "head", ... or "". layer: number of its block, or None.
    reason: why a module with a weight cannot be adapted, else "". old_path: its name in older releases of the
    library, "" where it never changed.
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
    """All modules of one variant in pre-order, root first. Sizes are those of a network with num_classes classes."""

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
            raise TargetError(_missing(self, path))
        return self._by_path[path]

    def targets(self, paths: Iterable[str]) -> tuple[TargetModule, ...]:
        """What a run stores of its ticks: path, kind and shape. Raises TargetError for what cannot be adapted."""
        found = []
        for path in paths:
            node = self.node(path)
            if not node.adaptable:
                raise TargetError(f"{path!r} cannot be adapted: {_why_not(self, node)}")
            found.append(TargetModule(path=path, kind=node.kind, shape=node.shape))
        return tuple(found)

    def alike(self, path: str) -> tuple[str, ...]:
        """Paths of the same module in every layer, in tree order, `path` included."""
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
        """The layer of the head that has one row a class: what LoRA adapts under head=lora."""
        layers = [n for n in self.nodes if self.in_head(n.path) and n.kind and n.shape[0] == self.num_classes]
        return layers[-1]


@dataclass(frozen=True, kw_only=True)
class EntryMatch:
    """What one entry of a target list means. today: short names to write instead, where the entry is an old name.

    nearest: names close to an entry that matches nothing. note: a sentence for the user, or "".
    """

    entry: str
    paths: tuple[str, ...]
    via: Via
    today: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A list of target names, matched against an outline. paths: all modules named, in tree order."""

    matches: tuple[EntryMatch, ...]
    paths: tuple[str, ...]

    @property
    def unmatched(self) -> tuple[EntryMatch, ...]:
        return tuple(match for match in self.matches if match.via == "none")

    def targets(self, outline: Outline) -> tuple[TargetModule, ...]:
        return outline.targets(self.paths)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a choice trains. layers: modules that get LoRA, the head's included. adapter_parameters: LoRA outside the
    head; head_parameters: trained in the head, fully or through LoRA. total: the network without any adapter.
    percent: trainable per cent of total."""

    layers: int
    adapter_parameters: int
    head_parameters: int
    trainable: int
    total: int
    percent: float


def load_outline(variant_or_family: str) -> Outline:
    """The outline of a variant ("ast-base") or of a family's published variant ("ast"). Raises UnknownNameError."""
    names = _outline_names()
    if variant_or_family not in names:
        raise unknown("backbone", variant_or_family, names)
    return _read_outline(names[variant_or_family])


def resolve(outline: Outline, entries: Sequence[str]) -> Resolution:
    """Match every entry against the tree; an entry that matches nothing is in `.unmatched`, with the nearest names.

    An entry is a full path, the end of a path at a dot (PEFT's own rule), `/text to find/` as a regular expression,
    a regular expression for the whole path, `all-linear`, or one of the first two in the library's old names. A name
    that means other modules today than it did (`dense`) is read as old if another entry of the list is old.
    """
    cleaned = [entry.strip() for entry in entries]
    speaks_old = any(not _named(outline, entry, _today) and _named(outline, entry, _before) for entry in cleaned)
    matches = tuple(_match(outline, entry, speaks_old) for entry in cleaned)
    chosen = {path for match in matches for path in match.paths}
    return Resolution(matches=matches, paths=tuple(n.path for n in outline.nodes if n.path in chosen))


def resolve_strict(outline: Outline, entries: Sequence[str]) -> Resolution:
    """`resolve`, but the first entry that matches nothing raises TargetError with the nearest names."""
    resolution = resolve(outline, entries)
    for match in resolution.unmatched:
        raise TargetError(_missing(outline, match.entry, match))
    return resolution


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

    ranks: paths with a rank of their own. The head belongs to its policy alone: paths inside it are not counted twice.
    LoRA on a weight of shape (out, in, ...) has r * (out + in * ...) parameters; other methods as methods.cost
    says. BitFit trains the body's biases, full fine-tuning all of the body; both take no paths.
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


def to_yaml(outline: Outline, paths: Iterable[str]) -> str:
    """A `peft_target_modules:` list that means exactly these modules: short names where one is enough, else paths."""
    ticked = set(paths)
    entries: dict[str, None] = {}
    for path in (node.path for node in outline.nodes if node.path in ticked):
        entries[_shortest(outline, path, ticked)] = None
    return "peft_target_modules:\n" + "".join(f"- {entry}\n" for entry in entries)


def grep(outline: Outline, text: str) -> tuple[ModuleNode, ...]:
    """Modules whose path, class or role contains `text`, or is found by `/regex/`. Raises TargetError for a bad one."""
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        try:
            pattern = re.compile(text[1:-1], re.IGNORECASE)
        except re.error as error:
            raise TargetError(f"{text} is not a regular expression: {error}.") from None
    else:
        pattern = re.compile(re.escape(text), re.IGNORECASE)
    return tuple(n for n in outline.nodes if any(pattern.search(s) for s in (n.path, n.class_name, n.role, n.old_path)))


@functools.cache
def _outline_names() -> dict[str, Path]:
    """Every name an outline answers to -> its file: variants, and families for their published variant."""
    names: dict[str, Path] = {}
    for path in sorted(OUTLINES.glob("*.json")):
        names[path.stem] = path
        for alias in json.loads(path.read_text())["aliases"]:
            names[alias] = path
    return names


@functools.cache
def _read_outline(path: Path) -> Outline:
    data = json.loads(path.read_text())
    empty: list[Any] = ["", "", (), 0, "", None, ""]  # columns after the path, left away at the end of a row
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
    """Index just past the subtree of each path; the list is in pre-order, so a subtree is one stretch of it."""
    ends = [len(paths)] * len(paths)
    for i, path in enumerate(paths):
        for j in range(i + 1, len(paths)):
            if path and not paths[j].startswith(path + "."):
                ends[i] = j
                break
    return ends


def _old_path(path: str, old_names: Sequence[Sequence[str]]) -> str:
    """The name of `path` before the library renamed it; a rule with an empty replacement: it had no such module."""
    old = path
    for pattern, replacement in old_names:
        if re.search(pattern, old):
            if not replacement:
                return ""
            old = re.sub(pattern, replacement, old)
    return "" if old == path else old


def _match(outline: Outline, entry: str, speaks_old: bool) -> EntryMatch:
    if entry == "all-linear":
        paths = tuple(node.path for node in outline.nodes if node.kind == "Linear" and node.adaptable)
        return EntryMatch(entry=entry, paths=paths, via="all-linear")
    today = _named(outline, entry, _today)
    before = _named(outline, entry, _before)
    if before and (speaks_old or not today):
        adaptable = {node.path for node in before if node.adaptable}
        names = tuple(dict.fromkeys(_shortest(outline, n.path, adaptable) for n in before if n.adaptable))
        note = f"An old name; today: {', '.join(names)}." if names else ""
        return _usable(outline, entry, before, via="old name", today=names, note=note)
    if today:
        more = [node for node in before if node not in today and node.adaptable]
        note = ""
        if more:
            names = ", ".join(_short_names(more))
            note = (
                f"Only {_list(today)}. In older releases {entry!r} also meant {len(more)} modules now called {names}."
            )
        via: Via = "path" if any(node.path == entry for node in today) else "suffix"
        return _usable(outline, entry, today, via=via, today=_short_names(more), note=note)
    return _match_regex(outline, entry)


def _match_regex(outline: Outline, entry: str) -> EntryMatch:
    if re.fullmatch(r"[\w.\- ]*|//", entry):
        return _nothing(outline, entry, "")
    is_search = entry.startswith("/") and entry.endswith("/")
    try:
        pattern = re.compile(entry[1:-1] if is_search else entry)
    except re.error as error:
        return _nothing(outline, entry, f"Not a regular expression: {error}.")
    find = pattern.search if is_search else pattern.fullmatch
    nodes = [node for node in outline.nodes if find(node.path)]
    usable = tuple(node.path for node in nodes if node.adaptable)
    if not usable:
        return _nothing(outline, entry, "It finds only modules that LoRA cannot adapt." if nodes else "")
    return EntryMatch(entry=entry, paths=usable, via="regex")


def _usable(
    outline: Outline, entry: str, nodes: list[ModuleNode], *, via: Via, today: tuple[str, ...], note: str
) -> EntryMatch:
    """A match of the modules LoRA can adapt; where there are none, say what was hit and what lies inside it."""
    paths = tuple(node.path for node in nodes if node.adaptable)
    if paths:
        left = len(nodes) - len(paths)
        note += (" " if note and left else "") + (f"{left} more cannot be adapted and are left out." if left else "")
        return EntryMatch(entry=entry, paths=paths, via=via, today=today, note=note)
    inside = [n for n in outline.nodes if n.adaptable and any(n.path.startswith(f"{hit.path}.") for hit in nodes)]
    near = tuple(dict.fromkeys(_relative(n.path, nodes) for n in inside)) or _near(outline, entry)
    return EntryMatch(entry=entry, paths=(), via="none", nearest=near[:6], note=_why_not(outline, nodes[0]))


def _nothing(outline: Outline, entry: str, note: str) -> EntryMatch:
    return EntryMatch(entry=entry, paths=(), via="none", nearest=_near(outline, entry), note=note)


def _today(node: ModuleNode) -> str:
    return node.path


def _before(node: ModuleNode) -> str:
    return node.old_path or node.path


def _named(outline: Outline, entry: str, naming: Callable[[ModuleNode], str]) -> list[ModuleNode]:
    """Modules that `entry` names by PEFT's rule: the whole path, or its end at a dot."""
    if not entry:
        return []
    return [node for node in outline.nodes if f".{naming(node)}".endswith(f".{entry}")]


def _near(outline: Outline, entry: str) -> tuple[str, ...]:
    """Names in today's naming closest to `entry`, whether it was meant as one name, two, a full path or an old one."""
    names: dict[str, str] = {}
    for node in (node for node in outline.nodes if node.adaptable):
        parts, old = node.path.split("."), _before(node).split(".")
        short = _short_names([node])[0]
        names |= {short: short, old[-1]: short, ".".join(old[-2:]): short, ".".join(parts[-2:]): ".".join(parts[-2:])}
        names[node.path] = node.path
    names = {
        name: short for name, short in names.items() if not short.isdecimal()
    }  # a place in a Sequential is no name
    parts = entry.split(".")
    plain = [k for k in names if k.count(".") < 2] if len(parts) < 3 else names
    found = nearest(entry, plain, n=6) or nearest(parts[-1], plain, n=6)
    if not found:  # nothing like it: all short names of the tree
        every = _short_names(node for node in outline.nodes if node.adaptable)
        return tuple(name for name in every if not name.isdecimal())[:8]
    return tuple(dict.fromkeys(names[name] for name in found))[:4]


def _missing(outline: Outline, path: str, match: EntryMatch | None = None) -> str:
    version = ", ".join(f"{name} {number}" for name, number in outline.versions.items())
    near = match.nearest if match else _near(outline, path)
    why = f" {match.note}" if match and match.note else ""
    return (
        f"{path!r} is no module of {outline.variant} ({version}) that LoRA can adapt.{why} Nearest: {', '.join(near)}."
    )


def _why_not(outline: Outline, node: ModuleNode) -> str:
    if node.reason:
        return node.reason
    return f"{node.path or 'the root'} is {_article(node.class_name)}: it has no weight of its own that LoRA can adapt."


def _article(class_name: str) -> str:
    return f"an {class_name}" if class_name[:1] in "AEIOU" else f"a {class_name}"


def _short_names(nodes: Iterable[ModuleNode]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.name for node in nodes))


def _relative(path: str, hits: Iterable[ModuleNode]) -> str:
    """`path` seen from the module that was named: the shortest thing to write for what lies inside it."""
    for hit in hits:
        if path.startswith(f"{hit.path}."):
            return f"{hit.name}.{path[len(hit.path) + 1 :]}"
    return path


def _list(nodes: Sequence[ModuleNode]) -> str:
    return nodes[0].path if len(nodes) == 1 else f"{len(nodes)} modules called {', '.join(_short_names(nodes))}"


def _shortest(outline: Outline, path: str, ticked: set[str]) -> str:
    """The shortest end of `path` without a number in it that names ticked modules only, else the path."""
    parts = path.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = parts[start:]
        if any(part.isdigit() for part in end):
            break
        if all(node.path in ticked for node in _named(outline, ".".join(end), _today)):
            return ".".join(end)
    return path


def _bias(node: ModuleNode) -> int:
    """Parameters of a module's bias: as many as its weight has rows, where it has more than its weight."""
    if not node.shape:
        return 0
    weight = math.prod(node.shape)
    more = node.own_parameters - (weight if node.own_parameters >= weight else 0)  # a weight norm holds its own weight
    return node.shape[0] if more == node.shape[0] else 0


def _without_numbers(path: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)
