"""Findings: what a user should know about a data set before training on it, each with its file and its reason.

They follow from the names, labels and splits of the clips and from the soundness of their files. Opens no file.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sousa_engine.data import layouts
from sousa_engine.data.clips import Excluded, Manifest
from sousa_engine.data.layouts import PassedOver, Recording, Recordings
from sousa_engine.data.soundness import Soundness

KINDS = {
    "missing": "no such file",
    "name": "name is not text",
    "permission": "no permission to read",
    "link": "unusable link",
    "no-file": "not a regular file",
    "empty": "empty file",
    "format": "unsupported format",
    "text": "text, not audio",
    "unreadable": "not readable as audio",
    "rate": "sample rate",
    "channels": "channels",
    "polarity": "channels cancel each other",
    "no-samples": "no samples",
    "short": "too short",
    "truncated": "truncated",
    "corrupt": "damaged",
    "not-a-number": "NaN or infinite samples",
    "level": "beyond full scale",
    "memory": "too much memory",
    "time": "decoding takes too long",
    "crash": "crashes the decoder",
    "row": "row without path or label",
    "class": "class with too few clips",
    "data-set": "the data set as a whole",
    "silent": "silent",
    "header": "wrong sizes in header",
    "long": "very long",
    "label": "unusual label",
    "twins": "similar labels",
    "copy": "same clip, two splits",
    "two-labels": "same clip, two labels",
}
"""Kind of a finding -> its name in a table."""
_STRICT = {"copy", "two-labels"}  # warnings that are errors in strict mode
_MARKS = "<>|/\\"
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """level "error": unusable and left out; "warning": used, but odd.

    name: the file as the data set names it, a line of its table, or a label in quotes. reason: a clause that follows
    the name and tells the faulty value and the fix.
    """

    level: Literal["error", "warning"]
    kind: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings on a data set, errors first.

    files: listed by the data set; scanned: of these, decoded as they are now. usable, classes: as a run would get them.
    refusal: why no run can be trained on it; "" if one can. passed_over: other entries in its folder.
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
        """`2 warnings: a.wav: it is silent ...; 'Flam': it looks like ...`; "" if there are none."""
        odd = [f"{found.name}: {found.reason}" for found in self.findings if found.level == "warning"]
        if not odd:
            return ""
        more = f"; and {len(odd) - 3:,} more (page Data lists them)" if len(odd) > 3 else ""
        return f"{len(odd):,} {'warning' if len(odd) == 1 else 'warnings'}: {'; '.join(odd[:3])}{more}."

    @property
    def kinds(self) -> dict[str, int]:
        """Kind -> number of findings, errors first."""
        return dict(Counter(found.kind for found in self.findings))


def of_embedded(manifest: Manifest, *, strict: bool = False) -> Findings:
    """The findings on an embedded set: none."""
    return Findings(
        dataset=manifest.name,
        strict=strict,
        files=len(manifest.clips),
        scanned=len(manifest.clips),
        usable=len(manifest.clips),
        classes=len(manifest.classes),
        findings=(),
        refusal="",
    )


def find(
    dataset: str,
    recordings: Recordings,
    soundness: Mapping[str, Soundness],
    manifest: Manifest | None,
    excluded: Sequence[Excluded],
    refusal: str,
) -> Findings:
    """The findings on a data set of files, not in strict mode.

    soundness: as from layouts.as_now. manifest: None if the data set cannot be used for training, for the reason
    `refusal`. excluded: all files and rows that are left out.
    """
    found = [Finding(level="error", kind=one.kind, name=one.name, reason=one.reason) for one in excluded]
    if refusal:
        found.insert(0, Finding(level="error", kind="data-set", name="", reason=refusal.rstrip(".")))
    decoded = {path: one for path, one in soundness.items() if one.whole}
    left_out = {one.name for one in excluded}
    used = [one for one in recordings.files if layouts.shown(one.clip_id) not in left_out]
    for one in used:
        warnings = decoded[str(one.path)].warnings if str(one.path) in decoded else ()
        found += [
            Finding(level="warning", kind=kind, name=layouts.shown(one.clip_id), reason=why) for kind, why in warnings
        ]
    found += _labels(recordings.files)
    found += _copies(used, decoded, manifest)
    found.sort(key=lambda one: one.level)  # stable: otherwise in the order in which they were found
    return Findings(
        dataset=dataset,
        strict=False,
        files=len(recordings.files) + len(recordings.excluded),
        scanned=sum(str(one.path) in decoded for one in recordings.files),
        usable=len(manifest.clips) if manifest else 0,
        classes=len(manifest.classes) if manifest else 0,
        findings=tuple(found),
        refusal=refusal,
        passed_over=recordings.passed_over,
    )


def as_strict(found: Findings) -> Findings:
    """The same in strict mode: equal clips in two splits or with two labels are errors, and any error is a refusal."""
    strict = [replace(one, level="error") if one.kind in _STRICT else one for one in found.findings]
    strict.sort(key=lambda one: one.level)
    return replace(found, strict=True, findings=tuple(strict), refusal=found.refusal or _refusal(found.dataset, strict))


def _refusal(dataset: str, found: Sequence[Finding]) -> str:
    """The refusal of strict mode; "" if there is no error."""
    errors = [one for one in found if one.level == "error"]
    if not errors:
        return ""
    shown = "; ".join(f"{one.name}: {one.reason}" for one in errors[:3])
    more = f"; and {len(errors) - 3:,} more" if len(errors) > 3 else ""
    count = "1 error" if len(errors) == 1 else f"{len(errors):,} errors"
    return (
        f"{dataset} has {count}, and strict mode does not train on part of a data set: {shown}{more}. "
        "Fix or remove them, or set data.strict=false to train on the rest."
    )


# Labels


def _labels(recordings: Sequence[Recording]) -> list[Finding]:
    spellings: dict[str, set[str]] = defaultdict(set)
    for one in recordings:
        spellings[one.label].add(one.written.strip())
    found = []
    for label, written in sorted(spellings.items()):
        if len(written) > 1:
            forms = " and ".join(f"{len(one)} letters ({_points(one)})" for one in sorted(written, key=len))
            why = f"it has {len(written)} spellings that look alike, {forms}, and is one class; use one spelling"
            found.append(Finding(level="warning", kind="twins", name=repr(label), reason=why))
        if why := _odd(label):
            found.append(Finding(level="warning", kind="label", name=repr(label), reason=why))
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(spellings):
        alike[_folded(label)].append(label)
    for first, *others in alike.values():
        for other in others:
            why = f"it looks like {other!r}, another class ({_difference(first, other)}); if they are one, rename one"
            found.append(Finding(level="warning", kind="twins", name=repr(first), reason=why))
    return found


def _odd(label: str) -> str:
    """Why a label may cause trouble in other programs, though it works here; "" for an ordinary label."""
    hidden = [c for c in label if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") and c != "\u200d"]
    if hidden:
        return f"it contains an invisible character ({_points(hidden[0])}); type the label again"
    marks = [c for c in label if c in _MARKS] or [label[0]] * label.startswith(_FORMULA)
    if ".." in label or marks:
        mark = ".." if ".." in label else marks[0]
        return f"it contains {mark!r}, which other programs may read as a path, markup or a formula; here it is text"
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in label):
        return "it is written from right to left; a line that contains it may be displayed in a different order"
    pictures = [c for c in label if unicodedata.category(c) == "So"]
    if pictures:
        return f"it contains a pictogram ({_points(pictures[0])}), which not every program can display"
    return ""


def _folded(label: str) -> str:
    """Equal for labels that differ only in case, blanks, dashes or compatible letters."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(c for c in text if not c.isspace() and c not in "-_") or label


def _difference(a: str, b: str) -> str:
    """`letter 1 is U+0046 here and U+0066 there`: where two labels first differ."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    here, there = (_points(text[at]) if at < len(text) else "the end" for text in (a, b))
    return f"letter {at + 1} is {here} here and {there} there"


def _points(text: str) -> str:
    return " ".join(f"U+{ord(c):04X}" for c in text[:12]) + (" ..." if len(text) > 12 else "")


# Copies


def _copies(
    recordings: Sequence[Recording], decoded: Mapping[str, Soundness], manifest: Manifest | None
) -> Iterator[Finding]:
    """Clips with equal samples: a leak if they are in two splits, a contradiction if their labels differ."""
    same: dict[str, list[Recording]] = defaultdict(list)
    for one in recordings:
        if (found := decoded.get(str(one.path))) and found.content:
            same[found.content].append(one)
    for first, *others in same.values():
        name = layouts.shown(first.clip_id)
        for other in others:
            twin = layouts.shown(other.clip_id)
            here, there = (_split(one, manifest) for one in (first, other))
            if first.label != other.label:
                why = (
                    f"it has the same samples as {twin}, which is labelled {other.label!r}, not {first.label!r}; "
                    "keep one"
                )
                yield Finding(level="warning", kind="two-labels", name=name, reason=why)
            if here and there and here != there:
                why = f"it is in {here}, and the same samples are in {there} as {twin}; keep one of them"
                yield Finding(level="warning", kind="copy", name=name, reason=why)


def _split(recording: Recording, manifest: Manifest | None) -> str:
    clip = manifest.by_id.get(recording.clip_id) if manifest else None
    return clip.split if clip else recording.split


_PASSED_OVER = {
    "hidden": "hidden",
    "not-audio": "not audio by suffix",
    "beside": "audio outside of the class folders",
}


def in_words(found: Findings) -> str:
    """`1,000 files, 997 used in 40 classes; 3 errors, 2 warnings`."""
    classes = "1 class" if found.classes == 1 else f"{found.classes:,} classes"
    files = "1 file" if found.files == 1 else f"{found.files:,} files"
    errors = "1 error" if found.errors == 1 else f"{found.errors:,} errors"
    warnings = "1 warning" if found.warnings == 1 else f"{found.warnings:,} warnings"
    return f"{files}, {found.usable:,} used in {classes}; {errors}, {warnings}"


def passed_over(found: Findings) -> str:
    """`passed over: 2 hidden (.git/, roll/.DS_Store), 4 not audio by suffix (a.txt, b.txt, c.txt, ...)`, or ""."""
    kinds = []
    for one in found.passed_over:
        more = ["..."] if one.count > len(one.names) else []
        kinds.append(f"{one.count:,} {_PASSED_OVER[one.kind]} ({', '.join([*one.names, *more])})")
    return f"passed over: {', '.join(kinds)}" if kinds else ""
