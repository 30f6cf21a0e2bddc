"""The module tree in the browser: a grid of layers by roles and rows with tri-state ticks and ranks over an outline,
counts that follow each tick at once.

The browser owns the ticks. Python sends the outline once, with a seed of ticks, and the bytes stay the same from tick
to tick, so that a tick costs half a kilobyte; `choose` overrides what is ticked by a newer seed.
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
NOTHING_INSIDE = "none"  # reasons a row cannot be ticked that the browser words itself
IN_HEAD = "head"

_component = st.components.v2.component(
    "sousa_module_tree",
    html=(HERE / "tree.html").read_text(),
    css=(HERE / "tree.css").read_text(),
    js="".join((HERE / name).read_text() for name in ("model.js", "grid.js", "view.js")),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is ticked. paths: in tree order. ranks: ticked path -> its rank, only where it is not the general one."""

    paths: tuple[str, ...]
    ranks: Mapping[str, int]


NOTHING = Choice(paths=(), ranks={})


@dataclass(frozen=True, kw_only=True)
class _Ticks:
    """What one session knows of the ticks in one outline. seed, seed_rev: what Python last told the browser."""

    seed: Choice
    seed_rev: int  # 0: the page's own start, which this tab's memory of an earlier visit outranks
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
    """Draw the tree; returns what is ticked. start: paths ticked when this session sees the outline first.

    The head's modules are shown but not ticked: they belong to the head's policy. blocked: path -> why it cannot be
    ticked now; its tick is not returned, and comes back with the next call that does not block it. method: what its
    parameters are counted by; where it knows no rank of single modules, none is shown or returned.
    """
    blocked = blocked or {}
    slot, name = f"{key} of {outline.variant}", outline_name(outline)
    ticks: _Ticks | None = st.session_state.get(slot)
    if ticks is None:
        first = _eligible(outline, start, {})
        ticks = _Ticks(seed=first, seed_rev=0, now=first)
    elif key not in st.session_state or st.session_state.get(f"{key} shows") != name:
        # The browser drops a component's state with the page; a session lost with the server is the other way round.
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
    """What is ticked at this moment, blocked or not: in a callback, newer than what `module_tree` returned."""
    slot = f"{key} of {outline.variant}"
    ticks: _Ticks = st.session_state[slot]
    match (st.session_state.get(key) or {}).get("ticks"):
        # Anything may come from a browser; ticks from before our newest seed are out of date.
        case {"outline": str(of), "rev": int(rev), "paths": list(paths), "ranks": dict(ranks)} if (
            of == outline_name(outline) and rev >= ticks.seed_rev
        ):
            ticks = replace(ticks, now=_eligible(outline, paths, ranks))
            st.session_state[slot] = ticks
    return ticks.now


def choose(
    outline: Outline, paths: Iterable[str], ranks: Mapping[str, int] | None = None, *, key: str = "tree"
) -> None:
    """Tick exactly these paths, from Python, with a rank of their own for those in `ranks`: before the tree is drawn,
    so from a callback."""
    slot = f"{key} of {outline.variant}"
    old = st.session_state.get(slot) or _Ticks(seed=NOTHING, seed_rev=0, now=NOTHING)
    st.session_state[slot] = _newer(old, _eligible(outline, paths, ranks or {}))


def outline_name(outline: Outline) -> str:
    """Says which outline the ticks belong to: they are worth nothing in another variant or library version."""
    return " ".join([outline.variant, *(f"{name} {number}" for name, number in sorted(outline.versions.items()))])


def _newer(ticks: _Ticks, now: Choice) -> _Ticks:
    rev = max(int(time.time() * 1000), ticks.seed_rev + 1)
    return _Ticks(seed=now, seed_rev=rev, now=now)


def _eligible(outline: Outline, paths: Iterable[str], ranks: Mapping[str, int]) -> Choice:
    """What can be ticked, in tree order, and the ranks that fit; what a browser sends is a claim."""
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
    """The outline as the browser wants it. A row: parent's row, segment, class, shape, parameters, role, why not, old
    path, layer.

    "why not" is "" for what can be ticked, else a sentence, or one of the two words above.
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
