"""Numbers, lists, paths and YAML from users: either they are valid, or a UserError says what is wrong.

Forms, the command line and files share these readers, so that a text has the same meaning in each of them.
"""

from __future__ import annotations

import json
import os
import re
import stat
import types
import urllib.parse
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from sousa_engine.core.errors import ConfigError, UserError

MOST_YAML_BYTES = 1_000_000
MOST_YAML_DEPTH = 32
MOST_SHOWN = 100  # letters of a wrong value in a sentence

_NUMBER = re.compile(r"([-+]?)(\d*)(?:([.,])(\d*))?(?:[eE]([-+]?\d+))?", re.ASCII)
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:[.,'’_\s\u00a0\u202f]\d{3})+(?:[.,]\d*)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)
_NONE = ("", "null", "none", "~")
_QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’"}
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.|'')*'|“[^”]*”|‘[^’]*’"""


def number(
    text: str,
    what: str,
    *,
    whole: bool = False,
    low: float | None = None,
    high: float | None = None,
    field: str | None = None,
) -> Any:
    """A typed number from low to high: an int if `whole`, else a float.

    The decimal mark is a point or a comma: 0.002, 0,002, 2e-3. Leading zeros mean nothing: 010 is 10. There are no
    thousands separators: 1,000 could mean 1 or 1000 and is refused, as are NaN, infinity and numbers beyond the range
    of a float. Raises ConfigError with a sentence about `what`.
    """
    try:
        found = _number(text, whole)
        if low is not None and found < low:
            raise ValueError(f"must be at least {low:,.12g}")
        if high is not None and found > high:
            raise ValueError(f"must be at most {high:,.12g}")
    except ValueError as error:
        raise ConfigError(f"{what} {error} (you entered {shown(text)}).", field=field) from None
    return found


def numbers(text: str, what: str, *, whole: bool = False, field: str | None = None) -> list[Any]:
    """Typed numbers separated by commas, or by semicolons: 0.1, 0.2 or 0,1; 0,2. Raises ConfigError.

    Between commas, a number such as 01 is refused: it may be the decimals of 0,01.
    """
    marks = ";" if ";" in text else ","
    parts = split(text, marks)
    if marks == "," and any(re.fullmatch(r"[-+]?0\d+", part) for part in parts):
        raise ConfigError(
            f"{what} = {shown(text)} is unclear: a comma separates values here. Write decimals with a point, such as "
            "0.01, or separate the values with semicolons.",
            field=field,
        )
    return [number(part, what, whole=whole, field=field) for part in parts]


def number_text(value: float | None) -> str:
    """The shortest text from which `number` reads this value again: 16, 0.002, 1e-05; "" for None."""
    return "" if value is None else repr(value).removesuffix(".0")


def shown(value: Any) -> str:
    """A value as it was entered, for a sentence: at most MOST_SHOWN letters of it."""
    if isinstance(value, float):
        return number_text(value)
    try:
        text = repr(value[: MOST_SHOWN + 1] if isinstance(value, str) else value)
    except ValueError:  # an int of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= MOST_SHOWN + 2 else f"{text[:MOST_SHOWN]}…"


def as_type(value: Any, annotation: Any) -> Any:
    """Text as the number that a field takes, or a number as the text that a field takes; else the value, unchanged.

    Raises ValueError with the predicate of a sentence, such as "must be a whole number".
    """
    wanted, takes_none = _plain_type(annotation)
    if wanted in (int, float):
        if isinstance(value, bool):
            raise ValueError(_wanted(wanted is int))
        if isinstance(value, str):
            return None if takes_none and value.strip().lower() in _NONE else _number(value, wanted is int)
    if wanted is str and isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    return value


def is_number_type(annotation: Any) -> bool:
    """Whether it is int or float, or one of them or None."""
    return _plain_type(annotation)[0] in (int, float)


def split(text: str, marks: str = ",") -> list[str]:
    """The parts between any of `marks`, except inside quotes or brackets: `a, [b,c], "d,e"` has three parts.

    Blanks around a part, and quotes around a complete part, are removed; empty parts are left out. Brackets that do not
    match are letters.
    """
    cuts, _ = _structure(text, marks)
    edges = zip([-1, *cuts], [*cuts, len(text)], strict=True)
    parts = [text[start + 1 : end].strip() for start, end in edges]
    return [unquoted(part) for part in parts if part]


def listed(text: str, marks: str = ",") -> list[str]:
    """The items of a list, with or without brackets, as Python, JSON and YAML write it: `a, b`, `["a"]`, `{'a', 'b'}`.

    A regular expression in parentheses, `(a|b)`, is an item: parentheses make a list only around commas or quotes.
    """
    text = re.sub(r"^(?:frozen)?set\((.*)\)$", r"\1", text.strip(), flags=re.DOTALL)
    _, wrapped = _structure(text, marks)
    if wrapped and text[0] == "(" and not (_structure(text[1:-1], ",")[0] or text[1] in _QUOTES):
        wrapped = False
    return split(text[1:-1] if wrapped else text, marks)


def quoted(text: str) -> str:
    """The text from which `split` and `listed` read exactly the item `text`."""
    return text if re.fullmatch(r"[^\s,;'\"\\\[\](){}“”‘’]+", text) else json.dumps(text, ensure_ascii=False)


def list_text(items: Iterable[str]) -> str:
    """The text from which `listed` reads these items: `[q_proj, v_proj]`."""
    return f"[{', '.join(quoted(item) for item in items)}]"


def unquoted(text: str) -> str:
    """Text without the quotes around it, if there are any, and without the backslashes that quotes need."""
    if len(text) < 2 or _QUOTES.get(text[0]) != text[-1]:
        return text
    if text[0] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            pass
    inner = text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
    return re.sub(r"\\([\\'\"])", r"\1", inner)


def typed_path(text: str | Path, error: type[UserError] = UserError) -> Path:
    r"""A typed or pasted path with `~` expanded; it need not exist. Raises `error` for text that cannot be a path.

    If nothing exists under the text as written, blanks and quotes around it are removed and `file://` is read as a
    path; if that does not exist either, `\` may stand before a blank (as terminals write it) or between folders.
    """
    found = [_look(reading) for reading in _readings(str(text))]
    for path, trouble in found:
        if path and not trouble:
            return path
    path, trouble = found[1]
    if path is None:
        raise error(f"{shown(str(text))} cannot be opened: {trouble}.")
    return path


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no anchors (a few lines can expand to gigabytes), no deep nesting.

    Scalars follow YAML 1.2: 010 is ten, and yes, on and 1:30 are text. A number that Python would write differently
    (010, 1e-3, 0.50) stays text, from which a field reads its number or its name. A key that a mapping has twice is an
    error too: YAML would take the last one in silence.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

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

    def number(self, node: yaml.ScalarNode) -> Any:
        value = int(node.value) if node.value.lstrip("-").isdigit() else float(node.value)
        return value if repr(value) == node.value else node.value


_NUMBER_TAG = "tag:sousa_engine,2026:number"
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    _NUMBER_TAG, re.compile(r"^-?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:e[-+]?[0-9]{1,4})?$"), list("-0123456789")
)
_Loader.add_constructor(_NUMBER_TAG, _Loader.number)


def load_yaml(text: str) -> Any:
    """Plain values from YAML. Raises yaml.YAMLError, also for text over MOST_YAML_BYTES and for anchors."""
    if len(text) > MOST_YAML_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters; the limit is {MOST_YAML_BYTES:,}")
    try:
        return yaml.load(text, Loader=_Loader)
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


def _number(text: str, whole: bool) -> Any:
    """Raises ValueError with the predicate of a sentence."""
    text = text.strip().replace("\u2212", "-")  # the minus sign of typesetting
    found = _NUMBER.fullmatch(text)
    sign, before, mark, after, power = found.groups("") if found else ("",) * 5
    thousands = mark == "," and re.fullmatch(r"[1-9]\d{0,2}", before) and len(after) == 3
    if thousands or (not found and _GROUPED.fullmatch(text)):
        raise ValueError(f"must be a {'whole ' if whole else ''}number without thousands separators, such as 1000")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("must be a finite number")
    if not (before or after) or (mark == "," and not after):
        raise ValueError(_wanted(whole))
    plain = f"{sign}{before or 0}.{after or 0}e{power or 0}"
    value = float(plain)
    if value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    if value == 0 and (before + after).strip("0"):
        raise ValueError("is too close to 0")
    if not whole:
        return value + 0.0  # -0.0 becomes 0.0
    exact = Fraction(plain) if len(plain) < 500 and len(power) < 5 else None
    if exact is None or exact.denominator != 1:
        raise ValueError(_wanted(whole))
    return exact.numerator


def _wanted(whole: bool) -> str:
    return "must be a whole number" if whole else "must be a number such as 0.002 or 2e-3"


@cache
def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """`float | None` is (float, True)."""
    if get_origin(annotation) not in (types.UnionType, Union):
        return annotation, False
    some = [one for one in get_args(annotation) if one is not type(None)]
    return (some[0] if len(some) == 1 else annotation), len(some) < len(get_args(annotation))


def _structure(text: str, marks: str) -> tuple[list[int], bool]:
    """Where `marks` stand outside quotes and brackets, and whether one pair of brackets holds the complete text."""
    for brackets in (_BRACKETS, {}):
        closers: list[str] = []
        cuts: list[int] = []
        wrapped = text[:1] in brackets if text else False
        fits = True
        quotes = re.compile(rf"(?:{_QUOTED})(?=\s*(?:$|[,:\]}})]|[{re.escape(marks)}]))", re.DOTALL)
        starts, i = True, 0
        while i < len(text):
            letter = text[i]
            if starts and letter in _QUOTES and (found := quotes.match(text, i)):
                starts, i = False, found.end()
                continue
            if letter == "\\" and text[i + 1 : i + 2] in (*_BRACKETS, *_BRACKETS.values(), *_QUOTES, "\\"):
                starts, i = False, i + 2
                continue
            if letter in brackets:
                closers.append(brackets[letter])
            elif closers and letter == closers[-1]:
                closers.pop()
                wrapped = wrapped and (bool(closers) or i == len(text) - 1)
            elif letter in brackets.values():
                fits = False
            elif letter in marks and not closers:
                cuts.append(i)
            starts = letter in marks or letter in "[({,:" or (starts and letter.isspace())
            i += 1
        if fits and not closers:
            return cuts, wrapped
    return cuts, False


def _look(reading: str) -> tuple[Path | None, str]:
    """The path, and why it cannot be used; None if it can be no path at all."""
    if not reading.strip():
        return None, "it is empty"
    path = None
    try:
        path = Path(reading).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path, "it does not exist"
    except ValueError:  # NUL, or half of a surrogate pair
        return None, "it contains a character that no path can have"
    except (OSError, RuntimeError) as error:  # too long, no permission, or an unknown `~user`
        return None, getattr(error, "strerror", None) or str(error).rstrip(".")
    return path, ""


def _readings(text: str) -> Iterator[str]:
    """The texts that a pasted path can stand for, in the order in which they are tried."""
    yield text
    clean = text.strip()
    while len(clean) > 1 and _QUOTES.get(clean[0]) == clean[-1]:
        clean = clean[1:-1].strip()
    if re.match(r"file:(//(localhost)?)?/", clean, re.IGNORECASE):
        clean = urllib.parse.unquote(urllib.parse.urlsplit(clean).path)
    yield clean
    if "\\" in clean:
        yield re.sub(r"\\(.)", r"\1", clean)
        yield clean.replace("\\", "/")
