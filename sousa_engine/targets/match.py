"""The modules that an entry of a target list matches: by path, by its end, by search, or by an old name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sousa_engine.core.config import TargetModule
from sousa_engine.core.errors import TargetError
from sousa_engine.targets.outline import (
    ModuleNode,
    Outline,
    leaf_names,
    missing,
    named,
    near_names,
    path_before,
    path_today,
    why_not,
)

_SPECIAL = re.compile(r"[\\^$*+?()\[\]{}|]")  # a name contains none of these
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")  # of q_proj, LayerNorm: q, proj, Layer, Norm

Via = Literal["path", "suffix", "regex", "old name", "all-linear", "none"]


@dataclass(frozen=True, kw_only=True)
class EntryMatch:
    """What one entry of a target list means. today: short names to use instead, if the entry is an old name.

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


def resolve(outline: Outline, entries: Sequence[str]) -> Resolution:
    """Match every entry against the tree; an entry that matches nothing is in `.unmatched`, with the nearest names.

    An entry is a full path, the end of a path at a dot (PEFT's own rule), `/text to find/` as a regular expression,
    a regular expression for the complete path, `all-linear`, or one of the first two in the library's old names. A name
    that now means other modules than before (`dense`) is read as old if another entry of the list is old.
    """
    cleaned = [entry.strip() for entry in entries]
    speaks_old = any(not named(outline, entry, path_today) and named(outline, entry, path_before) for entry in cleaned)
    matches = tuple(_match(outline, entry, speaks_old) for entry in cleaned)
    chosen = {path for match in matches for path in match.paths}
    return Resolution(matches=matches, paths=tuple(n.path for n in outline.nodes if n.path in chosen))


def resolve_strict(outline: Outline, entries: Sequence[str]) -> Resolution:
    """`resolve`, but the first entry that matches nothing raises TargetError with the nearest names."""
    resolution = resolve(outline, entries)
    for match in resolution.unmatched:
        raise TargetError(missing(outline, match.entry, nearest=match.nearest, note=match.note))
    return resolution


def to_yaml(outline: Outline, paths: Iterable[str]) -> str:
    """A `peft_target_modules:` list for exactly these modules: short names if they suffice, otherwise paths."""
    ticked = set(paths)
    entries: dict[str, None] = {}
    for path in (node.path for node in outline.nodes if node.path in ticked):
        entries[_shortest(outline, path, ticked)] = None
    return "peft_target_modules:\n" + "".join(f"- {entry}\n" for entry in entries)


def grep(outline: Outline, text: str) -> tuple[ModuleNode, ...]:
    """Modules whose path, class, role or old path match a search. Raises TargetError for a bad regular expression.

    Every word of the search must occur in one of the names; `mlp`, `in`, `out` and other parts of roles only as a whole
    word, so that `mlp in` does not find every Linear of an MLP. A text in slashes, or with a letter that no name
    contains, is a regular expression. The tree in the browser follows the same rule (components/module_tree/model.js).
    """
    if text.startswith("/") or _SPECIAL.search(text):
        pattern = _search_pattern(text)
        return tuple(n for n in outline.nodes if any(pattern.search(name) for name in _names(n)))
    words = text.casefold().split()
    role_words = {part for node in outline.nodes for part in node.role.split(".")}
    return tuple(node for node in outline.nodes if _has_words(node, words, role_words))


def _search_pattern(text: str) -> re.Pattern[str]:
    try:
        if text.startswith("/") and (len(text) < 2 or not text.endswith("/")):
            raise re.error("the closing / is missing")
        return re.compile(text[1:-1] if text.startswith("/") else text, re.IGNORECASE)
    except re.error as error:
        raise TargetError(f"{text!r} is not a regular expression: {error}.") from None


def _has_words(node: ModuleNode, words: Sequence[str], role_words: Collection[str]) -> bool:
    written = "\n".join(_names(node)).casefold()
    whole = {word.casefold() for name in _names(node) for word in _WORD.findall(name)}
    return all(word in (whole if word in role_words else written) for word in words)


def _names(node: ModuleNode) -> list[str]:
    return [name for name in (node.path, node.class_name, node.role, node.old_path) if name]


def _match(outline: Outline, entry: str, speaks_old: bool) -> EntryMatch:
    if entry == "all-linear":
        paths = tuple(node.path for node in outline.nodes if node.kind == "Linear" and node.adaptable)
        return EntryMatch(entry=entry, paths=paths, via="all-linear")
    today = named(outline, entry, path_today)
    before = named(outline, entry, path_before)
    if before and before != today and (speaks_old or not today):
        adaptable = {node.path for node in before if node.adaptable}
        names = tuple(dict.fromkeys(_shortest(outline, n.path, adaptable) for n in before if n.adaptable))
        note = f"Old name, now {', '.join(names)}." if names else ""
        return _usable(outline, entry, before, via="old name", today=names, note=note)
    if today:
        more = [node for node in before if node not in today and node.adaptable]
        note = ""
        if more:
            names = ", ".join(leaf_names(more))
            note = (
                f"Matches {_list(today)} only. "
                f"In older releases {entry!r} also meant {len(more)} modules, now named {names}."
            )
        via: Via = "path" if any(node.path == entry for node in today) else "suffix"
        return _usable(outline, entry, today, via=via, today=leaf_names(more), note=note)
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
        return _nothing(outline, entry, "It matches only modules that LoRA cannot adapt." if nodes else "")
    return EntryMatch(entry=entry, paths=usable, via="regex")


def _usable(
    outline: Outline, entry: str, nodes: list[ModuleNode], *, via: Via, today: tuple[str, ...], note: str
) -> EntryMatch:
    """A match of the modules that LoRA can adapt; if there are none, the reason and the modules inside those named."""
    paths = tuple(node.path for node in nodes if node.adaptable)
    if paths:
        left = len(nodes) - len(paths)
        note += (" " if note and left else "") + (f"{left} more cannot be adapted and are left out." if left else "")
        return EntryMatch(entry=entry, paths=paths, via=via, today=today, note=note)
    inside = [n for n in outline.nodes if n.adaptable and any(n.path.startswith(f"{hit.path}.") for hit in nodes)]
    near = tuple(dict.fromkeys(_relative(n.path, nodes) for n in inside)) or near_names(outline, entry)
    return EntryMatch(entry=entry, paths=(), via="none", nearest=near[:6], note=why_not(outline, nodes[0]))


def _nothing(outline: Outline, entry: str, note: str) -> EntryMatch:
    return EntryMatch(entry=entry, paths=(), via="none", nearest=near_names(outline, entry), note=note)


def _relative(path: str, hits: Iterable[ModuleNode]) -> str:
    """`path` relative to the module that was named: the shortest name for a module inside it."""
    for hit in hits:
        if path.startswith(f"{hit.path}."):
            return f"{hit.name}.{path[len(hit.path) + 1 :]}"
    return path


def _list(nodes: Sequence[ModuleNode]) -> str:
    return nodes[0].path if len(nodes) == 1 else f"{len(nodes)} modules named {', '.join(leaf_names(nodes))}"


def _shortest(outline: Outline, path: str, ticked: set[str]) -> str:
    """The shortest end of `path` that has no number and names ticked modules only, else the path."""
    parts = path.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = parts[start:]
        if any(part.isdigit() for part in end):
            break
        if all(node.path in ticked for node in named(outline, ".".join(end), path_today)):
            return ".".join(end)
    return path
