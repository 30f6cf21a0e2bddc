"""Decode a file of unknown origin for a listener, in a process of limited memory and time.

As a program, this is that process: it writes the samples as float32 to stdout, or a sentence to stderr (exit code 2).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sousa_engine.core.errors import DataError
from sousa_engine.data import audio, decode, headers
from sousa_engine.workspace import PROJECT_ROOT, processes

WORKER = (sys.executable, "-m", "sousa_engine.data.excerpt")
CPU_S = 10  # the first seconds of an ordinary file take a hundredth of this
WALL_S = 60.0
_FIX = "Export it again, or remove it."
_REFUSED = 2


def waveform(
    path: Path, clip_s: float, sample_rate_hz: int, *, command: Sequence[str] = WORKER, wall_s: float = WALL_S
) -> np.ndarray:
    """Like audio.load: float32 (samples,). Raises DataError, also for a file that crashes its decoder."""
    words = [*command, str(path), repr(clip_s), str(sample_rate_hz)]
    env = processes.environment({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})  # threads take address space
    try:
        done = subprocess.run(
            words, cwd=PROJECT_ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=wall_s
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{path} cannot be played: decoding it did not finish within {wall_s:g} s. {_FIX}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be played: no process can be started to decode it ({error}).") from None
    if done.returncode == 0:
        return np.frombuffer(done.stdout, dtype=np.float32)
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == _REFUSED:
        raise DataError(said)
    if done.returncode == -signal.SIGXCPU:
        why = f"decoding it takes more than {CPU_S} s of processor time"
    elif done.returncode < 0:
        why = f"it crashes the decoder (signal {signal.Signals(-done.returncode).name})"
    else:
        why = f"the decoder failed with {said.splitlines()[-1] if said else f'exit code {done.returncode}'}"
    raise DataError(f"{path} cannot be played: {why}. {_FIX}")


def main(path: Path, clip_s: float, sample_rate_hz: int) -> None:
    """Write the samples to stdout, or exit with 2 and a sentence on stderr."""
    decode.limit_memory()
    decode.limit_cpu(CPU_S)
    try:
        headers.file_facts(path)
        found = audio.load(path, clip_s, sample_rate_hz)
    except headers.Unusable as error:
        _refuse(f"{path} cannot be played: {error}.")
    except DataError as error:
        _refuse(str(error))
    except MemoryError:
        limit = decode.MEMORY_BYTES / 2**30
        _refuse(f"{path} cannot be played: decoding it needs more than {limit:g} GiB. {_FIX}")
    else:
        sys.stdout.buffer.write(found.tobytes())


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(_REFUSED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
