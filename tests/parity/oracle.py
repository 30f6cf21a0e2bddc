"""Reads the parity data: remakes weights and clips, and measures how far an output is from the recorded one."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np


class Oracle:
    """One folder of recorded outputs, e.g. Oracle("ast_base_audioset")."""

    def __init__(self, name: str):
        self.folder = folder = Path(__file__).parent / name
        self.keys = json.loads((folder / "keys.json").read_text())
        self.info = json.loads((folder / "outputs.json").read_text())
        self.recorded = np.load(folder / "outputs.npz")

    @property
    def hub_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in the file on the Hugging Face hub."""
        return {k: tuple(v) for k, v in json.loads((self.folder / "hub_keys.json").read_text()).items()}

    def state(self) -> dict[str, np.ndarray]:
        """The authors' state dict: name -> float32 array. Checked against the recorded checksums."""
        made = {name: self.tensor(name) for name in self.keys["tensors"]}
        for name, array in made.items():
            assert zlib.crc32(array.tobytes()) == self.keys["tensors"][name][3], name
        return made

    def tensor(self, name: str, salt: str = "") -> np.ndarray:
        """One tensor of the state dict; with a salt, other numbers of the same distribution."""
        shape, a, b, _ = self.keys["tensors"][name]
        return (a + b * _unit(name + salt, math.prod(shape))).astype(np.float32).reshape(shape)

    def clip(self, name: str) -> np.ndarray:
        """A drum-like clip, float32 (samples,): strokes of noise and a decaying tone; the last tenth is silent."""
        facts = self.keys["clips"][name]
        samples = round(facts["sr"] * facts["seconds"])
        words = _words("waveform:" + name, 64)
        at = np.arange(samples, dtype=np.float64) / facts["sr"]
        noise = _unit("noise:" + name, samples)
        clip = 0.002 * _unit("floor:" + name, samples)

        def drawn(index: int, low: float, high: float) -> float:
            return low + (high - low) * (float(words[index] >> np.uint64(11)) * 2.0**-53)

        for stroke in range(5 + int(words[0] % np.uint64(4))):
            start = drawn(1 + 4 * stroke, 0.02, 0.85) * facts["seconds"]
            level = drawn(2 + 4 * stroke, 0.2, 0.6)
            decay = drawn(3 + 4 * stroke, 2.0, 14.0)
            pitch = drawn(4 + 4 * stroke, 80.0, 3500.0)
            envelope = np.where(at >= start, np.exp(-decay * np.maximum(at - start, 0.0)), 0.0)
            clip += level * envelope * (0.35 * noise + 0.65 * np.sin(2.0 * np.pi * pitch * (at - start)))
        clip[samples - samples // 10 :] = 0.0
        stored = np.clip(np.round(clip * 20000.0), -32768, 32767).astype(np.int16)
        assert hashlib.sha256(stored.tobytes()).hexdigest() == facts["int16_sha256"], name
        return stored.astype(np.float32) / np.float32(32768.0)

    def difference(self, name: str, array) -> float:
        """Largest absolute difference of `array` from the recorded output, e.g. "B/logits"."""
        facts = self.info["outputs"][name]
        flat = np.ascontiguousarray(array, dtype=np.float32).reshape(facts["shape"]).reshape(-1)
        if facts["stored"] != "full":
            sampled = int(facts["stored"].split("=")[1])
            flat = flat[(_words("sample:" + name, sampled) % np.uint64(flat.size)).astype(np.int64)]
        return float(np.abs(flat - self.recorded[name.replace("/", "__")].reshape(-1)).max())

    def tolerance(self, name: str) -> float:
        accepted = self.info["tolerance"]
        short = name.split("/", 1)[1]
        return accepted.get(short, accepted["other"] * max(1.0, self.info["outputs"][name]["std"]))


def _words(text: str, n: int) -> np.ndarray:
    """n raw uint64 words of a PCG64 stream seeded by the text: the same under every numpy."""
    return np.random.PCG64(zlib.crc32(text.encode())).random_raw(n)


def _unit(text: str, n: int) -> np.ndarray:
    """n float64 numbers, uniform, with mean 0 and variance 1."""
    return (2.0 * ((_words(text, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53) - 1.0) * 1.7320508075688772
