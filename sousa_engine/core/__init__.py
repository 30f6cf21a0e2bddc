"""Errors, settings and their validation, records, and the grammar of the command line."""

__all__ = [
    "best",
    "config",
    "contents",
    "errors",
    "grammar",
    "identity",
    "inputs",
    "methods",
    "outside",
    "records",
    "rudiments",
    "sweep_spec",
    "torchaudio_guard",
]
