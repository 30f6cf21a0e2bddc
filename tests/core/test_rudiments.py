import subprocess
import sys
from collections import Counter

import pytest

from sousa_engine.core import rudiments
from sousa_engine.core.errors import UnknownNameError
from sousa_engine.core.rudiments import ACOUSTIC_TWINS, RUDIMENTS, rudiment


def test_all_forty_rudiments_are_there_in_pas_order():
    assert [r.number for r in RUDIMENTS] == list(range(1, 41))
    assert len({r.slug for r in RUDIMENTS}) == 40
    assert Counter(r.group for r in RUDIMENTS) == {"roll": 15, "diddle": 4, "flam": 11, "drag": 10}


@pytest.mark.parametrize("slug", [r.slug for r in RUDIMENTS])
def test_strokes_rise_in_time_and_spell_the_printed_sticking(slug):
    r = rudiment(slug)
    ticks = [s.tick for s in r.strokes]
    assert ticks == sorted(set(ticks)) and ticks[0] == 0 and ticks[-1] < r.cycle_ticks
    printed = [c for c in r.sticking if c in "RL"]
    assert printed == [s.hand for s in r.strokes]
    assert {s.kind for s in r.strokes} <= {"tap", "buzz"}
    assert r.tempo_bpm[0] < r.tempo_bpm[1]


def test_grace_strokes_come_from_the_other_hand():
    for r in RUDIMENTS:
        for s in r.strokes:
            assert set(s.grace) <= {"R", "L"} - {s.hand}, r.slug
            assert len(s.grace) <= 2
            assert s.is_flam == (len(s.grace) == 1) and s.is_drag == (len(s.grace) == 2)


def test_a_diddle_is_two_strokes_of_one_hand():
    for r in RUDIMENTS:
        for first, second in zip(r.strokes, r.strokes[1:], strict=False):
            if first.diddle == 1:
                assert second.diddle == 2 and second.hand == first.hand, r.slug


def test_twins_fall_at_the_same_moments():
    def accents_and_gaps(slug):
        """Gaps relative to the shortest and what is heard at each: the smallest period, rotated."""
        r = rudiment(slug)
        ends = [*(s.tick for s in r.strokes[1:]), r.cycle_ticks]
        gaps = [end - s.tick for s, end in zip(r.strokes, ends, strict=True)]
        marks = [(g / min(gaps), s.accent, len(s.grace)) for g, s in zip(gaps, r.strokes, strict=True)]
        period = next(p for p in range(1, len(marks) + 1) if marks == (marks[:p] * len(marks))[: len(marks)])
        return min(marks[i:period] + marks[:i] for i in range(period))

    for group in ACOUSTIC_TWINS:
        assert len({tuple(accents_and_gaps(slug)) for slug in group}) == 1, group


def test_cycle_lasts_as_long_as_its_beats():
    seventeen = rudiment("seventeen-stroke-roll")
    assert seventeen.cycle_beats == 6
    assert seventeen.cycle_s(120) == pytest.approx(3.0)


def test_mistyped_rudiment_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="single-paradiddle"):
        rudiment("single-paradidle")
    with pytest.raises(AttributeError, match="NOPE"):
        _ = rudiments.NOPE


def test_importing_the_module_reads_no_file():
    code = """
import sys
read = []
sys.addaudithook(lambda event, about: event == "open" and str(about[0]).endswith(".json") and read.append(about[0]))
import sousa_engine.core.rudiments as rudiments
print(len(read))
rudiments.RUDIMENTS
print(len(read))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
