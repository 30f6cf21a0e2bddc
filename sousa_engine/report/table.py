"""A report as a table for other programs: one line per run, with one column per field of its setting."""

from __future__ import annotations

from sousa_engine.analysis import export
from sousa_engine.analysis.significance import Proportion
from sousa_engine.analysis.sweeps import status_word
from sousa_engine.core import sweep_spec
from sousa_engine.report.read import Report, peak_mib


def csv(report: Report) -> str:
    """One line per run. Accuracies and bounds are in [0, 1], times in UTC; missing values are empty."""
    fields = tuple(dict.fromkeys(field for row in report.rows for field in row.setting))
    columns = (
        "id", "title", "status", "reason", "setting", *fields, "seed", "backbone", "weights", "dataset", "device",
        "trainable_parameters", "seconds", "peak_memory_mib", "test_accuracy", "test_low", "test_high", "test_clips",
        "test_macro_f1", "best_valid_accuracy", "valid_low", "valid_high", "valid_clips", "best_step", "pruned_at_step",
        "sweep", "created",
    )  # fmt: skip
    settings = {run.id: row.setting for row in report.rows for run in row.runs}
    lines = []
    for run, result in zip(report.runs, report.results, strict=True):
        values = settings.get(run.id, run.setting)
        lines.append(
            (
                run.id, run.title, status_word(run), run.reason, report.label_of(run),
                *(_setting(values.get(field)) for field in fields), run.config.seed, run.config.model.variant,
                run.config.model.weights, run.config.dataset_name, run.device, result.trainable, result.seconds,
                peak_mib(run), *_share(result.test), result.test_macro_f1, *_share(result.best_valid),
                result.best_step if result.best_valid else None, run.pruned_at_step, run.sweep_id,
                export.utc(run.created_at_ms),
            )
        )  # fmt: skip
    return export.csv_text(columns, lines)


def _setting(value: object) -> str | float | None:
    return value if value is None or (isinstance(value, int | float) and value is not True) else sweep_spec.show(value)


def _share(found: Proportion | None) -> tuple[float | None, float | None, float | None, int | None]:
    """(accuracy, low, high, clips)."""
    return (None, None, None, None) if found is None else (found.value, found.low, found.high, found.n)
