"""Weights lists in words: for each backbone, which weights are installed and where others come from."""

from __future__ import annotations

from sousa_engine.backbones import Variant, downloads, pretrained
from sousa_engine.workspace import Workspace

COLUMNS = ("Backbone", "Here", "Size", "Licence", "From")


def row(variant: Variant, workspace: Workspace) -> tuple[str, str, str, str, str]:
    """A variant's COLUMNS, as text."""
    here = pretrained.stored(variant, workspace)
    size = here.size_bytes if here else variant.download.size_bytes if variant.download else None
    return variant.name, here_text(variant, workspace), size_text(size), variant.licence, source_text(variant)


def size_text(size_bytes: int | None) -> str:
    """`346.4 MB`, in powers of ten as the hub and GitHub count."""
    return "?" if size_bytes is None else f"{size_bytes / 1e6:,.1f} MB"


def here_text(variant: Variant, workspace: Workspace) -> str:
    """Whether weights are installed, in a few words: "embedded", "downloaded", "not here", "5.1 MB of it"."""
    here = pretrained.stored(variant, workspace)
    if here is not None:
        return here.origin.partition(" from ")[0]
    part = downloads.kept(variant.download, pretrained.intake_folder(variant, workspace)) if variant.download else 0
    return f"{size_text(part)} of it" if part else "not here"


def source_text(variant: Variant) -> str:
    """Where published weights come from: a host, with "by hand" if there is no direct link."""
    if variant.download is None:
        return "this package"
    if variant.download.url is None:
        return f"{variant.download.page.split('/')[2]}, by hand"
    return downloads.host(variant.download.url)
