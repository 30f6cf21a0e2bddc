"""The module tree in the browser: an outline as a grid of layers by roles and as rows with tri-state ticks and ranks.
The counts update with each tick.

The browser owns the ticks. Python sends the outline once, with a seed of ticks; the data stays byte-identical from tick
to tick, so that a tick costs half a kilobyte. `choose` replaces the ticks by sending a newer seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sousa_engine.core.config import HeadPolicy
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.targets import ModuleNode, Outline

HERE = Path(__file__).parent
NOTHING_INSIDE = "none"  # reasons why a row cannot be ticked; the browser turns these two into sentences
IN_HEAD = "head"

_component = st.components.v2.component(
    "sousa_module_tree",
    html=(HERE / "tree.html").read_text(),
    css=(HERE / "tree.css").read_text(),
    js="".join((HERE / name).read_text() for name in ("model.js", "grid.js", "view.js")),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The ticked modules. paths: in tree order. ranks: ticked path -> its rank, only where it differs from r."""

    paths: tuple[str, ...]
    ranks: Mapping[str, int]


NOTHING = Choice(paths=(), ranks={})


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The ticks of a session in one outline. seed, seed_rev: what Python last sent to the browser."""

    seed: Choice
    seed_rev: int  # 0: the initial ticks, which the tab's memory of an earlier visit overrides
    now: Choice


def module_tree(
    outline: Outline,
    *,
    start: Iterable[str],
    r: int,
    head: HeadPolicy,
    num_classes: int,
    blocked: Mapping[str, str] | None = None,
    method: Method = METHODS["lora"],
    key: str = "tree",
) -> Choice:
    """Draw the tree; returns what is ticked. start: paths ticked when this session first shows the outline.

    The modules of the head are shown but cannot be ticked: the head policy decides about them. blocked: path -> why it
    cannot be ticked now; its tick is not returned, and comes back with the next call that does not block it. method:
    decides how parameters are counted; if it does not support separate ranks, none are shown or returned.
    """
    blocked = blocked or {}
    slot, name = f"{key} of {outline.variant}", outline_name(outline)
    ticks: _Memory | None = st.session_state.get(slot)
    if ticks is None:
        first = _eligible(outline, start, {})
        ticks = _Memory(seed=first, seed_rev=0, now=first)
    elif key not in st.session_state or st.session_state.get(f"{key} shows") != name:
        # The browser drops a component's state when the page changes; after a server restart the browser still has it.
        ticks = _newer(ticks, ticks.now)
    st.session_state[slot] = ticks
    st.session_state[f"{key} shows"] = name
    _component(
        key=key,
        data={
            **_facts(outline),
            "r": r,
            "head": head,
            "num_classes": num_classes,
            "blocked": {
                why: [i for i, n in enumerate(outline.nodes) if blocked.get(n.path) == why]
                for why in dict.fromkeys(blocked.values())
            },
            "method": {
                "name": method.name,
                "title": method.title,
                "has_r": "r" in method.settings,
                "ranks": method.takes_ranks,
            },
            "seed": list(ticks.seed.paths),
            "seed_ranks": dict(ticks.seed.ranks),
            "seed_rev": ticks.seed_rev,
        },
        default={"ticks": None},
        on_ticks_change=lambda: None,
    )
    now = ticked(outline, key=key)
    chosen = tuple(path for path in now.paths if path not in blocked)
    own = now.ranks if method.takes_ranks else {}
    return Choice(paths=chosen, ranks={path: own[path] for path in chosen if own.get(path, r) != r})


def ticked(outline: Outline, *, key: str = "tree") -> Choice:
    """The modules ticked right now, blocked or not; in a callback, newer than what `module_tree` returned."""
    slot = f"{key} of {outline.variant}"
    ticks: _Memory = st.session_state[slot]
    match (st.session_state.get(key) or {}).get("ticks"):
        # A browser can send anything; ticks from before the newest seed are out of date.
        case {"outline": str(of), "rev": int(rev), "paths": list(paths), "ranks": dict(ranks)} if (
            of == outline_name(outline) and rev >= ticks.seed_rev
        ):
            ticks = replace(ticks, now=_eligible(outline, paths, ranks))
            st.session_state[slot] = ticks
    return ticks.now


def choose(
    outline: Outline, paths: Iterable[str], ranks: Mapping[str, int] | None = None, *, key: str = "tree"
) -> None:
    """Tick exactly these paths, with the separate ranks in `ranks`. Call it before the tree is drawn: in a callback."""
    slot = f"{key} of {outline.variant}"
    old = st.session_state.get(slot) or _Memory(seed=NOTHING, seed_rev=0, now=NOTHING)
    st.session_state[slot] = _newer(old, _eligible(outline, paths, ranks or {}))


def outline_name(outline: Outline) -> str:
    """Names the outline that ticks belong to: they are invalid for another variant or library version."""
    return " ".join([outline.variant, *(f"{name} {number}" for name, number in sorted(outline.versions.items()))])


def _newer(ticks: _Memory, now: Choice) -> _Memory:
    rev = max(int(time.time() * 1000), ticks.seed_rev + 1)
    return _Memory(seed=now, seed_rev=rev, now=now)


def _eligible(outline: Outline, paths: Iterable[str], ranks: Mapping[str, int]) -> Choice:
    """The paths that can be ticked, in tree order, and the ranks that fit: a browser can send anything."""
    wanted = {path for path in paths if isinstance(path, str)}
    nodes = [n for n in outline.nodes if n.path in wanted and n.adaptable and not outline.in_head(n.path)]
    return Choice(
        paths=tuple(node.path for node in nodes),
        ranks={node.path: ranks[node.path] for node in nodes if _fits(node, ranks.get(node.path))},
    )


def _fits(node: ModuleNode, rank: object) -> bool:
    return type(rank) is int and 1 <= rank <= min(node.shape[0], math.prod(node.shape[1:]))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={Outline: outline_name})
def _facts(outline: Outline) -> dict[str, Any]:
    """The outline in the browser's format. A row: parent's row, segment, class, shape, parameters, role, why not, old
    path, layer.

    "why not" is "" for a module that can be ticked, else a sentence or one of the two words above.
    """
    classes = list(dict.fromkeys(node.class_name for node in outline.nodes))
    at = {node.path: i for i, node in enumerate(outline.nodes)}
    head_layer = outline.head_layer
    return {
        "outline": outline_name(outline),
        "classes": classes,
        "rows": [
            [
                at[node.path.rpartition(".")[0]] if node.path else -1,
                node.name,
                classes.index(node.class_name),
                list(node.shape),
                node.parameters,
                node.role,
                _why_not(outline, node),
                node.old_path,
                node.layer,
            ]
            for node in outline.nodes
        ],
        "facts": {
            "num_classes": outline.num_classes,
            "per_class": outline.parameters_per_class,
            "total": outline.total_parameters,
            "head_parameters": outline.node(outline.head_path).parameters,
            "head_layer": at[head_layer.path],
        },
    }


def _why_not(outline: Outline, node: ModuleNode) -> str:
    if outline.in_head(node.path):
        return IN_HEAD
    return "" if node.adaptable else node.reason or NOTHING_INSIDE
