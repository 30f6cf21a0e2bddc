"""Paths and YAML from users: either they are valid, or a UserError says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sousa_engine.core.errors import ConfigError, UserError

MOST_YAML_BYTES = 1_000_000
MOST_YAML_DEPTH = 32


def typed_path(text: str | Path, error: type[UserError] = UserError) -> Path:
    """A typed path with `~` expanded; it need not exist. Raises `error` for text that cannot be a path."""
    shown = repr(str(text) if len(str(text)) <= 100 else f"{str(text)[:100]}…")
    try:
        path = Path(text).expanduser()
        if "\0" in str(path):
            raise error(f"{shown} is not a path: it contains a NUL character.")
        path.exists()
    except (OSError, RuntimeError) as trouble:  # name too long, no permission, or an unknown `~user`
        why = getattr(trouble, "strerror", None) or str(trouble).rstrip(".")
        raise error(f"{shown} cannot be opened: {why}.") from None
    return path


class _Loader(yaml.SafeLoader):
    """Plain values only: no Python objects, no anchors (a few lines can expand to gigabytes), no deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MOST_YAML_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MOST_YAML_DEPTH} levels deep", problem_mark=event.start_mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def load_yaml(text: str) -> Any:
    """Plain values from YAML. Raises yaml.YAMLError, also for text over MOST_YAML_BYTES and for anchors."""
    if len(text) > MOST_YAML_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters; the limit is {MOST_YAML_BYTES:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # a date such as 2024-99-99, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def yaml_file(file: Path) -> Any:
    """Plain values from a YAML file. Raises ConfigError that names the file."""
    try:
        with file.open("rb") as opened:
            found = opened.read(MOST_YAML_BYTES + 1)
        if len(found) > MOST_YAML_BYTES:
            raise yaml.YAMLError(f"it is larger than {MOST_YAML_BYTES:,} bytes")
        return load_yaml(found.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from None


def yaml_fields(file: Path) -> dict[str, Any]:
    """The fields in a YAML file. Raises ConfigError, also if it holds anything but a mapping."""
    values = yaml_file(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no fields; expected lines such as `training: {{max_epochs: 10}}`.")
    return values
