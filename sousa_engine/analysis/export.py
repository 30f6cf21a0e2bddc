"""Runs, clips, and the findings of a scan, as CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sousa_engine.core.records import RunRow
from sousa_engine.data.clips import Clip
from sousa_engine.data.findings import KINDS, Finding

_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_COLUMNS = (
    "id", "title", "status", "created", "seconds", "backbone", "weights", "dataset", "targets", "seed", "device",
    "trainable_parameters", "best_valid_accuracy", "valid_clips", "test_accuracy", "test_clips", "sweep", "tags",
    "note", "archived",
)  # fmt: skip


def runs_csv(rows: Iterable[RunRow]) -> str:
    """One line per run. Accuracies are in [0, 1], times in UTC; missing values are empty."""
    lines = (
        (
            row.id, row.title, row.status.value, utc(row.created_at_ms), row.seconds, row.backbone, row.weights,
            row.dataset, row.trains, row.seed, row.device, row.trainable, row.valid, row.valid_n, row.test, row.test_n,
            row.sweep_id, ", ".join(row.tags), row.note, utc(row.archived_at_ms),
        )
        for row in rows
    )  # fmt: skip
    return csv_text(_COLUMNS, lines)


def findings_csv(findings: Iterable[Finding]) -> str:
    """One line per finding: level, kind, its title, file, reason; formulas are escaped as by csv_text."""
    lines = [(found.level, found.kind, KINDS[found.kind], found.name, found.reason) for found in findings]
    return csv_text(("level", "kind", "what", "file", "reason"), lines)


def clips_csv(clips: Sequence[Clip]) -> str:
    """One line per clip: the standard columns of a CSV data set, then its additional ones.

    path: of the file, or the clip id if the clip is synthesised. Formulas are escaped as by csv_text.
    """
    first = ("path", "label", "player", "split", "duration_s")
    own = list(dict.fromkeys(name for clip in clips for name in clip.columns if name not in first))
    lines = (
        (
            str(clip.source) if isinstance(clip.source, Path) else clip.clip_id, clip.label, clip.group, clip.split,
            clip.duration_s, *(clip.columns.get(name) for name in own),
        )
        for clip in clips
    )  # fmt: skip
    return csv_text((*first, *own), lines)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """A header and one line per row, as in RFC 4180. None becomes empty.

    Text that a spreadsheet would read as a formula gets a leading apostrophe; numbers remain numbers.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    for row in (columns, *rows):
        writer.writerow([harmless(value) for value in row])
    return file.getvalue()


def utc(at_ms: int | None) -> str | None:
    """A time in the format that spreadsheets read."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def harmless(value: str | float | None) -> str | float | None:
    """Text that begins like a formula gets a leading apostrophe; everything else is unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_BEGINS_A_FORMULA) else value
