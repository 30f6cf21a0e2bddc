"""Which classes belong together: the groups of the rudiments, and the acoustic twins among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from sousa_engine.core import rudiments
from sousa_engine.core.rudiments import Rudiment

TWINS = "acoustic twins"
NO_TWINS = "without a twin"


def rudiment_of(label: str) -> Rudiment | None:
    """The rudiment with this class name, either ours or that of the SOUSA data set."""
    return _known().get(label)


def by_group(classes: Iterable[str]) -> tuple[str, ...]:
    """Group by group, in the order of the PAS sheet; other classes follow, by name."""
    return tuple(sorted(classes, key=_place))


def blocks(classes: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(group, number of classes) for each run of neighbours in one group; () unless there are two rudiment groups."""
    found: list[tuple[str, int]] = []
    for label in classes:
        known = rudiment_of(label)
        group = known.group if known else "other"
        if found and found[-1][0] == group:
            found[-1] = (group, found[-1][1] + 1)
        else:
            found.append((group, 1))
    return tuple(found) if len({group for group, _ in found} - {"other"}) > 1 else ()


def groups_of(label: str) -> tuple[str, ...]:
    """The groups of a class: its rudiment group, and whether it has an acoustic twin; () if it is not a rudiment."""
    known = rudiment_of(label)
    if known is None:
        return ()
    return known.group, TWINS if known.slug in _twins() else NO_TWINS


def groups() -> tuple[str, ...]:
    """All groups, in the order in which they are shown."""
    return *dict.fromkeys(rudiment.group for rudiment in rudiments.RUDIMENTS), TWINS, NO_TWINS


def _place(label: str) -> tuple[int, int, str]:
    known = rudiment_of(label)
    if known is None:
        return len(groups()), 0, label
    return groups().index(known.group), known.number, label


@cache
def _known() -> dict[str, Rudiment]:
    by_slug = {rudiment.slug: rudiment for rudiment in rudiments.RUDIMENTS}
    return {rudiment.sousa_slug: rudiment for rudiment in rudiments.RUDIMENTS} | by_slug


@cache
def _twins() -> frozenset[str]:
    return frozenset(slug for group in rudiments.ACOUSTIC_TWINS for slug in group)
