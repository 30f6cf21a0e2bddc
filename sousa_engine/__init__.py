"""SOUSA engine: choose modules, queue a run, a worker trains it, the store remembers, pages read it."""

from sousa_engine.core import torchaudio_guard

__version__ = "0.1.0"

torchaudio_guard.install()  # before anything imports torchaudio: PEFT and transformers do
