"""The verdict of a comparison in a sentence: which setting beats which, which are tied, and what remains undecided.

    found = groups([Measured(run="r8 seed 0", group="r=8", seed=0, predictions=store.predictions(id, "test")), ...])
    said = verdict(found.groups, excluded=found.left_out)
    said.sentence    "A beats B on the same 480 clips: +3.1 points (95 % interval 0.9 to 5.2), 5 seeds."

Each pair of settings gets a two-level paired interval (two_level.py explains the statistics). Then:

beats                   p, adjusted by Holm over all pairs with enough seeds, is below 0.05, and the difference is at
                        least 1 point (MARGIN): a smaller difference is not relevant, even if it is certain.
tied                    the 95 % interval is within 2 points of zero (TIE, twice the margin: at a difference equal to
                        the margin, a win and a tie need the same evidence).
tied, under the margin  p is below 0.05, but the difference is smaller than the margin.
not enough evidence     all other cases, with an estimate of how many more seeds of both settings, or test clips, would
                        be needed to decide if the difference and the variances remained the same. In simulations,
                        between half and three quarters of these estimates are sufficient.
one seed                a single network says nothing about a setting: no interval, no p.

Two seeds of a setting never make a winner or a tie. Nothing is lost: among four settings they would not detect a lead
of 10 points. And if a third of the seeds collapse, two lucky seeds against two unlucky ones look like a certain win in
7 % of comparisons (benchmarks/results/verdict.json). Pruned runs never compete: pass them as `excluded`.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sousa_engine.analysis import same_data, two_level
from sousa_engine.analysis.significance import Proportion, wilson_of_mean
from sousa_engine.core.records import Prediction

LEVEL = 0.05
MARGIN = 0.01
TIE = 2 * MARGIN
ENOUGH_SEEDS = 3
MOST_NAMED = 4  # settings in one sentence; the table has all pairs
METHOD = (
    "The intervals of means are Wilson's and reflect the sample of test clips. Pairs are compared by a two-level "
    "paired bootstrap: clips are resampled jointly for both settings, seeds within each, with Student's t to account "
    "for the small number of seeds. Each interval refers to its pair only; p is adjusted for all pairs (Holm). A "
    f"setting beats another if p is below {LEVEL:g} and the difference is at least {100 * MARGIN:g} point. Two "
    f"settings are tied if the interval is within {100 * TIE:g} points of zero. Both need at least {ENOUGH_SEEDS} "
    "seeds per setting."
)


class Outcome(enum.StrEnum):
    BEATS = "beats"
    TIED = "tied"
    UNDER_MARGIN = "tied, under the margin"
    NOT_ENOUGH = "not enough evidence"
    ONE_SEED = "one seed"

    @property
    def is_tie(self) -> bool:
        return self in {Outcome.TIED, Outcome.UNDER_MARGIN}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The predictions of one run on its test split. run: its name; group: its setting."""

    run: str
    group: str
    seed: int
    predictions: Sequence[Prediction]
    is_control: bool = False  # trained on random weights


@dataclass(frozen=True, kw_only=True)
class Group:
    """One setting: seed -> clip -> whether that network was correct."""

    name: str
    right: Mapping[int, Mapping[str, bool]]
    is_control: bool = False


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that does not compete, with the reason: "pruned after epoch 3"."""

    run: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Grouped:
    groups: tuple[Group, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two settings, the one with the higher accuracy first. Shares are in [-1, 1]; None if a setting has one seed.

    p: two-sided, for no difference; adjusted_p: by Holm, None with fewer than ENOUGH_SEEDS. more_seeds (of both
    settings) and more_clips: the estimated need to decide; None if the pair is decided, 0 if not needed.
    """

    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None
    n_clips: int
    seeds_first: int
    seeds_second: int
    outcome: Outcome
    more_seeds: int | None = None
    more_clips: int | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The accuracy of a setting: mean over seeds with Wilson's interval, lowest and highest seed; all are shares."""

    name: str
    accuracy: Proportion
    lowest: float
    highest: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """sentence: up to three of the strongest true statements. order: settings, highest mean accuracy first."""

    sentence: str
    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()
    order: tuple[Standing, ...] = ()


def groups(runs: Sequence[Measured]) -> Grouped:
    """The runs that can be compared, by setting; the others are listed with a reason.

    All must be tested on the same clips, which are the same sounds with the same labels, whatever the names of their
    files: those that most runs have. A seed counts once per
    setting, because training it again gives no new network.
    """
    left_out: list[LeftOut] = []
    keyed = same_data.keyed([run.predictions for run in runs])
    often = Counter(frozenset(clips) for clips in keyed if clips).most_common(1)
    common = often[0][0] if often else frozenset()
    usual = next((run.predictions for run, clips in zip(runs, keyed, strict=True) if clips.keys() == common), ())
    found: dict[str, dict[int, Mapping[str, bool]]] = {}
    controls = {run.group for run in runs if run.is_control}
    for run, clips in zip(runs, keyed, strict=True):
        seeds = found.setdefault(run.group, {})
        reason = None
        if not run.predictions:
            reason = "it has no test predictions"
        elif clips.keys() != common:
            reason = _other_clips(run.predictions, usual)
        elif run.seed in seeds:
            reason = f"seed {run.seed} of {run.group} is already included"
        else:
            seeds[run.seed] = {key: p.predicted == p.label for key, p in clips.items()}
        if reason:
            left_out.append(LeftOut(run=run.run, reason=reason))
    return Grouped(
        groups=tuple(
            Group(name=name, right=seeds, is_control=name in controls) for name, seeds in found.items() if seeds
        ),
        left_out=tuple(left_out),
    )


def verdict(groups: Sequence[Group], *, excluded: Sequence[LeftOut] = (), draws: int = two_level.DRAWS) -> Verdict:
    """The verdict that the test predictions of these settings support. It does not depend on their order.

    excluded: runs that do not compete (pruned, other clips, ...); they become notes. draws: bootstrap resamples.
    Raises ValueError if two groups share a name, a group has no seed, or clips differ (see groups()).
    """
    notes = tuple(f"{left.run} is excluded: {left.reason}." for left in excluded)
    right = _matrices(groups)
    titles = {group.name: _title(group) for group in groups}
    names = sorted(right, key=lambda name: (-right[name].mean(), name))
    order = tuple(_standing(titles[name], right[name]) for name in names)
    if len(order) < 2:
        return Verdict(
            sentence="There is nothing to compare: fewer than two settings were tested.", notes=notes, order=order
        )
    pairs = _pairs([titles[name] for name in names], [right[name] for name in names], draws)
    return Verdict(sentence=_sentence(order, pairs), pairs=pairs, notes=notes, order=order)


def points(share: float, *, plus: bool = False) -> str:
    """A share in percentage points: 0.031 -> `3.1`, or `+3.1`; negative ones with a true minus sign."""
    value = _shown(share)
    return f"{value:+.1f}".replace("-", "−") if plus and value else f"{value:.1f}".replace("-", "−")


def points_span(pair: Pair) -> str:
    """The 95 % interval of a pair in points, `0.9 to 5.2`; a dash if a setting has only one seed."""
    return "–" if pair.low is None or pair.high is None else f"{points(pair.low)} to {points(pair.high)}"


def outcome_text(pair: Pair) -> str:
    """`A beats B`, or `not enough evidence (about +2 seeds needed)`."""
    more = []
    if pair.more_seeds:
        more.append(f"+{pair.more_seeds} {'seed' if pair.more_seeds == 1 else 'seeds'}")
    if pair.more_clips:
        more.append(f"+{pair.more_clips:,} clips")
    found = "A beats B" if pair.outcome is Outcome.BEATS else pair.outcome.value
    return f"{found} (about {', '.join(more)} needed)" if more else found


def listed(names: Sequence[str], most: int | None = None) -> str:
    """`A, B and C`; with more than `most` names `A, B, C and 4 others`."""
    if most and len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Statistics


def _matrices(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Name -> (seeds, clips) of bool, with the clips in the same order for all."""
    clips: list[str] | None = None
    found: dict[str, np.ndarray] = {}
    for group in groups:
        if group.name in found:
            raise ValueError(f"Two groups are named {group.name!r}; a verdict needs distinct names.")
        if not group.right:
            raise ValueError(f"{group.name!r} has no seed; leave it out.")
        for seed, by_clip in group.right.items():
            clips = sorted(by_clip) if clips is None else clips
            if not clips or by_clip.keys() != set(clips):
                raise ValueError(
                    f"Seed {seed} of {group.name!r} has {len(by_clip)} clips, not the {len(clips)} of the others."
                )
        found[group.name] = np.array([[group.right[seed][c] for c in clips or ()] for seed in sorted(group.right)])
    return found


def _title(group: Group) -> str:
    if not group.is_control:
        return group.name
    return f"{group.name} (control)" if "random weights" in group.name else f"{group.name} (random weights, control)"


def _standing(name: str, right: np.ndarray) -> Standing:
    seeds, n = right.shape
    by_seed = right.mean(1)
    return Standing(
        name=name,
        accuracy=wilson_of_mean(float(right.mean()), n),
        lowest=float(by_seed.min()),
        highest=float(by_seed.max()),
        seeds=seeds,
    )


def _pairs(names: Sequence[str], right: Sequence[np.ndarray], draws: int) -> tuple[Pair, ...]:
    """All pairs, in the order of the names. Holm covers the pairs with enough seeds, since only these can win."""
    every = list(itertools.combinations(range(len(names)), 2))
    fewest = {pair: min(len(right[i]) for i in pair) for pair in every}
    drawn = [pair for pair in every if fewest[pair] > 1]
    found = dict(zip(drawn, two_level.estimates(right, drawn, draws), strict=True))
    judged = [pair for pair in drawn if fewest[pair] >= ENOUGH_SEEDS]
    p = [found[pair].p for pair in judged]
    adjusted = dict(zip(judged, _holm(p), strict=True))
    times = {
        pair: sum(other >= found[pair].p for other in p) for pair in drawn
    }  # the factor that Holm applies to its p
    return tuple(
        _pair(names[i], names[j], right[i], right[j], found.get((i, j)), adjusted.get((i, j)), times.get((i, j), 1))
        for i, j in every
    )


def _holm(p: Sequence[float]) -> list[float]:
    if not p:
        return []
    from statsmodels.stats.multitest import multipletests  # the import takes a second

    return np.asarray(multipletests(p, alpha=LEVEL, method="holm")[1]).tolist()


def _pair(
    first: str,
    second: str,
    right_first: np.ndarray,
    right_second: np.ndarray,
    found: two_level.Estimate | None,
    adjusted_p: float | None,
    times: int,
) -> Pair:
    outcome, more = Outcome.ONE_SEED, None
    if found:
        outcome = _outcome(found, adjusted_p)
        more = _more(found, times) if outcome is Outcome.NOT_ENOUGH else None
    return Pair(
        first=first,
        second=second,
        difference=float(right_first.mean() - right_second.mean()),
        low=found.low if found else None,
        high=found.high if found else None,
        p=found.p if found else None,
        adjusted_p=adjusted_p,
        n_clips=right_first.shape[1],
        seeds_first=len(right_first),
        seeds_second=len(right_second),
        outcome=outcome,
        more_seeds=more.seeds if more else None,
        more_clips=more.clips if more else None,
    )


def _outcome(found: two_level.Estimate, adjusted_p: float | None) -> Outcome:
    """Decided on the displayed values: a difference shown as 1.0 counts as 1 point."""
    if adjusted_p is None:
        return Outcome.NOT_ENOUGH
    big = _shown(found.difference) >= _shown(MARGIN)
    if adjusted_p < LEVEL:
        return Outcome.BEATS if big else Outcome.UNDER_MARGIN
    inside = _shown(found.low) >= -_shown(TIE) and _shown(found.high) <= _shown(TIE)
    return Outcome.TIED if inside else Outcome.NOT_ENOUGH


def _more(found: two_level.Estimate, times: int) -> two_level.Need:
    """A lead of at least the margin must be distinguished from zero; a smaller one must fit within a tie."""
    lead = found.difference
    if _shown(lead) >= _shown(MARGIN):
        need = two_level.needed(found, lead, LEVEL / max(1, times))
    else:
        need = two_level.needed(found, TIE - lead, LEVEL)
    seeds = max(need.seeds, ENOUGH_SEEDS - min(found.seeds))
    return two_level.Need(seeds=_two_digits(seeds), clips=_two_digits(need.clips))


# Sentences


def _sentence(order: Sequence[Standing], pairs: Sequence[Pair]) -> str:
    one = [standing.name for standing in order if standing.seeds == 1]
    able = [standing for standing in order if standing.seeds > 1]
    if not able:
        return "One seed each: no conclusion about the settings."
    if len(able) == 1:
        return f"One seed of {_some(one)}: no conclusion about the settings."
    said = _leaders(able, {(pair.first, pair.second): pair for pair in pairs})
    if one:
        said.append(f"One seed of {_some(one)}: no conclusion about {'it' if len(one) == 1 else 'them'}.")
    return " ".join(said)


def _leaders(able: Sequence[Standing], pairs: Mapping[tuple[str, str], Pair]) -> list[str]:
    """One or two sentences. The first of a pair has the higher mean, so the top is never beaten."""
    names = [standing.name for standing in able]
    wins = [p for (a, b), p in pairs.items() if p.outcome is Outcome.BEATS and a in names and b in names]
    top, *others = names
    beaten = {top: [p.second for p in wins if p.first == top]}
    if len(beaten[top]) == len(others):
        return [_win(pairs[top, others[0]], others)]
    losers = {pair.second for pair in wins}
    tied = [top]
    for name in others:
        if name not in losers and all(pairs[other, name].outcome.is_tie for other in tied):
            tied.append(name)
    unclear = [name for name in others if name not in losers and name not in tied]
    said = []
    if len(tied) > 1:
        said.append(_tie(pairs[tied[0], tied[1]]) if len(tied) == 2 else f"Tied: {', '.join(tied)}.")
    if unclear:
        said.append(_unclear(tied, unclear, pairs))
    common = [name for name in others if all((who, name) in pairs and _beats(pairs[who, name]) for who in tied)]
    if common and len(tied) > 1:
        who = "Both" if len(tied) == 2 and not unclear else _some(tied)
        said.append(f"{who} beat {_some(common)}.")
    elif common:
        said.append(_win(pairs[top, common[0]], common))
    others_lose = [pair for pair in wins if pair.second not in common]
    if len(said) < 2 and others_lose:
        widest = max(others_lose, key=lambda pair: pair.difference)
        said.append(_win(widest, [widest.second]))
    return said[:2]


def _some(names: Sequence[str]) -> str:
    return listed(names, MOST_NAMED)


def _beats(pair: Pair) -> bool:
    return pair.outcome is Outcome.BEATS


def _win(nearest: Pair, beaten: Sequence[str]) -> str:
    whom = f" over {nearest.second}, the closest" if len(beaten) > 1 else ""
    return (
        f"{nearest.first} beats {_some(beaten)} on the same {nearest.n_clips:,} clips: "
        f"{points(nearest.difference, plus=True)} points{whom} ({_interval(nearest)}), {_seeds(nearest)}."
    )


def _tie(pair: Pair) -> str:
    what = "The difference is"
    if pair.outcome is Outcome.UNDER_MARGIN:
        what = f"{pair.first} leads, but by less than the margin of {100 * MARGIN:g} point:"
    return (
        f"Tied: {pair.first}, {pair.second}. {what} {points(pair.difference, plus=True)} points ({_interval(pair)}) "
        f"on the same {pair.n_clips:,} clips, {_seeds(pair)}."
    )


def _unclear(tied: Sequence[str], unclear: Sequence[str], pairs: Mapping[tuple[str, str], Pair]) -> str:
    """Settings that are neither beaten by the top nor tied with it."""
    open_pairs = [pairs[who, name] for name in unclear for who in tied if (who, name) in pairs]
    open_pairs = [pair for pair in open_pairs if pair.outcome is Outcome.NOT_ENOUGH]
    need = _need(open_pairs)
    if len(tied) > 1:
        return f"Not enough evidence about {_some(unclear)}: {need} would be needed to decide."
    if len(unclear) > 1:
        return f"Not enough evidence between {_some([*tied, *unclear])}: {need} would be needed to decide."
    (pair,) = open_pairs
    lead = f"{pair.first} is ahead of {pair.second} by {points(pair.difference)} points"
    if not _shown(pair.difference):
        lead = f"{pair.first} and {pair.second} are level"
    return (
        f"Not enough evidence: {need} would be needed to decide. {lead} ({_interval(pair)}) "
        f"on the same {pair.n_clips:,} clips, {_seeds(pair)}."
    )


def _need(pairs: Sequence[Pair]) -> str:
    """The seeds and clips needed to decide all of these pairs."""
    seeds = max(pair.more_seeds or 0 for pair in pairs)
    clips = max(pair.more_clips or 0 for pair in pairs)
    parts = []
    if seeds:
        parts.append(f"{seeds} more {'seed' if seeds == 1 else 'seeds'} per setting")
    if clips:
        parts.append(f"{clips:,} more test clips")
    few = "" if any(min(p.seeds_first, p.seeds_second) >= ENOUGH_SEEDS for p in pairs) else "two seeds are too few; "
    alone = "more seeds are not enough; " if clips and not few else ""
    return f"{few}{alone}about {' and '.join(parts)}"


def _interval(pair: Pair) -> str:
    assert pair.low is not None and pair.high is not None
    return f"95 % interval {points(pair.low)} to {points(pair.high)}"


def _seeds(pair: Pair) -> str:
    if pair.seeds_first == pair.seeds_second:
        return f"{pair.seeds_first} seeds"
    return f"{pair.seeds_first} and {pair.seeds_second} seeds"


def _other_clips(mine: Sequence[Prediction], usual: Sequence[Prediction]) -> str:
    ours, theirs = {p.clip_id: p for p in mine}, {p.clip_id: p for p in usual}
    if ours.keys() != theirs.keys():
        return f"its {len(mine):,} test clips are not the {len(usual):,} clips of the other runs"
    count = sum(p.label != theirs[clip].label for clip, p in ours.items())
    have = "has another label" if count == 1 else "have other labels"
    if not count:
        count = sum(p.content != theirs[clip].content for clip, p in ours.items())
        have = "has another sound" if count == 1 else "have other sounds"
    return f"{count:,} of its test clips {have} than in other runs"


def _shown(share: float) -> float:
    """Percentage points as displayed; never minus zero."""
    return round(100 * share, 1) + 0.0


def _two_digits(value: int) -> int:
    """Rounded up to two digits: 1,234 -> 1,300."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return -(-value // unit) * unit
