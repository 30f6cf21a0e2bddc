"""The patterns ast-mini is pre-trained on: never a rudiment, whatever the rotation, the hands or the time scale."""

from dataclasses import replace

import pytest

from benchmarks.stroke_patterns import Pattern, draw_patterns, shape
from sousa_engine.core.rudiments import RUDIMENTS, rudiment

OTHER = {"R": "L", "L": "R"}


@pytest.fixture(scope="module")
def patterns():
    return draw_patterns(families=150, seed=3)


def turned(strokes, cycle_ticks, by):
    """The same cycle, begun `by` strokes later."""
    start = strokes[by].tick
    moved = [replace(s, tick=(s.tick - start) % cycle_ticks) for s in strokes]
    return tuple(sorted(moved, key=lambda s: s.tick))


def mirrored(strokes):
    return tuple(replace(s, hand=OTHER[s.hand], grace="".join(OTHER[h] for h in s.grace)) for s in strokes)


def test_no_pattern_is_a_rudiment(patterns):
    taken = {shape(r.strokes, r.cycle_ticks) for r in RUDIMENTS}
    assert not taken & {shape(p.strokes, p.cycle_ticks) for p in patterns}


@pytest.mark.parametrize("slug", ["single-paradiddle", "flam-drag", "seventeen-stroke-roll", "triple-ratamacue"])
def test_a_rudiment_is_recognised_however_it_is_disguised(slug):
    r = rudiment(slug)
    known = shape(r.strokes, r.cycle_ticks)
    assert shape(turned(r.strokes, r.cycle_ticks, 3), r.cycle_ticks) == known
    assert shape(mirrored(r.strokes), r.cycle_ticks) == known
    assert shape(tuple(replace(s, tick=2 * s.tick) for s in r.strokes), 2 * r.cycle_ticks) == known
    twice = r.strokes + tuple(replace(s, tick=s.tick + r.cycle_ticks) for s in r.strokes)
    assert shape(twice, 2 * r.cycle_ticks) == known


def test_rudiments_that_differ_are_not_taken_for_each_other():
    assert len({shape(r.strokes, r.cycle_ticks) for r in RUDIMENTS}) == 40


def test_no_pattern_comes_twice(patterns):
    assert len({shape(p.strokes, p.cycle_ticks) for p in patterns}) == len(patterns) == 600


def test_families_are_four_patterns_in_a_row(patterns):
    assert [p.family for p in patterns] == [i // 4 for i in range(600)]


def test_the_same_seed_draws_the_same_patterns(patterns):
    assert draw_patterns(families=10, seed=3) == patterns[:40]
    assert draw_patterns(families=10, seed=4) != patterns[:40]


def test_strokes_rise_within_the_cycle_and_graces_come_from_the_other_hand(patterns):
    for p in patterns:
        ticks = [s.tick for s in p.strokes]
        assert ticks == sorted(set(ticks)) and ticks[0] == 0 and ticks[-1] < p.cycle_ticks, p
        assert all(set(s.grace) <= {OTHER[s.hand]} for s in p.strokes), p
        assert isinstance(p, Pattern) and min(p.gaps) > 0 and sum(p.gaps) == p.cycle_ticks
