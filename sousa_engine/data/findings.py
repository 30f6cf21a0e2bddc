"""What a user should know of a data set before training on it: every finding with its file and its reason.

Pure: made of the data set's names, its splits and the verdicts of a scan. Decodes nothing.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import headers, layouts, synth
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Manifest
from sousa_engine.data.layouts import PassedOver, Row
from sousa_engine.data.soundness import Soundness

KINDS = {
    "missing": "no such file",
    "name": "name that is no text",
    "permission": "may not be read",
    "link": "link to nowhere or to a folder",
    "no-file": "no regular file",
    "empty": "empty file",
    "format": "format that is not read",
    "text": "text, not audio",
    "unreadable": "not readable as audio",
    "rate": "sample rate",
    "channels": "channels",
    "no-samples": "no samples",
    "short": "too short",
    "truncated": "cut short",
    "corrupt": "damaged",
    "not-a-number": "NaN or infinite samples",
    "level": "beyond full scale",
    "memory": "too much memory",
    "time": "decoding never ends",
    "crash": "kills the decoder",
    "row": "row without path or label",
    "class": "class with too few clips",
    "data-set": "the data set as a whole",
    "silent": "silent",
    "header": "header with wrong sizes",
    "long": "very long",
    "label": "unusual label",
    "twins": "labels that look alike",
    "copy": "same clip, two splits",
    "two-labels": "same clip, two labels",
}
"""Kind of a finding -> what it is called in a table."""
_STRICT = {"copy", "two-labels"}  # warnings that strict mode takes for errors
_MARKS = "<>|/\\"
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """level "error": unusable, and left out; "warning": used, but odd.

    name: the file as the data set names it, a line of its table, or a label in quotes. reason: one clause to stand
    behind it, with the value at fault and the cure.
    """

    level: Literal["error", "warning"]
    kind: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, errors first. files: that the data set claims; scanned: of these, judged as they are now.

    refusal: why no training could begin on it, else "". usable, classes: what a training would get. passed_over: what
    lies among the files and is none of them.
    """

    dataset: str
    strict: bool
    files: int
    scanned: int
    usable: int
    classes: int
    findings: tuple[Finding, ...]
    refusal: str
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def errors(self) -> int:
        return sum(found.level == "error" for found in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    @property
    def odd(self) -> str:
        """`2 warnings: a.wav: it is silent ...; 'Flam': it looks like ...`; "" if nothing is odd."""
        odd = [f"{found.name}: {found.reason}" for found in self.findings if found.level == "warning"]
        if not odd:
            return ""
        more = f"; and {len(odd) - 3:,} more (page Data lists them)" if len(odd) > 3 else ""
        return f"{len(odd):,} {'warning' if len(odd) == 1 else 'warnings'}: {'; '.join(odd[:3])}{more}."

    @property
    def kinds(self) -> dict[str, int]:
        """Kind -> how often, errors first."""
        return dict(Counter(found.kind for found in self.findings))


def report(config: DataConfig, verdicts: Mapping[str, Soundness], opened: Manifest | None = None) -> Report:
    """What is known of a data set. config.strict: what two splits share, or two labels, is an error; errors refuse.

    opened: the data set, where the caller has opened it with the same verdicts already. Raises UnknownNameError or
    DataError where there is no data set at all; one that cannot be trained on is reported.
    """
    if config.dataset in synth.PRESETS:
        opened = opened or manifests.open_dataset(config)
        clips, classes = len(opened.clips), len(opened.classes)
        return Report(
            dataset=opened.name, strict=config.strict, files=clips, scanned=clips, usable=clips, classes=classes,
            findings=(), refusal="",
        )  # fmt: skip
    _, listing = manifests.list_files(config)
    known = dict(_known(listing.rows, verdicts))
    try:
        opened, refusal = opened or manifests.open_dataset(config, verdicts), ""
        excluded = opened.excluded
    except DataError as error:
        opened, refusal = None, str(error)
        excluded = layouts.probe(listing, verdicts).excluded
    found = [Finding(level="error", kind=e.kind, name=e.name, reason=e.reason) for e in excluded]
    if refusal:
        found.insert(0, Finding(level="error", kind="data-set", name="", reason=refusal.rstrip(".")))
    left_out = {e.name for e in excluded}
    rows = [row for row in listing.rows if layouts.shown(row.clip_id) not in left_out]
    for row in rows:
        warnings = known[row.clip_id].warnings if row.clip_id in known else ()
        found += [
            Finding(level="warning", kind=kind, name=layouts.shown(row.clip_id), reason=why) for kind, why in warnings
        ]
    found += _labels(listing.rows)
    found += _copies(rows, known, opened)
    if config.strict:
        found = [replace(one, level="error") if one.kind in _STRICT else one for one in found]
    found.sort(key=lambda one: one.level)  # stable: otherwise in the order in which they were found
    return Report(
        dataset=config.dataset,
        strict=config.strict,
        files=len(listing.rows) + len(listing.excluded),
        scanned=len(known),
        usable=len(opened.clips) if opened else 0,
        classes=len(opened.classes) if opened else 0,
        findings=tuple(found),
        refusal=refusal or _refusal(config, found),
        passed_over=listing.passed_over,
    )


def _known(rows: Sequence[Row], verdicts: Mapping[str, Soundness]) -> Iterator[tuple[str, Soundness]]:
    """clip_id -> verdict on the file as it is now; one that the file system forbids counts as judged."""
    for row in rows:
        try:
            if (verdict := layouts.current(row.path, verdicts)) is not None and verdict.whole:
                yield row.clip_id, verdict
        except headers.Unusable as error:
            yield row.clip_id, Soundness(size=0, mtime_ns=0, error=str(error), kind=error.kind)


def _refusal(config: DataConfig, found: Sequence[Finding]) -> str:
    """What strict mode says, if it has reason to."""
    errors = [one for one in found if one.level == "error"]
    if not config.strict or not errors:
        return ""
    shown = "; ".join(f"{one.name}: {one.reason}" for one in errors[:3])
    more = f"; and {len(errors) - 3:,} more" if len(errors) > 3 else ""
    count = "One thing is" if len(errors) == 1 else f"{len(errors):,} things are"
    return (
        f"{count} wrong with {config.dataset}, and strict mode trains on nothing less than all of it: {shown}{more}. "
        "Mend or remove them, or set data.strict=false to train on the rest."
    )


# Labels


def _labels(rows: Sequence[Row]) -> list[Finding]:
    spellings: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        spellings[row.label].add(row.written.strip())
    found = []
    for label, written in sorted(spellings.items()):
        if len(written) > 1:
            forms = " and ".join(f"{len(one)} letters ({_points(one)})" for one in sorted(written, key=len))
            why = (
                f"it is written in {len(written)} ways that look the same, {forms}, read as one class; write it one way"
            )
            found.append(Finding(level="warning", kind="twins", name=repr(label), reason=why))
        if why := _odd(label):
            found.append(Finding(level="warning", kind="label", name=repr(label), reason=why))
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(spellings):
        alike[_folded(label)].append(label)
    for first, *others in alike.values():
        for other in others:
            why = f"it looks like {other!r}, another class ({_difference(first, other)}); rename one if they are one"
            found.append(Finding(level="warning", kind="twins", name=repr(first), reason=why))
    return found


def _odd(label: str) -> str:
    """What other programs may stumble over in a label; it is a label all the same."""
    hidden = [c for c in label if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") and c != "\u200d"]
    if hidden:
        return f"it holds a character that is not seen ({_points(hidden[0])}); type the label anew"
    marks = [c for c in label if c in _MARKS] or [label[0]] * label.startswith(_FORMULA)
    if ".." in label or marks:
        what = ".." if ".." in label else marks[0]
        return f"it holds {what!r}, which other programs take for a path, markup or formula; here it is text"
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in label):
        return "it is written from right to left; a line that names it among others may be shown in another order"
    pictures = [c for c in label if unicodedata.category(c) == "So"]
    if pictures:
        return f"it holds a picture ({_points(pictures[0])}), which not every program can show"
    return ""


def _folded(label: str) -> str:
    """Equal for labels that differ in case, blanks, dashes or compatible letters alone."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(c for c in text if not c.isspace() and c not in "-_") or label


def _difference(a: str, b: str) -> str:
    """`U+0046 here, U+0066 there`: where two labels part."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    here, there = (_points(text[at]) if at < len(text) else "the end" for text in (a, b))
    return f"letter {at + 1} is {here} here and {there} there"


def _points(text: str) -> str:
    return " ".join(f"U+{ord(c):04X}" for c in text[:12]) + (" ..." if len(text) > 12 else "")


# Copies


def _copies(rows: Sequence[Row], known: Mapping[str, Soundness], opened: Manifest | None) -> Iterator[Finding]:
    """Clips whose samples are equal: a leak where they are in two splits, a contradiction where labels differ."""
    same: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.clip_id in known and known[row.clip_id].content:
            same[known[row.clip_id].content].append(row)
    split = {clip.clip_id: clip.split for clip in opened.clips} if opened else {}
    for first, *others in same.values():
        name = layouts.shown(first.clip_id)
        for other in others:
            twin = layouts.shown(other.clip_id)
            here, there = (split.get(row.clip_id, row.split) for row in (first, other))
            if first.label != other.label:
                why = f"it sounds exactly like {twin}, labelled {other.label!r}, not {first.label!r}; keep one"
                yield Finding(level="warning", kind="two-labels", name=name, reason=why)
            if here and there and here != there:
                why = f"it is in {here}, and the same samples are in {there} as {twin}; keep one of them"
                yield Finding(level="warning", kind="copy", name=name, reason=why)


_PASSED_OVER = {
    "hidden": "hidden",
    "not-audio": "not audio by suffix",
    "beside": "audio outside of the class folders",
}


def in_words(found: Report) -> str:
    """`1,000 files, 997 used in 40 classes; 3 errors, 2 warnings`."""
    classes = "1 class" if found.classes == 1 else f"{found.classes:,} classes"
    files = "1 file" if found.files == 1 else f"{found.files:,} files"
    errors = "1 error" if found.errors == 1 else f"{found.errors:,} errors"
    warnings = "1 warning" if found.warnings == 1 else f"{found.warnings:,} warnings"
    return f"{files}, {found.usable:,} used in {classes}; {errors}, {warnings}"


def passed_over(found: Report) -> str:
    """`passed over: 2 hidden (.git/, roll/.DS_Store), 4 not audio by suffix (a.txt, b.txt, c.txt, ...)`, or ""."""
    kinds = []
    for one in found.passed_over:
        more = ["..."] if one.count > len(one.names) else []
        kinds.append(f"{one.count:,} {_PASSED_OVER[one.kind]} ({', '.join([*one.names, *more])})")
    return f"passed over: {', '.join(kinds)}" if kinds else ""
