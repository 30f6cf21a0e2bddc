"""Findings of a check, as lines of text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sousa_engine.core import outside

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. fix: what to do; empty where nothing is wrong."""

    name: str
    level: Level
    text: str
    fix: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among them; "ok" if there are none."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"


def summary(findings: Sequence[Finding]) -> str:
    """The report in a sentence: "1 problem, 2 warnings; the other 18 checks passed."."""
    count = {level: sum(f.level == level for f in findings) for level in ("problem", "warning", "ok")}
    bad = [f"{n} {word}" + ("s" if n != 1 else "") for word, n in count.items() if n and word != "ok"]
    if not bad:
        return "All checks passed."
    passed = count["ok"]
    rest = f"the other {passed} checks passed" if passed > 1 else "the other check passed" if passed else ""
    return f"{'; '.join(filter(None, [', '.join(bad), rest]))}."


def as_text(findings: Sequence[Finding], paint: Callable[[str, Level], str] = lambda word, level: word) -> str:
    """One line per finding, its fix on the line below. paint: colours the level's word."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        word = paint(f"{'PROBLEM' if finding.level == 'problem' else finding.level:<8}", finding.level)
        lines.append(f"{word} {finding.name:<{width}}  {outside.for_terminal(finding.text)}")
        if finding.fix:
            lines.append(f"{'':<8} {'':<{width}}  -> {outside.for_terminal(finding.fix)}")
    return "\n".join([*lines, "", summary(findings)])


def to_json(findings: Sequence[Finding]) -> str:
    """Programs read this: the key of a fix has always been "cure"."""
    lines = [{"name": f.name, "level": f.level, "text": f.text, "cure": f.fix} for f in findings]
    values = {"level": worst(findings), "summary": summary(findings), "findings": lines}
    return json.dumps(values, ensure_ascii=False, indent=1)


def from_json(text: str) -> list[Finding]:
    """The findings that `to_json` wrote. Raises ValueError, KeyError or TypeError for any other text."""
    lines = json.loads(text)["findings"]
    return [Finding(name=f["name"], level=f["level"], text=f["text"], fix=f.get("cure", "")) for f in lines]
