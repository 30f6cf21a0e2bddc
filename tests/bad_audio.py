"""A folder of classes in which everything is wrong that a scan looks for, made by code."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
GOOD = 6  # clips a class
# File -> level, kind, and a part of the reason that names the value.
EXPECTED = {
    "roll/zero-byte.wav": ("error", "empty", "0 bytes"),
    "roll/header-only.wav": ("error", "no-samples", "44 bytes"),
    "roll/half-a-header.wav": ("error", "unreadable", "not readable as audio"),
    "roll/data-size-0.wav": ("error", "no-samples", "32,044 bytes"),
    "roll/truncated.wav": ("error", "truncated", "promises 16,000 samples, it holds 7,989"),
    "roll/truncated.flac": ("error", "corrupt", "of 16,000"),
    "roll/truncated.mp3": ("error", "truncated", "promises 16,000 samples"),
    "roll/truncated.aiff": ("error", "truncated", "it holds 7,986"),
    "roll/truncated.w64": ("error", "truncated", "it holds 7,974"),
    "roll/truncated-rf64.wav": ("error", "truncated", "promises 16,000 samples, it holds 7,974"),
    "roll/corrupt.flac": ("error", "corrupt", "beyond sample 0 of 16,000"),
    "roll/text.wav": ("error", "text", "it holds text"),
    "roll/noise.mp3": ("error", "unreadable", "Format not recognised"),
    "roll/nan.wav": ("error", "not-a-number", "1 of its 16,000 samples"),
    "roll/inf.wav": ("error", "not-a-number", "2 of its 32,000 samples"),
    "roll/overflow.wav": ("error", "level", "3.4e+37 times full scale"),
    "roll/0-channels.wav": ("error", "channels", "0 channels"),
    "roll/1024-channels.wav": ("error", "channels", "1,024 channels"),
    "roll/0-hz.wav": ("error", "rate", "claims 0 Hz"),
    "roll/1-hz.wav": ("error", "rate", "claims 1 Hz"),
    "roll/768-khz.wav": ("error", "rate", "claims 768,000 Hz"),
    "roll/one-sample.wav": ("error", "short", "(1 sample)"),
    "roll/song.m4a": ("error", "format", "convert it to wav or flac"),
    "roll/folder.wav": ("error", "no-file", "but a folder"),
    "roll/loop.wav": ("error", "link", "back to itself"),
    "roll/nowhere.wav": ("error", "missing", "'gone.wav', which does not exist"),
    "roll/linked": ("error", "link", "a link to a folder"),
    "roll/not\\udcff-utf8.wav": ("error", "name", "rename it"),
    "single/only.wav": ("error", "class", "its class 'single' has 1 clip, but 3 splits need at least 3"),
    "roll/silent.wav": ("warning", "silent", "all its samples are zero"),
    "roll/integers-as-floats.wav": ("warning", "level", "times full scale"),
    "roll/8-channels.wav": ("warning", "channels", "8 channels, which are mixed down"),
    "roll/12345-hz.wav": ("warning", "rate", "12,345 Hz is unusual"),
    "roll/riff-size.wav": ("warning", "header", "claims a file of 1,000,000,000 bytes (RIFF), but it has 32,044"),
    "roll/data-size-ffffffff.wav": ("warning", "header", "4,294,967,295 bytes"),
    "roll/three-hours.wav": ("warning", "long", "3 h 00 min"),
}
ALSO_SILENT = "roll/three-hours.wav"  # zeros cost no disk


def noise(seed: int, samples: int = RATE_HZ) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).clip(-1, 1)


def write(path: Path, seed: int, **more) -> bytes:
    """One second of noise; what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seed), RATE_HZ, **more)
    return path.read_bytes()


def pcm(path: Path, *, rate_hz: int = RATE_HZ, channels: int = 1, seed: int = 0, frames: int = RATE_HZ) -> None:
    """A WAV whose header says whatever is asked for."""
    sound = np.repeat((noise(seed, frames) * 32_000).astype("<i2"), channels).tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, (rate_hz * channels * 2) & 0xFFFFFFFF, channels * 2, 16)
    path.write_bytes(
        struct.pack("<4sI4s4sI", b"RIFF", 36 + len(sound), b"WAVE", b"fmt ", 16)
        + form
        + struct.pack("<4sI", b"data", len(sound))
        + sound
    )


def write_all(root: Path) -> Path:
    """Two classes of GOOD clips, and among those of roll everything in EXPECTED."""
    for at, label in enumerate(("roll", "tap")):
        for i in range(GOOD):
            write(root / label / f"{i}.wav", 100 * at + i)
    roll = root / "roll"
    write(root / "single" / "only.wav", 900)

    whole = write(roll / "riff-size.wav", 901)
    (roll / "riff-size.wav").write_bytes(whole[:4] + struct.pack("<I", 10**9) + whole[8:])
    whole = write(roll / "data-size-ffffffff.wav", 902)
    (roll / "data-size-ffffffff.wav").write_bytes(whole[:40] + b"\xff" * 4 + whole[44:])
    (roll / "data-size-0.wav").write_bytes(whole[:40] + bytes(4) + whole[44:])
    (roll / "zero-byte.wav").touch()
    (roll / "header-only.wav").write_bytes(whole[:44])
    (roll / "half-a-header.wav").write_bytes(whole[:20])
    (roll / "truncated.wav").write_bytes(whole[: 44 + 2 * 7_989])
    for ending in ("flac", "mp3", "aiff", "w64"):
        whole = write(roll / f"truncated.{ending}", 903)
        (roll / f"truncated.{ending}").write_bytes(whole[: len(whole) // 2])
    whole = write(roll / "truncated-rf64.wav", 904, format="RF64")
    (roll / "truncated-rf64.wav").write_bytes(whole[: len(whole) // 2])
    whole = write(roll / "corrupt.flac", 905)
    (roll / "corrupt.flac").write_bytes(whole[:14_000] + bytes(400) + whole[14_400:])

    (roll / "text.wav").write_text("This is where the recording should be.\n")
    (roll / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    (roll / "song.m4a").write_bytes(bytes(64))
    sound = noise(906).astype(np.float32)
    sound[5] = np.nan
    soundfile.write(roll / "nan.wav", sound, RATE_HZ, subtype="FLOAT")
    stereo = np.stack([noise(907), noise(908)], axis=1).astype(np.float32)
    stereo[7] = np.inf
    soundfile.write(roll / "inf.wav", stereo, RATE_HZ, subtype="FLOAT")
    loud = noise(911) / np.abs(noise(911)).max()
    soundfile.write(roll / "overflow.wav", (3.4e37 * loud).astype(np.float32), RATE_HZ, subtype="FLOAT")
    soundfile.write(roll / "integers-as-floats.wav", (32_768 * loud).astype(np.float32), RATE_HZ, subtype="FLOAT")
    soundfile.write(roll / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    pcm(roll / "one-sample.wav", frames=1)
    pcm(roll / "0-channels.wav", channels=0)
    pcm(roll / "8-channels.wav", channels=8, seed=909)
    pcm(roll / "1024-channels.wav", channels=1024, frames=1_600)
    for name, rate_hz in (("0-hz", 0), ("1-hz", 1), ("12345-hz", 12_345), ("768-khz", 768_000)):
        pcm(roll / f"{name}.wav", rate_hz=rate_hz, seed=910)
    three_hours = 3 * 3_600 * 8_000
    with (roll / "three-hours.wav").open("wb") as file:
        file.write(struct.pack("<4sI4s4sI", b"RIFF", 36 + three_hours, b"WAVE", b"fmt ", 16))
        file.write(struct.pack("<HHIIHH4sI", 1, 1, 8_000, 8_000, 1, 8, b"data", three_hours))
        file.truncate(44 + three_hours)

    (roll / "folder.wav").mkdir()
    (roll / "loop.wav").symlink_to("loop.wav")
    (roll / "nowhere.wav").symlink_to("gone.wav")
    (roll / "linked").symlink_to(root / "tap")
    write(roll / "good.wav", 911)
    (roll / "good.wav").rename(roll / "not\udcff-utf8.wav")
    return root
