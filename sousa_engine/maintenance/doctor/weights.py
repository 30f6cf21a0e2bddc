"""Checks of backbone weights: which are here, whether they are intact, and whether others can be downloaded."""

from __future__ import annotations

from collections.abc import Mapping

from sousa_engine import backbones
from sousa_engine.backbones import pretrained
from sousa_engine.maintenance.doctor.findings import Finding
from sousa_engine.workspace import Workspace

EMBEDDED = tuple(name for name, variant in backbones.VARIANTS.items() if variant.embedded)


def weights(places: Mapping[str, str], broken: Mapping[str, str] | None = None) -> Finding:
    """places: backbone -> "embedded", "hub cache", where its file came from, or "" if not installed.

    broken: backbone -> what is wrong with its file, "" if it looks intact.
    """
    wrong = {name: text for name, text in (broken or {}).items() if text}
    here = [f"{name} ({place})" for name, place in places.items() if place]
    missing = [name for name, place in places.items() if not place]
    text = (", ".join(here) or "none installed") + (f"; not installed: {', '.join(missing)}" if missing else "")
    if any(name in missing or name in wrong for name in EMBEDDED):
        text = " ".join([text, *wrong.values()]) if wrong else text
        again = "git checkout sousa_engine/backbones/weights"
        fix = f"The embedded weights are part of this program: reinstall it, or run: {again}"
        return Finding(name="Weights", level="problem", text=text, fix=fix)
    if wrong:
        fix = f"Run: python -m sousa_engine weights fetch {next(iter(wrong))} (or: weights import FILE)"
        return Finding(name="Weights", level="warning", text=f"{text}. {' '.join(wrong.values())}", fix=fix)
    return Finding(name="Weights", level="ok", text=text)


def network(unreachable: str) -> Finding:
    """Always ok: embedded backbones and data need no network. unreachable: why the server cannot be reached, or ""."""
    if not unreachable:
        return Finding(name="Network", level="ok", text="published weights can be downloaded")
    text = f"offline: {unreachable}. Embedded backbones still work; for others: python -m sousa_engine weights import"
    return Finding(name="Network", level="ok", text=text)


def where_weights_are(name: str, workspace: Workspace) -> str:
    """Where the weights of a backbone came from, "" if they are not installed."""
    try:
        here = pretrained.stored(backbones.variant(name), workspace)
    except (OSError, ValueError):  # its card is unreadable
        return ""
    return here.origin.partition(" from ")[0] if here else ""


def what_is_wrong(name: str, workspace: Workspace) -> str:
    """A sentence if the header or the length shows that the installed weights are broken, else ""."""
    if not where_weights_are(name, workspace):
        return ""
    return pretrained.weights_state(backbones.variant(name), workspace).message


def some_download() -> str:
    """The address of one published weights file."""
    return next(v.download.url for v in backbones.VARIANTS.values() if v.download and v.download.url)
