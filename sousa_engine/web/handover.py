"""Data that pages leave for each other in the session: ticks of the module tree, and drafts that fill a form.

This module alone knows the keys. Ticks are kept, and each page takes new ones over once; a draft is taken once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import streamlit as st

from sousa_engine.core.config import HeadPolicy, RunConfig
from sousa_engine.core.sweep_spec import SweepSpec

TICKS, DRAFT, SWEEP_DRAFT = "ticks", "draft", "sweep.draft"


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """A choice in the module tree of `variant`, for Launch and Backbones.

    paths: full paths in tree order. ranks: path -> its rank, only where it differs from r. method: its name.
    name: of the saved or recommended set that holds exactly these modules, or "".
    """

    variant: str
    paths: tuple[str, ...]
    ranks: Mapping[str, int] = field(default_factory=dict)
    r: int
    head: HeadPolicy
    method: str
    name: str = ""

    @classmethod
    def of(cls, config: RunConfig) -> Ticks:
        """The targets of a run."""
        lora = config.lora
        return cls(
            variant=config.model.variant,
            paths=tuple(target.path for target in lora.targets),
            ranks=lora.ranks,
            r=lora.r,
            head=lora.head,
            method=lora.method,
            name=lora.target_set,
        )


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Settings of a run that Launch fills its form with."""

    settings: RunConfig


@dataclass(frozen=True, kw_only=True)
class SweepDraft:
    """A sweep that the page Sweeps fills its form with."""

    spec: SweepSpec


def leave_ticks(ticks: Ticks, *, seen_by: str = "") -> None:
    """Leave ticks for all pages but `seen_by`, which has them already."""
    st.session_state[TICKS] = ticks
    if seen_by:
        st.session_state[_seen(seen_by)] = ticks


def held_ticks(variant: str) -> Ticks | None:
    """The ticks left last, if they are of this backbone."""
    ticks: Ticks | None = st.session_state.get(TICKS)
    return ticks if ticks is not None and ticks.variant == variant else None


def new_ticks(page: str, variant: str | None = None) -> Ticks | None:
    """The latest ticks, unless `page` has already taken them. variant: take only ticks of this backbone."""
    ticks: Ticks | None = st.session_state.get(TICKS)
    if ticks is None or ticks is st.session_state.get(_seen(page)) or variant not in (None, ticks.variant):
        return None
    st.session_state[_seen(page)] = ticks
    return ticks


def leave_draft(settings: RunConfig) -> None:
    """Leave settings for Launch."""
    st.session_state[DRAFT] = Draft(settings=settings)


def take_draft() -> Draft | None:
    return st.session_state.pop(DRAFT, None)


def leave_sweep_draft(spec: SweepSpec) -> None:
    """Leave a sweep for the form on the page Sweeps."""
    st.session_state[SWEEP_DRAFT] = SweepDraft(spec=spec)


def take_sweep_draft() -> SweepDraft | None:
    return st.session_state.pop(SWEEP_DRAFT, None)


def _seen(page: str) -> str:
    return f"ticks seen by {page}"
