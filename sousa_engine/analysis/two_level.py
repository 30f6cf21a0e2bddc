"""The difference of two settings over seeds and clips: an interval and a p that hold with three to five seeds.

right[s, c] says whether the network of seed s was right on clip c. An accuracy is a mean over both, and both were
drawn: another seed gives another network, another day other clips. The difference of two settings on the same clips
varies by three parts (first and second setting have S1 and S2 seeds, and there are N clips):

    clips   c / N                      one setting suits some clips better, with every seed
    seeds   v1 / S1 + v2 / S2          one seed's network is better than another's
    own     (r1 / S1 + r2 / S2) / N    what one seed does on one clip, beyond the two

Clips are resampled jointly for both settings (paired: a clip that is hard for both cancels out), seeds independently
within each setting; a draw of the difference is its value plus both deviations. A plain bootstrap of that kind is wrong
with few seeds: benchmarks/results/verdict.json has the rates of false winners. Hence:

1. Resampled seeds vary by (S - 1) / S of what seeds vary by, and there are only a handful of different resamples. So
   the seeds' deviation is drawn from a normal distribution with the unbiased variance.
2. That variance is itself a guess from S values. The deviation is divided by sqrt(chi2 / df), which makes it Student's
   t, with the degrees of freedom of Welch and Satterthwaite: about S1 + S2 - 2, fewer where one setting varies far
   more. Pooling the seeds of all settings would give more, but settings do differ in how much their seeds vary.
3. The spread between seeds and the spread between clips both contain the own part, which would count twice. It is
   estimated from the interaction (many degrees of freedom) and taken out of the clips' part; and the spread between
   seeds is never taken for smaller than it: seeds that agree closer than that do so by luck.
4. Two phantom clips, one for each side, are added to the clips, as Bonett and Price (2012) do: five clips that all
   speak for one setting then give p = 0.065, about what the sign test has (0.0625); a bare bootstrap says 0.013.

What is taken for granted: seeds vary about as a normal distribution does. Where a third of the seeds collapses, three
seeds of one setting may all be lucky and those of another not: 6.5 % false winners among four settings, 1.5 % with five
seeds. Welch's t itself errs by a little where one of two settings varies ten times as much: 5.7 % with three seeds.
Clips are taken to be independent: where few players made them, another player may differ more than an interval says.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
_SEED = 20_261_123
_AT_ONCE = 4_000_000  # weights worked on at a time
_KEPT = 16_000_000  # bytes of a table of weights that is kept for the next call


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """First minus second setting on n clips, as shares in [-1, 1], with 95 % interval; p: two-sided, that it is 0.

    The rest is what it is made of, as named in the module's docstring: v and r of (first, second), and c.
    """

    n: int
    seeds: tuple[int, int]
    difference: float
    low: float
    high: float
    p: float
    seed_variances: tuple[float, float]
    own_variances: tuple[float, float]
    clip_variance: float


@dataclass(frozen=True, kw_only=True)
class Need:
    """What would shrink an interval enough: so many more seeds of each setting, and so many more clips."""

    seeds: int
    clips: int


def estimates(
    right: Sequence[NDArray[np.bool_]], pairs: Sequence[tuple[int, int]], draws: int = DRAWS
) -> tuple[Estimate, ...]:
    """An Estimate for each pair (i, j) of settings. right[i]: (seeds, clips) of bool, the same clips in every setting.

    A pair's numbers depend on nothing but the pair (up to rounding), and are the same each time. Raises ValueError
    where a setting of a pair has fewer than two seeds, or the clips are not equally many.
    """
    if not pairs:
        return ()
    counts = {right[i].shape[1] for pair in pairs for i in pair}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"The settings have {sorted(counts)} clips: they must be measured on the same clips.")
    few = [i for pair in pairs for i in pair if len(right[i]) < 2]
    if few:
        raise ValueError(f"Setting {few[0]} has {len(right[few[0]])} seed: variance between seeds takes two or more.")
    (n,) = counts
    parts = {i: _Part.of(right[i]) for pair in pairs for i in pair}
    clips = np.empty((n + 2, len(pairs)), np.float32)
    for column, (i, j) in enumerate(pairs):
        clips[:n, column] = _clip_values(parts[i], parts[j])
        clips[n:, column] = 1, -1  # the phantoms
    drawn = _resampled_means(clips, draws)
    return tuple(
        _estimate(parts[i], parts[j], drawn[:, column].astype(np.float64)) for column, (i, j) in enumerate(pairs)
    )


def needed(estimate: Estimate, half_width: float, level: float, most_seeds: int = 100) -> Need:
    """How many more seeds of each setting, or clips, bring the half width of the 1 - level interval to `half_width`.

    Seeds first: the fewest that do it alone. Where the clips' part alone is too wide, or it would take more than
    `most_seeds`, clips at the present number of seeds; where these alone do not do it either, some of both. It takes
    the variances, which are guesses from few seeds, to be what they are now: an estimate, no promise.
    """
    from scipy.special import stdtrit

    extra = np.concatenate([np.arange(most_seeds + 1), np.geomspace(most_seeds + 1, 1e6, 200).round()])
    s1, s2 = (seeds + extra for seeds in estimate.seeds)
    (v1, v2), (r1, r2), n = estimate.seed_variances, estimate.own_variances, estimate.n
    first, second = (v1 + r1 / n) / s1, (v2 + r2 / n) / s2
    whole = first + second + estimate.clip_variance / n
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.nan_to_num(whole**2 / (first**2 / (s1 - 1) + second**2 / (s2 - 1)), nan=np.inf)
        allowed = (half_width / stdtrit(np.minimum(df, 1e9), 1 - level / 2)) ** 2
        left = allowed - v1 / s1 - v2 / s2  # for what shrinks with clips
        clips = np.where(left > 0, (r1 / s1 + r2 / s2 + estimate.clip_variance) / left, np.inf)
    enough = np.flatnonzero(clips[1 : most_seeds + 1] <= n)
    if len(enough):
        return Need(seeds=int(enough[0]) + 1, clips=0)
    at = 0 if np.isfinite(clips[0]) else int(np.flatnonzero(clips <= max(n, 2 * clips.min()))[0])
    return Need(seeds=int(extra[at]), clips=max(0 if at else 1, int(np.ceil(clips[at])) - n))


@dataclass(frozen=True)
class _Part:
    """One setting. by_clip: (clips,) share of seeds that were right. variance: between seeds, with the own part."""

    seeds: int
    by_clip: NDArray[np.float64]
    mean: float
    variance: float
    own: float

    @classmethod
    def of(cls, right: NDArray[np.bool_]) -> _Part:
        values = right.astype(np.float64)
        seeds, n = values.shape
        by_clip, by_seed = values.mean(0), values.mean(1)
        mean = float(by_clip.mean())
        rest = values - by_clip - by_seed[:, None] + mean
        own = float((rest**2).sum()) / ((seeds - 1) * max(n - 1, 1))
        return cls(seeds, by_clip, mean, max(float(by_seed.var(ddof=1)), own / n), own)


def _clip_values(first: _Part, second: _Part) -> NDArray[np.float64]:
    """The difference on each clip, drawn together around its mean until it varies as the clips' own part does."""
    values = first.by_clip - second.by_clip
    mean, variance = values.mean(), values.var()
    clip_variance = _clip_variance(first, second)
    return mean + (values - mean) * (np.sqrt(clip_variance / variance) if variance > 0 else 0.0)


def _clip_variance(first: _Part, second: _Part) -> float:
    values = first.by_clip - second.by_clip
    seen = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return max(0.0, seen - first.own / first.seeds - second.own / second.seeds)


def _estimate(first: _Part, second: _Part, clips: NDArray[np.float64]) -> Estimate:
    """clips: (draws,) the difference under resampled clips."""
    a, b = first.variance / first.seeds, second.variance / second.seeds
    bottom = a**2 / (first.seeds - 1) + b**2 / (second.seeds - 1)
    df = (a + b) ** 2 / bottom if bottom > 0 else 1.0
    random = np.random.default_rng(_SEED)  # anew for each pair: a pair's numbers do not depend on the others
    half = (len(clips) + 1) // 2
    deviation = np.sqrt(a) * random.standard_normal(half) - np.sqrt(b) * random.standard_normal(half)
    deviation /= np.sqrt(random.chisquare(df, half) / df)
    drawn = clips + np.concatenate([deviation, -deviation])[: len(clips)]  # both signs: steadier tails
    low, high = np.clip(np.quantile(drawn, [0.025, 0.975]), -1, 1)
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    n = len(first.by_clip)
    return Estimate(
        n=n,
        seeds=(first.seeds, second.seeds),
        difference=first.mean - second.mean,
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (1 + beyond) / (1 + len(clips))),
        seed_variances=(first.variance - first.own / n, second.variance - second.own / n),
        own_variances=(first.own, second.own),
        clip_variance=_clip_variance(first, second),
    )


def _resampled_means(values: NDArray[np.float32], draws: int) -> NDArray[np.float32]:
    """Means of the rows of `values` (n, columns) under `draws` bootstrap resamples: (draws, columns)."""
    n = len(values)
    if n * draws <= _KEPT:
        weights = _kept_weights(n, draws)
        blocks = (weights[i : i + _AT_ONCE // n] for i in range(0, draws, _AT_ONCE // n))
    else:
        blocks = _weights(n, draws)
    return np.concatenate([block.astype(np.float32) @ values for block in blocks]) / np.float32(n)


@functools.lru_cache(maxsize=2)
def _kept_weights(n: int, draws: int) -> NDArray[np.uint8]:
    return np.concatenate(list(_weights(n, draws)))


def _weights(n: int, draws: int):
    """How often each of n clips is in each resample of n, in blocks (some draws, n); the same ones each time."""
    random = np.random.default_rng(_SEED)
    rows = max(1, _AT_ONCE // n)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        picked = random.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(picked.ravel(), minlength=count * n).reshape(count, n).astype(np.uint8)
