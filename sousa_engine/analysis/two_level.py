"""The difference of two settings over seeds and clips: an interval and a p that are valid with three to five seeds.

right[s, c] says whether the network of seed s was right on clip c. An accuracy is a mean over both, and both are
samples: another seed gives another network, another recording day other clips. The variance of the difference of two
settings on the same clips has three parts (the settings have S1 and S2 seeds, and there are N clips):

    clips   c / N                      one setting is better on some clips, with every seed
    seeds   v1 / S1 + v2 / S2          the network of one seed is better than that of another
    own     (r1 / S1 + r2 / S2) / N    the rest: the interaction of one seed with one clip

Clips are resampled jointly for both settings (paired: a clip that is hard for both cancels out), seeds independently
within each setting; a sample of the difference is its value plus both deviations. A plain bootstrap of this kind is
wrong with few seeds: benchmarks/results/verdict.json has the rates of false winners. Therefore:

1. The variance of resampled seeds is too small by the factor (S - 1) / S, and there are only a few distinct resamples.
   So the deviation of seeds is sampled from a normal distribution with the unbiased variance.
2. That variance is itself estimated from S values. The deviation is divided by sqrt(chi2 / df), which makes it
   Student's t, with the degrees of freedom of Welch and Satterthwaite: about S1 + S2 - 2, fewer if one setting varies
   far more. Pooling the seeds of all settings would give more, but the variance between seeds differs by setting.
3. The variance between seeds and the variance between clips both contain the own part, which would count twice. It is
   estimated from the interaction (many degrees of freedom) and subtracted from the clips' part. The variance between
   seeds is never assumed to be smaller than it: seeds that agree more closely do so by chance.
4. Two phantom clips, one for each side, are added to the clips, as in Bonett and Price (2012): five clips that all
   favour one setting then give p = 0.065, close to the sign test (0.0625); a plain bootstrap gives 0.013.

Assumptions: the variation of seeds is roughly normal. If a third of the seeds collapse, three seeds of one setting may
all be lucky and those of another not: 6.5 % false winners among four settings, 1.5 % with five seeds. Welch's t itself
is slightly off if one of two settings varies ten times as much: 5.7 % with three seeds. Clips are assumed to be
independent: if only a few players recorded them, another player may differ more than an interval suggests.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
_SEED = 20_261_123
_AT_ONCE = 4_000_000  # weights processed at a time
_KEPT = 16_000_000  # bytes; a table of weights up to this size is cached


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """First minus second setting on n clips, as shares in [-1, 1], with 95 % interval; p: two-sided, for no difference.

    The other fields are its parts, as in the docstring of the module: v and r of (first, second), and c.
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
    """How many more seeds of each setting, and how many more clips, would make an interval narrow enough."""

    seeds: int
    clips: int


def estimates(
    right: Sequence[NDArray[np.bool_]], pairs: Sequence[tuple[int, int]], draws: int = DRAWS
) -> tuple[Estimate, ...]:
    """An Estimate for each pair (i, j) of settings. right[i]: (seeds, clips) of bool, the same clips in every setting.

    The result for a pair depends only on the pair (up to rounding) and is reproducible. Raises ValueError if a setting
    of a pair has fewer than two seeds, or if the numbers of clips differ.
    """
    if not pairs:
        return ()
    counts = {right[i].shape[1] for pair in pairs for i in pair}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"The settings have {sorted(counts)} clips; they must be tested on the same clips.")
    few = [i for pair in pairs for i in pair if len(right[i]) < 2]
    if few:
        raise ValueError(
            f"Setting {few[0]} has {len(right[few[0]])} seed; the variance between seeds needs at least two."
        )
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

    Seeds first: the fewest that are enough. If the clips' part alone is too wide, or if more than `most_seeds` would be
    needed: clips, with the present number of seeds; if these are not enough either: some of both. This assumes that the
    variances, estimated from few seeds, are correct, so it is only an estimate.
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
    """One setting. by_clip: (clips,) share of correct seeds. variance: between seeds, including the own part."""

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
    """The difference on each clip, scaled around its mean so that its variance equals the clips' part."""
    values = first.by_clip - second.by_clip
    mean, variance = values.mean(), values.var()
    clip_variance = _clip_variance(first, second)
    return mean + (values - mean) * (np.sqrt(clip_variance / variance) if variance > 0 else 0.0)


def _clip_variance(first: _Part, second: _Part) -> float:
    values = first.by_clip - second.by_clip
    seen = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return max(0.0, seen - first.own / first.seeds - second.own / second.seeds)


def _estimate(first: _Part, second: _Part, clips: NDArray[np.float64]) -> Estimate:
    """clips: (draws,) the difference for each resample of the clips."""
    a, b = first.variance / first.seeds, second.variance / second.seeds
    bottom = a**2 / (first.seeds - 1) + b**2 / (second.seeds - 1)
    df = (a + b) ** 2 / bottom if bottom > 0 else 1.0
    random = np.random.default_rng(_SEED)  # created for each pair, so that a pair does not depend on the others
    half = (len(clips) + 1) // 2
    deviation = np.sqrt(a) * random.standard_normal(half) - np.sqrt(b) * random.standard_normal(half)
    deviation /= np.sqrt(random.chisquare(df, half) / df)
    drawn = clips + np.concatenate([deviation, -deviation])[: len(clips)]  # both signs give more stable tails
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
    """Means over the rows of `values` (n, columns) for `draws` bootstrap resamples: (draws, columns)."""
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
    """How often each of n clips occurs in each resample, in blocks (some draws, n); reproducible."""
    random = np.random.default_rng(_SEED)
    rows = max(1, _AT_ONCE // n)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        picked = random.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(picked.ravel(), minlength=count * n).reshape(count, n).astype(np.uint8)
