"""Errors, settings and their validation, records, and the grammar of the command line."""

__all__ = ["best", "config", "errors", "grammar", "identity", "inputs", "methods", "records", "rudiments", "sweep_spec"]
