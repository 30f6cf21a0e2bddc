"""The backbones one can choose, and the door to build them. Importing this never imports torch."""

from __future__ import annotations

from types import ModuleType

from sousa_engine.backbones import ast
from sousa_engine.backbones.spec import FrontEndSpec, Network, Variant, WeightsState
from sousa_engine.errors import unknown

__all__ = ["FAMILIES", "VARIANTS", "FrontEndSpec", "Network", "Variant", "WeightsState", "family", "variant"]

FAMILIES: dict[str, ModuleType] = {"ast": ast}
VARIANTS: dict[str, Variant] = {found.name: found for module in FAMILIES.values() for found in module.variants()}


def variant(name: str) -> Variant:
    """A variant by its name, or a family's published variant by the family's name. Raises UnknownNameError."""
    named = VARIANTS | {alias: found for found in VARIANTS.values() for alias in found.aliases}
    if name not in named:
        raise unknown("backbone", name, named)
    return named[name]


def family(variant: Variant) -> ModuleType:
    """The module of a variant's family: roles, old names, translate, and networks() for the half with torch."""
    return FAMILIES[variant.family]
