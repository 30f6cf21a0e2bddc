"""SOUSA engine: choose modules, queue a run, a worker trains it, the store remembers, pages read it."""

__version__ = "0.1.0"
