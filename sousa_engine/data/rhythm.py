"""The strokes that can be heard in a clip, and features of their pattern for a classifier.

Intervals are multiples of the clip's own unit, levels are in dB relative to its own accents, and timbre is the
difference between its own strokes, so a pattern has the same features at any tempo and level. Only two kinds of
features are absolute: the density of strokes, and quantities that players do not scale with the tempo (the gaps of
grace strokes, the rate of a buzz). Knows nothing of rudiments or labels. librosa is imported inside the functions.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

SAMPLE_RATE_HZ = 16_000  # clips are analysed at this rate, whatever their own
HOP_S = 0.004
PATTERN = 497  # features in `pattern`
POOLED = 128  # features in `pooled`

_HOP = round(HOP_S * SAMPLE_RATE_HZ)
_BANDS, _MELS = 32, 64
_RANGE_DB = 50.0  # cells that are this much quieter than the loudest one count as silence
_CLOSE_S = 0.06  # closer onsets belong to one stroke: grace strokes before it, bounces after it
_GRACES, _BOUNCES = 3, 12  # at most so many belong to one stroke
_SOFTEST_DB = 20.0  # below the accents; softer onsets are echoes and noise
_LONG = 1.6  # units; a longer interval separates two groups of strokes
_MOST = 20  # largest lag in strokes at which a repetition is measured
_LONGEST_S = 2.2  # largest lag of the autocorrelation of the envelope


class Heard(NamedTuple):
    """Every onset of a clip, in order of time, and the envelope in which they were found.

    onset_s: (n,). level_db: (n,), the loudest is 0. shape_db: (n, bands), each onset's spectrum without its level.
    envelope: (frames,) onset strength in dB, one value per HOP_S.
    """

    onset_s: np.ndarray
    level_db: np.ndarray
    shape_db: np.ndarray
    envelope: np.ndarray


class Strokes(NamedTuple):
    """Primary strokes, (n,) each, and the softer onsets around them.

    before, after: the number of softer onsets within a few hundredths of a second before the stroke (grace strokes: one
    for a flam, one or two for a drag, since its two may merge) and after it (one for a bounce, many for a buzz).
    """

    onset_s: np.ndarray
    level_db: np.ndarray
    shape_db: np.ndarray
    before: np.ndarray
    after: np.ndarray


def hear(waveform: np.ndarray) -> Heard:
    """The onsets of float32 (samples,) at SAMPLE_RATE_HZ, interpolated by a parabola; none in silence."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=waveform, sr=SAMPLE_RATE_HZ, n_fft=512, win_length=256, hop_length=_HOP, n_mels=_BANDS, fmin=60.0
    )
    # The quietest fifth of each band is noise, whose fluctuations would count as strokes.
    floor = np.maximum(np.quantile(power, 0.2, axis=1, keepdims=True), power.max() * 10 ** (-_RANGE_DB / 10))
    db = 10.0 * np.log10(power + floor + 1e-12)
    envelope = librosa.onset.onset_strength(S=db, sr=SAMPLE_RATE_HZ, hop_length=_HOP, lag=2, center=False)
    top = float(np.quantile(envelope, 0.99)) if envelope.size else 0.0
    if top < 1.0:  # strokes are rare, or there are none
        top = float(envelope.max(initial=0.0))
    if top < 1.0:
        nothing = np.zeros(0)
        return Heard(nothing, nothing, np.zeros((0, _BANDS)), envelope)
    peaks = librosa.util.peak_pick(envelope, pre_max=3, post_max=4, pre_avg=15, post_avg=15, delta=0.07 * top, wait=3)
    peaks = peaks[(peaks > 0) & (peaks < envelope.size - 1)]
    left, here, right = envelope[peaks - 1], envelope[peaks], envelope[peaks + 1]
    curve = np.minimum(left - 2 * here + right, -1e-9)
    shift = np.clip(0.5 * (left - right) / curve, -0.5, 0.5)
    after = np.minimum(peaks[:, None] + np.arange(5), db.shape[1] - 1)  # 20 ms from the attack
    spectra = db[:, after]  # (bands, onsets, 5)
    gained = power[:, after].max(axis=2) - power[:, np.maximum(peaks - 3, 0)]  # without earlier ones that still ring
    loud = 10.0 * np.log10(gained.clip(0.0).sum(axis=0) + 1e-12)
    shape = spectra.mean(axis=2).T
    return Heard(
        onset_s=(peaks + shift) * HOP_S,
        level_db=loud - loud.max(initial=-120.0),
        shape_db=shape - shape.mean(axis=1, keepdims=True),
        envelope=envelope,
    )


def strokes(heard: Heard) -> Strokes:
    """Primary strokes, found from the loudest onset down; each takes the softer onsets just before and after it.

    Onsets far below the clip's accents are left out, since they are echoes and noise.
    """
    kept = heard.level_db > np.quantile(heard.level_db, 0.9) - _SOFTEST_DB if len(heard.level_db) else slice(None)
    onset_s, level_db, shape_db = heard.onset_s[kept], heard.level_db[kept], heard.shape_db[kept]
    owner = np.full(len(onset_s), -1)
    for i in np.argsort(-level_db, kind="stable"):
        if owner[i] >= 0:
            continue
        owner[i] = i
        for step, room in ((-1, _GRACES), (1, _BOUNCES)):
            k = i + step
            while 0 <= k < len(owner) and owner[k] < 0 and abs(k - i) <= room:
                if abs(onset_s[k] - onset_s[k - step]) > _CLOSE_S or level_db[k] > level_db[i] - 1.5:
                    break
                if step > 0 and level_db[k] > level_db[k - 1] + 1.0:
                    break  # louder again: a grace stroke of the next stroke
                owner[k] = i
                k += step
    primary = np.flatnonzero(owner == np.arange(len(owner)))
    place = np.arange(len(owner))
    return Strokes(
        onset_s=onset_s[primary],
        level_db=level_db[primary],
        shape_db=shape_db[primary],
        before=np.array([np.sum((owner == i) & (place < i)) for i in primary], dtype=float),
        after=np.array([np.sum((owner == i) & (place > i)) for i in primary], dtype=float).clip(max=_BOUNCES),
    )


def unit_s(onset_s: np.ndarray) -> float:
    """The clip's unit of time: its typical short interval between strokes, in s; 0.0 for fewer than two strokes."""
    intervals = np.diff(onset_s)
    if not intervals.size:
        return 0.0
    short = float(np.quantile(intervals, 0.25, method="nearest"))
    return float(intervals[np.abs(intervals / short - 1.0) < 0.18].mean())


def pattern(waveform: np.ndarray) -> np.ndarray:
    """The features of float32 (samples,) at SAMPLE_RATE_HZ as float32 (PATTERN,); finite also for silence."""
    # Rounded: the tails of soft bins are noise, so small that their standard deviation would be zero in float32.
    found = np.concatenate(list(blocks(hear(waveform)).values())).round(5).astype(np.float32)
    assert found.shape == (PATTERN,) and np.isfinite(found).all()
    return found


def blocks(heard: Heard) -> dict[str, np.ndarray]:
    """The parts of `pattern`, by name."""
    found = strokes(heard)
    unit = unit_s(found.onset_s) or 0.1
    interval = np.log2(np.diff(found.onset_s).clip(1e-3) / unit)
    level = found.level_db - (np.quantile(found.level_db, 0.9) if len(found.level_db) else 0.0)
    accent = _accents(level)
    grace = (found.before > 0).astype(float)
    return {
        "density": _density(heard, found, unit),
        "intervals": np.concatenate(
            [
                _spread(interval, np.linspace(-1.0, 3.0, 25), 0.1),
                _spread(np.diff(interval), np.linspace(-2.5, 2.5, 21), 0.15),
            ]
        ),
        "levels": np.concatenate(
            [
                _spread(level, np.linspace(-18.0, 3.0, 15), 1.0),
                _spread(np.diff(level), np.linspace(-12.0, 12.0, 13), 1.2),
                [accent.mean() if accent.size else 0.0],
            ]
        ),
        "attached": _attached(heard, found, unit),
        "again": np.concatenate(  # how similar strokes are that are 1, 2, 3, ... strokes apart
            [_lagged(one, _MOST) for one in (interval, level, found.before, _timbre(found, level))]
        ),
        "groups": np.concatenate(
            [
                _spread(_runs(interval > np.log2(_LONG)), np.arange(1.0, 19.0), 0.5),
                _spread(np.diff(np.flatnonzero(accent)), np.arange(1.0, 19.0), 0.5),
                _spread(np.diff(np.flatnonzero(grace)), np.arange(1.0, 9.0), 0.4),
                _spread(np.diff(found.onset_s[accent]) / unit, np.arange(1.0, 25.0), 0.4),
            ]
        ),
        "period": _period(heard, found, level, unit),
        "opening": _opening(found, interval, level, unit),
        "buzz": _modulation(heard.envelope),
    }


def pooled(waveform: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of each log-mel band: float32 (POOLED,), in dB."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=waveform, sr=SAMPLE_RATE_HZ, n_fft=512, hop_length=160, n_mels=_MELS, fmin=60.0
    )
    db = 10.0 * np.log10(power + 1e-10)
    return np.concatenate([db.mean(axis=1), db.std(axis=1)]).astype(np.float32)


def _density(heard: Heard, found: Strokes, unit: float) -> np.ndarray:
    """Onsets and strokes per second, and the unit, as logarithms: the only absolute features of time."""
    span_s = max(len(heard.envelope) * HOP_S, 0.1)
    counts = np.log2(np.array([len(heard.onset_s), len(found.onset_s)]) / span_s + 0.1)
    return np.concatenate([counts, [np.log2(unit), len(heard.onset_s) / max(len(found.onset_s), 1)]])


def _attached(heard: Heard, found: Strokes, unit: float) -> np.ndarray:
    """Grace strokes and bounces: the shares of strokes with 0, 1, 2, ... of them, and their gaps."""
    shares = [_share(found.before, k) for k in range(4)] + [_share(found.after, k) for k in range(4)]
    gap_s = np.diff(heard.onset_s)
    rising = np.diff(heard.level_db) > 0
    centres = np.log2(np.geomspace(0.012, 0.15, 14))
    return np.concatenate(
        [
            shares,
            [found.before.mean() if len(found.before) else 0.0, found.after.mean() if len(found.after) else 0.0],
            _spread(np.log2(gap_s[rising].clip(1e-3)), centres, 0.18, of=len(gap_s)),
            _spread(np.log2(gap_s[~rising].clip(1e-3)), centres, 0.18, of=len(gap_s)),
        ]
    )


def _accents(level: np.ndarray) -> np.ndarray:
    """Which strokes are accented: the upper of two clusters of levels, if these are distinct. (n,) bool."""
    if level.size < 3:
        return np.zeros(level.size, dtype=bool)
    ordered = np.sort(level)
    cuts = np.arange(1, level.size)
    low = np.cumsum(ordered)[:-1] / cuts
    high = (ordered.sum() - np.cumsum(ordered)[:-1]) / (level.size - cuts)
    between = cuts * (level.size - cuts) * (high - low) ** 2
    best = int(np.argmax(between))
    if high[best] - low[best] < 3.5:
        return np.zeros(level.size, dtype=bool)
    return level > (ordered[best] + ordered[best + 1]) / 2


def _timbre(found: Strokes, level: np.ndarray) -> np.ndarray:
    """(n, bands): the part of a stroke's spectrum that its level and the gap before it do not explain: the hand."""
    n = len(level)
    if n < 6:
        return np.zeros((n, 1))
    gap = np.log2(np.diff(found.onset_s, prepend=found.onset_s[0] - 0.2).clip(1e-3))
    explain = np.stack([np.ones(n), level, gap, found.before], axis=1)
    return found.shape_db - explain @ np.linalg.lstsq(explain, found.shape_db, rcond=None)[0]


def _period(heard: Heard, found: Strokes, level: np.ndarray, unit: float) -> np.ndarray:
    """The autocorrelation of the onset envelope, and of the accents only, at lags of 1/2, 1, 3/2, ... units."""
    frames = len(heard.envelope)
    weighted = np.zeros(frames)
    at = np.round(found.onset_s / HOP_S).astype(int).clip(0, max(frames - 1, 0))
    np.maximum.at(weighted, at, (level + 12.0).clip(0.0))
    weighted = np.convolve(weighted, np.hanning(9), mode="same")
    lags = np.arange(0.5, 24.5, 0.5) * unit / HOP_S
    longest = min(_LONGEST_S / HOP_S, frames - 2)
    found_at = [np.interp(lags, np.arange(frames), _autocorrelation(x)) for x in (heard.envelope, weighted)]
    return np.concatenate([np.where(lags <= longest, values, 0.0) for values in found_at])


def _opening(found: Strokes, interval: np.ndarray, level: np.ndarray, unit: float) -> np.ndarray:
    """The first strokes, one by one and on a grid of units, since clips often begin with their pattern."""
    first = 16
    by_stroke = [_first(x, first) for x in (interval, level, found.before)]
    place = (found.onset_s - found.onset_s[0]) / unit if len(found.onset_s) else found.onset_s
    near = np.exp(-0.5 * ((place[:, None] - np.arange(24.0)) / 0.3) ** 2)  # (strokes, places)
    grid = [weight @ near for weight in (np.ones(len(place)), (level + 12.0).clip(0.0), found.before)]
    return np.concatenate([*by_stroke, *grid])


def _modulation(envelope: np.ndarray) -> np.ndarray:
    """The distribution of the envelope's power over 3 to 60 Hz; a buzz has most between 25 and 45 Hz."""
    if envelope.size < 8 or not envelope.any():
        return np.zeros(16)
    size = 2048
    power = np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(envelope.size), size)) ** 2
    hz = np.fft.rfftfreq(size, HOP_S)
    edges = np.geomspace(3.0, 60.0, 17)
    held = np.array([power[(hz >= low) & (hz < high)].sum() for low, high in itertools.pairwise(edges)])
    return held / max(held.sum(), 1e-12)


def _autocorrelation(x: np.ndarray) -> np.ndarray:
    """(n,) from (n,): 1 at lag 0; the sum at each lag is divided by its number of terms."""
    centred = x - x.mean()
    spectrum = np.fft.rfft(centred, 2 * len(x))
    sums = np.fft.irfft(np.abs(spectrum) ** 2)[: len(x)]
    found = sums / np.arange(len(x), 0, -1)
    return found / found[0] if found[0] > 1e-12 else np.zeros(len(x))


def _lagged(x: np.ndarray, most: int) -> np.ndarray:
    """(most,): autocorrelation of a sequence (n,) or (n, d) at lags 1 to `most`; 0 where it is too short."""
    found = np.zeros(most)
    if len(x) < 4:
        return found
    x = x.reshape(len(x), -1)
    x = x - x.mean(axis=0)
    scale = float((x * x).sum(axis=1).mean())
    if scale < 1e-9:
        return found
    for k in range(1, min(most, len(x) - 3) + 1):
        found[k - 1] = float((x[:-k] * x[k:]).sum(axis=1).mean()) / scale
    return found


def _runs(ends: np.ndarray) -> np.ndarray:
    """Lengths of the groups into which `ends` (n - 1,) divides n strokes, without the last, which the clip cuts off."""
    return np.diff(np.flatnonzero(ends), prepend=-1)


def _spread(values: np.ndarray, centres: np.ndarray, width: float, of: int | None = None) -> np.ndarray:
    """A histogram with soft bins: the share of values near each centre. of: their total number."""
    n = len(values) if of is None else of
    if not n:
        return np.zeros(len(centres))
    return np.exp(-0.5 * ((values[:, None] - centres) / width) ** 2).sum(axis=0) / n


def _share(counts: np.ndarray, k: int) -> float:
    return float(np.mean(counts == k)) if counts.size else 0.0


def _first(x: np.ndarray, n: int) -> np.ndarray:
    """The first n values, padded with a value far below any of them."""
    return np.concatenate([x[:n], np.full(max(0, n - len(x)), -20.0)])
