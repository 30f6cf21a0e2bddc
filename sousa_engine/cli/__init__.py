"""The command line: the same verbs as the pages. The only package that imports click."""

__all__ = ["main"]
