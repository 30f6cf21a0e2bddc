"""Random stroke patterns for pre-training: built by the grammar of rudiments, but never a rudiment.

A pattern is one cycle of strokes, built of cells (runs of singles, doubles, triples, paradiddle-like stickings, rolls
that end in a released note) with accents, flams, drags and buzzes. Patterns come in families of four that differ in
one thing only: the sticking, the accents, the grace strokes or the length. Distinguishing the members of a family is
the task of a classifier of rudiments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sousa_engine.core.rudiments import RUDIMENTS, Stroke

TICKS_PER_BEAT = 24
_GAPS = (3, 4, 6, 8, 12, 24)
_OTHER = {"R": "L", "L": "R"}


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One cycle; `family` is shared by patterns that differ in one thing."""

    strokes: tuple[Stroke, ...]
    cycle_ticks: int
    family: int

    @property
    def gaps(self) -> tuple[int, ...]:
        """Ticks from each stroke to the next, the last one to the cycle's end."""
        ticks = [s.tick for s in self.strokes]
        return tuple(b - a for a, b in zip(ticks, [*ticks[1:], self.cycle_ticks], strict=True))


def draw_patterns(families: int, seed: int) -> tuple[Pattern, ...]:
    """`families` times four different patterns, none of them a rudiment in any rotation, mirroring or time scale."""
    rng = np.random.default_rng(seed)
    seen = {shape(r.strokes, r.cycle_ticks) for r in RUDIMENTS}
    patterns: list[Pattern] = []
    while len(patterns) < 4 * families:
        family, forms = [_draw(rng, len(patterns) // 4)], set()
        for _ in range(40):  # a short pattern may have fewer than three new variants; then another one is sampled
            draft = family.pop() if not forms else _vary(family[0], rng)
            form = shape(draft.strokes, draft.cycle_ticks)
            if not 2 <= len(draft.strokes) <= 64 or draft.cycle_ticks > 144 or form in seen | forms:
                if not forms:
                    break
                continue
            forms.add(form)
            family.append(draft)
            if len(family) == 4:
                seen |= forms
                patterns += family
                break
    return tuple(patterns)


def shape(strokes: tuple[Stroke, ...], cycle_ticks: int) -> tuple:
    """The identity of a pattern: equal for any rotation, for exchanged hands, and for another time scale."""
    ticks = [s.tick for s in strokes]
    gaps = [b - a for a, b in zip(ticks, [*ticks[1:], cycle_ticks], strict=True)]
    unit = np.gcd.reduce(gaps)
    forms = []
    for mirrored in (False, True):
        marks = []
        for s, gap in zip(strokes, gaps, strict=True):
            right = (s.hand == "R") != mirrored
            marks.append((int(gap // unit), right, s.accent, len(s.grace), s.kind))
        once = marks[: period(marks)]
        forms += [tuple(once[i:] + once[:i]) for i in range(len(once))]
    return min(forms)


def period(marks: list) -> int:
    """The length of the shortest sequence whose repetition gives `marks`."""
    n = len(marks)
    return next(p for p in range(1, n + 1) if n % p == 0 and marks == marks[:p] * (n // p))


def _draw(rng: np.random.Generator, family: int) -> Pattern:
    base = int(rng.choice(_GAPS, p=(0.3, 0.24, 0.28, 0.1, 0.06, 0.02)))
    accents = str(rng.choice(("none", "first", "last", "every", "random"), p=(0.15, 0.3, 0.2, 0.15, 0.2)))
    grace = str(rng.choice(("none", "flam", "drag", "both"), p=(0.4, 0.28, 0.25, 0.07)))
    where = str(rng.choice(("first", "last", "every", "random"), p=(0.45, 0.1, 0.2, 0.25)))
    cells = int(rng.choice((1, 2, 3, 4), p=(0.55, 0.3, 0.1, 0.05)))
    hand, at = "R", 0
    strokes: list[Stroke] = []
    for _ in range(cells):
        gap = base if rng.random() < 0.7 else int(rng.choice(_GAPS[:5]))
        cell = _cell(rng, hand, gap)
        cell = _accented(cell, accents, rng)
        cell = _graced(cell, grace, where, rng)
        strokes += [replace(s, tick=at + s.tick) for s in cell]
        at += cell[-1].tick + gap
        if rng.random() < 0.35:  # the last note is released: it lasts until the next half beat or beat
            grid = int(rng.choice((12, 24)))
            at = max(-(-at // grid) * grid, at)
        hand = _OTHER[strokes[-1].hand] if rng.random() < 0.8 else strokes[-1].hand
    if rng.random() < 0.6:  # cycles mostly fill whole beats
        at = -(-at // 12) * 12 if at % 12 and rng.random() < 0.7 else at
    strokes, at = _mirrored(strokes, at) if rng.random() < 0.5 else (strokes, at)
    return Pattern(strokes=tuple(strokes), cycle_ticks=at, family=family)


def _cell(rng: np.random.Generator, hand: str, gap: int) -> list[Stroke]:
    kind = str(
        rng.choice(
            ("singles", "doubles", "roll", "paradiddle", "triples", "random", "buzz"),
            p=(0.2, 0.12, 0.2, 0.2, 0.05, 0.17, 0.06),
        )
    )
    if kind == "singles":
        return _spell(_alternate(hand, int(rng.integers(1, 9))), gap)
    if kind == "buzz":
        gap = max(gap, 6)
        return _spell(_alternate(hand, int(rng.integers(1, 5))), gap, kind="buzz")
    if kind == "doubles":
        return _spell("".join(h * 2 for h in _alternate(hand, int(rng.integers(1, 5)))), gap)
    if kind == "triples":
        return _spell("".join(h * 3 for h in _alternate(hand, int(rng.integers(1, 4)))), gap)
    if kind == "roll":  # doubles that end in one or two single notes
        hands = _alternate(hand, int(rng.integers(1, 9)) + 1)
        cell = [
            *_spell("".join(h * 2 for h in hands[:-1]), gap),
            Stroke(tick=2 * (len(hands) - 1) * gap, hand=hands[-1]),
        ]
        if rng.random() < 0.2:
            last = cell[-1]
            cell.append(Stroke(tick=last.tick + int(rng.choice((gap, 2 * gap))), hand=_OTHER[last.hand]))
        return cell
    if kind == "paradiddle":  # singles, then one or two doubles; or the doubles first
        singles = _alternate(hand, int(rng.integers(1, 7)))
        doubles = "".join(h * 2 for h in _alternate(_OTHER[singles[-1]], int(rng.integers(1, 3))))
        return _spell(
            singles + doubles if rng.random() < 0.7 else doubles + _alternate(_OTHER[doubles[-1]], len(singles)), gap
        )
    return _spell("".join(rng.choice(("R", "L"), int(rng.integers(2, 9)))), gap)


def _vary(p: Pattern, rng: np.random.Generator) -> Pattern:
    """Another pattern of the same family: one thing changes."""
    strokes, cycle = list(p.strokes), p.cycle_ticks
    what = str(rng.choice(("sticking", "accents", "grace", "length", "gap"), p=(0.35, 0.2, 0.2, 0.15, 0.1)))
    if what == "sticking":
        n = len(strokes)
        make = str(rng.choice(("single", "double", "triple", "one")))
        if make == "one":
            i = int(rng.integers(n))
            hands = [_OTHER[s.hand] if k == i else s.hand for k, s in enumerate(strokes)]
        else:
            run = {"single": 1, "double": 2, "triple": 3}[make]
            shift = int(rng.integers(run))
            hands = ["RL"[((k + shift) // run) % 2] for k in range(n)]
        strokes = _diddled([_handed(s, h) for s, h in zip(strokes, hands, strict=True)])
    elif what == "accents":
        i = int(rng.integers(len(strokes)))
        if rng.random() < 0.5:
            strokes = [replace(s, accent=s.accent != (k == i)) for k, s in enumerate(strokes)]
        else:
            turned = [s.accent for s in strokes]
            turned = turned[-1:] + turned[:-1]
            strokes = [replace(s, accent=a) for s, a in zip(strokes, turned, strict=True)]
    elif what == "grace":
        if any(s.grace for s in strokes) and rng.random() < 0.5:
            swap = {0: 0, 1: 2, 2: 1}
            strokes = [replace(s, grace=_OTHER[s.hand] * swap[len(s.grace)]) for s in strokes]
        else:
            i, n = int(rng.integers(len(strokes))), int(rng.integers(3))
            strokes = [
                replace(s, grace=_OTHER[s.hand] * n) if k == i and s.kind == "tap" else s for k, s in enumerate(strokes)
            ]
    elif what == "length":
        if rng.random() < 0.5 and len(strokes) > 3:
            strokes, cycle = strokes[:-1], strokes[-1].tick
        else:
            strokes.append(Stroke(tick=cycle, hand=_OTHER[strokes[-1].hand]))
            cycle += p.gaps[0]
    else:
        cycle += int(rng.choice((p.gaps[-1], 6, 12)))
    return Pattern(strokes=tuple(strokes), cycle_ticks=cycle, family=p.family)


def _accented(cell: list[Stroke], policy: str, rng: np.random.Generator) -> list[Stroke]:
    n = len(cell)
    every = int(rng.integers(2, 5))
    rate = rng.uniform(0.1, 0.5)
    marked = {
        "none": lambda k: False,
        "first": lambda k: k == 0,
        "last": lambda k: k == n - 1,
        "every": lambda k: k % every == 0,
        "random": lambda k: bool(rng.random() < rate),
    }[policy]
    return [replace(s, accent=marked(k)) for k, s in enumerate(cell)]


def _graced(cell: list[Stroke], policy: str, where: str, rng: np.random.Generator) -> list[Stroke]:
    n, every, rate = len(cell), int(rng.integers(2, 5)), rng.uniform(0.1, 0.6)
    out = []
    for k, s in enumerate(cell):
        hit = {"first": k == 0, "last": k == n - 1, "every": k % every == 0, "random": rng.random() < rate}[where]
        count = {"none": 0, "flam": 1, "drag": 2, "both": int(rng.integers(1, 3))}[policy]
        out.append(replace(s, grace=_OTHER[s.hand] * count) if hit and s.kind == "tap" else s)
    return out


def _mirrored(strokes: list[Stroke], cycle: int) -> tuple[list[Stroke], int]:
    """The cycle, then the cycle again with the hands exchanged."""
    return strokes + [replace(_handed(s, _OTHER[s.hand]), tick=s.tick + cycle) for s in strokes], 2 * cycle


def _handed(s: Stroke, hand: str) -> Stroke:
    return replace(s, hand=hand, grace=_OTHER[hand] * len(s.grace))


def _alternate(hand: str, n: int) -> str:
    return "".join(hand if k % 2 == 0 else _OTHER[hand] for k in range(n))


def _spell(hands: str, gap: int, kind: str = "tap") -> list[Stroke]:
    return _diddled([Stroke(tick=k * gap, hand=h, kind=kind) for k, h in enumerate(hands)])


def _diddled(strokes: list[Stroke]) -> list[Stroke]:
    """Marks the first and second stroke of every double, as in rudiments.json."""
    out: list[Stroke] = []
    hands = [s.hand for s in strokes]
    for k, s in enumerate(strokes):
        run = k
        while run and hands[run - 1] == s.hand:
            run -= 1
        end = k
        while end + 1 < len(hands) and hands[end + 1] == s.hand:
            end += 1
        double = end - run == 1 and s.kind == "tap"
        out.append(replace(s, diddle=(k - run + 1) if double else 0))
    return out
