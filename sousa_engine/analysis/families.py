"""Which classes belong together: the families of the rudiments, and the acoustic twins among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from sousa_engine.core import rudiments
from sousa_engine.core.rudiments import Rudiment

TWINS = "acoustic twins"
NO_TWINS = "without a twin"


def rudiment_of(label: str) -> Rudiment | None:
    """The rudiment that a class is, by its name here or in the SOUSA data set."""
    return _known().get(label)


def by_family(classes: Iterable[str]) -> tuple[str, ...]:
    """Family by family in the order of the PAS sheet; classes that are no rudiments follow, by name."""
    return tuple(sorted(classes, key=_place))


def blocks(classes: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(family, number of classes) for each stretch of one family; () unless at least two are rudiments' families."""
    found: list[tuple[str, int]] = []
    for label in classes:
        known = rudiment_of(label)
        family = known.family if known else "other"
        if found and found[-1][0] == family:
            found[-1] = (family, found[-1][1] + 1)
        else:
            found.append((family, 1))
    return tuple(found) if len({family for family, _ in found} - {"other"}) > 1 else ()


def groups_of(label: str) -> tuple[str, ...]:
    """The named groups of a class: its family, and whether it has an acoustic twin; () for what is no rudiment."""
    known = rudiment_of(label)
    if known is None:
        return ()
    return known.family, TWINS if known.slug in _twins() else NO_TWINS


def groups() -> tuple[str, ...]:
    """All named groups, in the order to show them."""
    return *dict.fromkeys(rudiment.family for rudiment in rudiments.RUDIMENTS), TWINS, NO_TWINS


def _place(label: str) -> tuple[int, int, str]:
    known = rudiment_of(label)
    if known is None:
        return len(groups()), 0, label
    return groups().index(known.family), known.number, label


@cache
def _known() -> dict[str, Rudiment]:
    by_slug = {rudiment.slug: rudiment for rudiment in rudiments.RUDIMENTS}
    return {rudiment.sousa_slug: rudiment for rudiment in rudiments.RUDIMENTS} | by_slug


@cache
def _twins() -> frozenset[str]:
    return frozenset(slug for group in rudiments.ACOUSTIC_TWINS for slug in group)
