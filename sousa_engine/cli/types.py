"""Numbers and paths as arguments of commands, read as everywhere else (core.inputs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sousa_engine.core import inputs
from sousa_engine.core.errors import ConfigError, UserError


class Whole(click.ParamType):
    """A whole number, at least `low` if given."""

    name = "integer"

    def __init__(self, low: int | None = None):
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        what = param.get_error_hint(ctx) if param and ctx else "A number"  # pyright: ignore[reportArgumentType]
        try:
            return inputs.number(str(value), what.replace("'", ""), whole=True, low=self.low)
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from None


class TypedPath(click.ParamType):
    """A path as it is typed or pasted. file: it must be an existing file."""

    name = "path"

    def __init__(self, *, file: bool = False):
        self.file = file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = inputs.typed_path(value)
        if self.file and not path.is_file():
            raise UserError(f"{path} is a folder; name a file." if path.is_dir() else f"There is no file {path}.")
        return path
