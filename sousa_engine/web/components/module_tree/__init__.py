"""The module tree in the browser: rows with tri-state ticks over an outline, counts that follow each tick at once.

The browser owns the ticks. Python sends the outline once, with a seed of ticks, and the bytes stay the same from tick
to tick, so that a tick costs half a kilobyte; `choose` overrides what is ticked by a newer seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sousa_engine.config import HeadPolicy
from sousa_engine.module_tree import ModuleNode, Outline

HERE = Path(__file__).parent
NOTHING_INSIDE = "none"  # reasons a row cannot be ticked that the browser words itself
IN_HEAD = "head"

_component = st.components.v2.component(
    "sousa_module_tree",
    html=(HERE / "tree.html").read_text(),
    css=(HERE / "tree.css").read_text(),
    js=(HERE / "model.js").read_text() + (HERE / "view.js").read_text(),
)


@dataclass(frozen=True, kw_only=True)
class _Ticks:
    """What one session knows of the ticks in one outline. seed, seed_rev: what Python last told the browser."""

    seed: tuple[str, ...]
    seed_rev: int  # 0: the page's own start, which this tab's memory of an earlier visit outranks
    paths: tuple[str, ...]


def module_tree(
    outline: Outline,
    *,
    start: Iterable[str],
    r: int,
    head: HeadPolicy,
    num_classes: int,
    key: str = "tree",
) -> tuple[str, ...]:
    """Draw the tree; returns the ticked paths in tree order. start: ticked when this session sees the outline first.

    The head's modules are shown but not ticked: they belong to the head's policy.
    """
    slot, name = f"{key} of {outline.variant}", outline_name(outline)
    ticks: _Ticks | None = st.session_state.get(slot)
    if ticks is None:
        ticks = _Ticks(seed=_eligible(outline, start), seed_rev=0, paths=_eligible(outline, start))
    elif key not in st.session_state or st.session_state.get(f"{key} shows") != name:
        # The browser drops a component's state with the page; a session lost with the server is the other way round.
        ticks = _newer(ticks, ticks.paths)
    st.session_state[slot] = ticks
    st.session_state[f"{key} shows"] = name
    result = _component(
        key=key,
        data={
            **_facts(outline),
            "r": r,
            "head": head,
            "num_classes": num_classes,
            "seed": list(ticks.seed),
            "seed_rev": ticks.seed_rev,
        },
        default={"ticks": None},
        on_ticks_change=lambda: None,
    )
    match result.ticks:  # anything may come from a browser; ticks from before our newest seed are out of date
        case {"outline": str(of), "rev": int(rev), "paths": list(paths)} if of == name and rev >= ticks.seed_rev:
            ticks = replace(ticks, paths=_eligible(outline, paths))
            st.session_state[slot] = ticks
    return ticks.paths


def choose(outline: Outline, paths: Iterable[str], *, key: str = "tree") -> None:
    """Tick exactly these paths, from Python: before the tree is drawn, so from a callback."""
    slot = f"{key} of {outline.variant}"
    old = st.session_state.get(slot) or _Ticks(seed=(), seed_rev=0, paths=())
    st.session_state[slot] = _newer(old, _eligible(outline, paths))


def outline_name(outline: Outline) -> str:
    """Says which outline the ticks belong to: they are worth nothing in another variant or library version."""
    return " ".join([outline.variant, *(f"{name} {number}" for name, number in sorted(outline.versions.items()))])


def _newer(ticks: _Ticks, paths: tuple[str, ...]) -> _Ticks:
    rev = max(int(time.time() * 1000), ticks.seed_rev + 1)
    return _Ticks(seed=paths, seed_rev=rev, paths=paths)


def _eligible(outline: Outline, paths: Iterable[str]) -> tuple[str, ...]:
    """Those that can be ticked, in tree order; what a browser sends is a claim."""
    wanted = {path for path in paths if isinstance(path, str)}
    return tuple(n.path for n in outline.nodes if n.path in wanted and n.adaptable and not outline.in_head(n.path))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={Outline: outline_name})
def _facts(outline: Outline) -> dict[str, Any]:
    """The outline as the browser wants it. A row: parent's row, segment, class, shape, parameters, role, why not, old.

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
            ]
            for node in outline.nodes
        ],
        "facts": {
            "num_classes": outline.num_classes,
            "per_class": outline.parameters_per_class,
            "total": outline.total_parameters,
            "head_parameters": outline.node(outline.head_path).parameters,
            "head_layer": at[head_layer.path],
            "head_width": head_layer.shape[0] + math.prod(head_layer.shape[1:]),
        },
    }


def _why_not(outline: Outline, node: ModuleNode) -> str:
    if outline.in_head(node.path):
        return IN_HEAD
    return "" if node.adaptable else node.reason or NOTHING_INSIDE
