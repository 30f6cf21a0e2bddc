"""Paths and YAML from users: either they are valid, or a UserError says what is wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sousa_engine.core.errors import ConfigError, UserError

MOST_YAML_BYTES = 1_000_000
MOST_YAML_DEPTH = 32
MOST_SHOWN = 100  # letters of a value in a sentence


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


def shown(value: Any) -> str:
    """A value as it was entered, for a sentence: at most MOST_SHOWN letters of it."""
    try:
        text = repr(value[: MOST_SHOWN + 1] if isinstance(value, str) else value)
    except ValueError:  # an int of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= MOST_SHOWN + 2 else f"{text[:MOST_SHOWN]}…"


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no anchors (a few lines can expand to gigabytes), no deep nesting.

    A key that a mapping has twice is an error too: YAML would take the last one in silence.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=event.start_mark)
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} is not supported", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MOST_YAML_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MOST_YAML_DEPTH} levels deep", problem_mark=event.start_mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, str(key.value))
            if name in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


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
    with _explained(file):
        return load_yaml(_text_of(file))


@contextmanager
def lines_of(file: Path, besides: Collection[str] = ()) -> Iterator[None]:
    """Add this YAML file and the line of the field to a ConfigError raised inside.

    besides: dotted fields whose value is not that of the file.
    """
    try:
        yield
    except ConfigError as error:
        if error.field is None or error.field in besides:
            raise
        line = _line(file, error.field)
        where = f"{file}, line {line}" if line else str(file)
        raise ConfigError(f"{where}: {error}", field=error.field) from None


def _line(file: Path, field: str) -> int | None:
    """The line of the field, else of what contains it; None if the file has neither."""
    with _explained(file):
        lines = dict(_key_lines(yaml.compose(_text_of(file), Loader=_Loader)))
    while field:
        if field in lines:
            return lines[field]
        field = field.rpartition(".")[0]
    return None


def _key_lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _key_lines(value, f"{prefix}{key.value}.")


def _text_of(file: Path) -> str:
    """The text of a regular file. Opening a pipe would wait for its writer."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise yaml.YAMLError("it is not a regular file")
        found = opened.read(MOST_YAML_BYTES + 1)
    if len(found) > MOST_YAML_BYTES:
        raise yaml.YAMLError(f"it is larger than {MOST_YAML_BYTES:,} bytes")
    return found.decode("utf-8")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"{file} is not a YAML file: {why}") from None


def yaml_fields(file: Path) -> dict[str, Any]:
    """The fields in a YAML file. Raises ConfigError, also if it holds anything but a mapping."""
    values = yaml_file(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no fields; expected lines such as `training: {{max_epochs: 10}}`.")
    return values
