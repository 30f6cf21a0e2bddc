"""The sound of one drum stroke, of a room and of background noise. Knows nothing of rhythm.

A stroke is the sum of circular-membrane modes (detuned, with a pitch glide that depends on the force), the rattle of
the snare wires and the click of the stick. Each player has one drum, two sticks and two places on the head, so the
hands differ slightly in timbre and level; harder strokes are brighter. Everything is drawn from a seed and is
identical on every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SAMPLE_RATE_HZ = 16_000
STROKE_SAMPLES = 3_600  # 225 ms
VELOCITIES = 8  # bank levels, softest to hardest
LEVEL_STEP_DB = 4.0  # between neighbouring bank levels
TAKES = 3  # different recordings of the same stroke

ROOMS = ("dry", "booth", "studio", "hall")
_RT60_S = {"dry": 0.0, "booth": 0.12, "studio": 0.3, "hall": 0.8}
_WET_DB = {"dry": -99.0, "booth": -9.0, "studio": -8.0, "hall": -9.0}
_ROOM_VARIANTS = 4
_FFT_SAMPLES = 80_000  # 4 s and the longest room: 2^7 * 5^4

# Zeros of the Bessel functions J0..J4: the frequencies of a circular membrane, as (order, zero).
_MODES = ((0, 2.405), (1, 3.832), (2, 5.136), (0, 5.520), (3, 6.380), (1, 7.016), (4, 7.588), (2, 8.417))


@dataclass(frozen=True, kw_only=True)
class Drum:
    """A player's instrument and hands, drawn once per player. Pairs are (right, left)."""

    fundamental_hz: float
    mode_ratios: tuple[float, ...]
    mode_decay_s: float
    glide: float  # how far the pitch of the hardest stroke starts above its final value, as a fraction
    wires: float  # level of the snare wires; 0.1 for loose wires, 1 for crisp ones
    wires_decay_s: float
    wires_hz: float
    place: tuple[float, float]  # where the tip lands: 0 is the centre, 1 the rim
    click_hz: tuple[float, float]
    click: tuple[float, float]
    hand_db: tuple[float, float]


def drum(seed: int) -> Drum:
    """The instrument and hands of the player with this seed."""
    rng = np.random.default_rng([seed, 1])
    place = rng.uniform(0.12, 0.5)
    apart = rng.uniform(0.08, 0.2) * rng.choice((-1.0, 1.0))
    click_hz = rng.uniform(2600.0, 4600.0)
    pitch_apart = 1.0 + rng.uniform(0.04, 0.14) * rng.choice((-1.0, 1.0))
    click = rng.uniform(0.12, 0.35)
    first = _MODES[0][1]
    return Drum(
        fundamental_hz=float(rng.uniform(165.0, 275.0)),
        mode_ratios=tuple(float(zero / first * rng.normal(1.0, 0.02)) for _, zero in _MODES),
        mode_decay_s=float(rng.uniform(0.035, 0.09)),
        glide=float(rng.uniform(0.03, 0.12)),
        wires=float(np.exp(rng.uniform(np.log(0.1), np.log(1.0)))),
        wires_decay_s=float(rng.uniform(0.03, 0.08)),
        wires_hz=float(rng.uniform(1800.0, 3600.0)),
        place=(float(place), float(np.clip(place + apart, 0.05, 0.7))),
        click_hz=(float(click_hz), float(click_hz * pitch_apart)),
        click=(float(click), float(click * rng.uniform(0.7, 1.3))),
        hand_db=(0.0, float(rng.uniform(-1.5, 0.5))),
    )


@lru_cache(maxsize=96)
def stroke_bank(seed: int) -> np.ndarray:
    """Every stroke of one player: float32 (hand, velocity, take, STROKE_SAMPLES); hand 0 is the right hand.

    Level v peaks about (VELOCITIES - 1 - v) * LEVEL_STEP_DB below the hardest.
    """
    kit = drum(seed)
    rng = np.random.default_rng([seed, 2])
    t = np.arange(STROKE_SAMPLES) / SAMPLE_RATE_HZ
    bank = np.empty((2, VELOCITIES, TAKES, STROKE_SAMPLES), dtype=np.float32)
    for hand in (0, 1):
        gains = np.array([abs(_bessel(order, zero * kit.place[hand])) for order, zero in _MODES])
        for level in range(VELOCITIES):
            force = 10.0 ** (-(VELOCITIES - 1 - level) * LEVEL_STEP_DB / 20.0)
            for take in range(TAKES):
                bank[hand, level, take] = force * _stroke(kit, hand, force, gains, t, rng)
    fade = np.ones(STROKE_SAMPLES, dtype=np.float32)
    fade[-400:] = np.linspace(1.0, 0.0, 400)
    bank *= fade
    bank /= np.abs(bank[:, -1]).max()
    return bank


def put_in_room(dry: np.ndarray, room: str, variant: int) -> np.ndarray:
    """The performance in one of ROOMS: (samples,) -> (samples,), float32."""
    if room == "dry":
        return dry
    assert dry.size + int(_RT60_S[room] * SAMPLE_RATE_HZ) <= _FFT_SAMPLES, "clip too long for the room's FFT"
    spectrum = np.fft.rfft(dry, _FFT_SAMPLES) * _room_spectrum(room, variant % _ROOM_VARIANTS)
    return np.fft.irfft(spectrum, _FFT_SAMPLES)[: dry.size].astype(np.float32)


def background(samples: int, kind: int, offset: int) -> np.ndarray:
    """Background noise of unit power. kind: 0 hiss, 1 room tone, 2 room tone with mains hum, 3 ventilation."""
    noise = _noise(kind % 4)
    start = offset % (noise.size - samples)
    return noise[start : start + samples]


def _stroke(kit: Drum, hand: int, force: float, gains: np.ndarray, t: np.ndarray, rng) -> np.ndarray:
    """One stroke at unit level; `force` (0 to 1) only changes its timbre."""
    bright = force**0.35
    ratios = np.array(kit.mode_ratios)
    high = ratios / ratios[0]
    mode_gain = gains * rng.normal(1.0, 0.05, gains.size) * bright ** (0.6 * (high - 1.0))
    decay_s = kit.mode_decay_s / high**0.6
    glide = 0.012 * kit.glide * force * (1.0 - np.exp(-t / 0.012))  # integral of the glide over time, s
    phase = 2.0 * np.pi * kit.fundamental_hz * rng.normal(1.0, 0.004) * (t + glide)
    start = rng.uniform(-0.3, 0.3, gains.size)
    body = sum(
        g * np.exp(-t / d) * np.sin(r * phase + p) for g, d, r, p in zip(mode_gain, decay_s, ratios, start, strict=True)
    )
    body = body * np.minimum(t / 0.0008, 1.0)

    wires_decay_s = kit.wires_decay_s * (0.6 + 0.4 * bright)
    envelope = np.exp(-t / wires_decay_s) * np.minimum(t / 0.003, 1.0)
    wires = _shaped(rng.standard_normal(t.size), kit.wires_hz * (0.5 + bright), 1.1) * envelope

    centre_hz = kit.click_hz[hand] * (0.75 + 0.25 * bright) * rng.normal(1.0, 0.01)
    click = np.exp(-t / 0.0022) * np.sin(2.0 * np.pi * centre_hz * t + rng.uniform(0.0, 0.5))
    place_wires = 1.0 + 0.5 * kit.place[hand]
    level = 10.0 ** (kit.hand_db[hand] / 20.0)
    return level * (body + kit.wires * place_wires * bright * wires + kit.click[hand] * bright**2 * click)


def _shaped(noise: np.ndarray, centre_hz: float, width_octaves: float) -> np.ndarray:
    """Noise with a bell-shaped spectrum around a centre frequency, at unit power."""
    spectrum = np.fft.rfft(noise)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(noise.size, 1.0 / SAMPLE_RATE_HZ), 20.0) / centre_hz)
    shaped = np.fft.irfft(spectrum * np.exp(-0.5 * (octaves / width_octaves) ** 2), noise.size)
    return shaped / (np.sqrt(np.mean(shaped**2)) + 1e-12)


def _bessel(order: int, x: float) -> float:
    """J_order(x) by its integral, precise enough for the gain of a mode at a place on the head."""
    angle = (np.arange(64) + 0.5) * np.pi / 64
    return float(np.mean(np.cos(order * angle - x * np.sin(angle))))


@lru_cache(maxsize=32)
def _room_spectrum(room: str, variant: int) -> np.ndarray:
    """Spectrum of a room's impulse response: the direct sound, a few reflections, a decaying tail."""
    rng = np.random.default_rng([7_001, ROOMS.index(room), variant])
    length = int(_RT60_S[room] * SAMPLE_RATE_HZ)
    t = np.arange(length) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(length) * 10.0 ** (-3.0 * t / _RT60_S[room])
    tail[: int(rng.uniform(0.003, 0.008) * SAMPLE_RATE_HZ)] = 0.0
    walls = rng.integers(int(0.002 * SAMPLE_RATE_HZ), int(0.018 * SAMPLE_RATE_HZ), 6)
    tail[walls] += rng.uniform(2.0, 5.0, 6) * rng.choice((-1.0, 1.0), 6)
    tail = np.convolve(tail, [0.25, 0.5, 0.25])[:length]  # walls absorb the highest frequencies
    wet_db = _WET_DB[room] + rng.uniform(-3.0, 3.0)
    response = tail / np.sqrt(np.sum(tail**2)) * 10.0 ** (wet_db / 20.0)
    response[0] += 1.0
    return np.fft.rfft(response.astype(np.float32), _FFT_SAMPLES)


@lru_cache(maxsize=4)
def _noise(kind: int) -> np.ndarray:
    size = 1 << 18
    rng = np.random.default_rng([7_002, kind])
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE_HZ)
    slope = (0.0, 0.5, 0.5, 1.0)[kind]
    noise = np.fft.irfft(spectrum / np.maximum(hz, 40.0) ** slope, size)
    noise /= np.sqrt(np.mean(noise**2))
    if kind == 2:
        t = np.arange(size) / SAMPLE_RATE_HZ
        noise += sum(np.sin(2.0 * np.pi * 50.0 * k * t + k) * 1.5 / k for k in (1, 2, 3, 4))
        noise /= np.sqrt(np.mean(noise**2))
    return noise.astype(np.float32)
