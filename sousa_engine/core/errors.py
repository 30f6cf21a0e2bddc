"""The exception tree. Every mistake of a user raises one of these, with a sentence that says how to fix it.

SousaError
├── UserError (ValueError)         the command or the form is wrong; exit code 2
│   ├── ConfigError                a field's value, or a field that does not exist
│   ├── UnknownNameError           a preset, backbone, rudiment or run that does not exist
│   ├── TargetError                a LoRA target that is not a module, or cannot be adapted
│   ├── DataError                  a data set that cannot be read or used for training
│   ├── WeightsError               weights that are missing, truncated or for another network
│   ├── PreflightError             a run that cannot work
│   └── UnreadableError            a stored run or sweep that this version cannot read
├── WorkspaceError                 runs.db or the runs folder cannot be used (read-only, newer schema, garbage)
└── RunError                       a run that failed, with its reason
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DISK_FULL = "The disk is full. Free some space; metrics and checkpoints so far are kept."


class SousaError(Exception):
    """Base of all errors of the engine; str(error) is a sentence for the user."""


class UserError(SousaError, ValueError):
    pass


class ConfigError(UserError):
    """`field` is the dotted name of the wrong field, if there is one."""

    def __init__(self, message: str, *, field: str | None = None):
        super().__init__(message)
        self.field = field


class UnknownNameError(UserError):
    pass


class TargetError(UserError):
    pass


class DataError(UserError):
    pass


class WeightsError(UserError):
    pass


class PreflightError(UserError):
    pass


class UnreadableError(UserError):
    pass


class WorkspaceError(SousaError):
    pass


class RunError(SousaError):
    pass


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names closest to a mistyped one, best first, followed by names that contain it."""
    pool = list(dict.fromkeys(known))
    low = {k.lower(): k for k in pool}
    close = difflib.get_close_matches(name.lower(), list(low), n=n, cutoff=0.5)
    found = [low[c] for c in close]
    found += [k for k in pool if k not in found and name and name.lower() in k.lower()]
    return found[:n]


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """`unknown("model", "ats", ["ast", "ast-mini"])` -> "No model named 'ats'. Nearest: ast. ..."."""
    pool = list(dict.fromkeys(known))
    near = nearest(name, pool)
    more = f" and {len(pool) - 12} more" if len(pool) > 12 else ""
    hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(pool[:12])}{more}."
    return UnknownNameError(f"No {what} named {name!r}. {hint}")
