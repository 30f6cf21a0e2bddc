"""The command line: the same actions as the pages. This is the only package that imports click."""

__all__ = ["main"]
