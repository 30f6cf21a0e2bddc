"""`python -m sousa_engine.runs.trainer RUN_DIR`: carries out one run, then exits. Never opens runs.db.

Reads config.json; writes spool.jsonl (metrics, progress, events, facts), predictions.jsonl, adapter/, checkpoints/,
best/ and result.json. In a folder with checkpoints it continues from the newest good one. Exit codes: 0 finished, 3
stopped after a checkpoint, 2 a user's mistake, 4 a full disk, 1 anything else; result.json gives the reason.

This file is the process: signals, exit codes, reasons. stages.py does the work and imports torch.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import DISK_FULL, SousaError, UserError
from sousa_engine.core.records import Progress
from sousa_engine.training import reporters, resume
from sousa_engine.training.resume import ResumePoint
from sousa_engine.workspace import Workspace, run_files, spool

if TYPE_CHECKING:
    from sousa_engine.training.loop import Outcome

EXIT_CRASHED = 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sousa_engine.runs.trainer", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    folder: Path = parser.parse_args(argv).run_dir.resolve()

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    try:
        run_config = RunConfig.model_validate_json((folder / run_files.CONFIG).read_text())
        outcome = run(folder, run_config, stop=lambda: bool(stopping))
    except UserError as error:
        _last_word(f"error: {error}")
        _result(folder, outcome="failed", reason=str(error))
        return run_files.EXIT_USER_ERROR
    except Exception as error:
        reason = known_cause(error, folder)
        _last_word(f"error: {reason}" if reason else traceback.format_exc().rstrip())
        _result(folder, outcome="failed", reason=reason or _first_line(error))
        return run_files.EXIT_DISK_FULL if reason == DISK_FULL else EXIT_CRASHED
    if outcome is None:
        again = resume.has_checkpoints(folder)
        when = "continuing; its last checkpoint is unchanged." if again else "the first step."
        _result(folder, outcome="stopped", reason=f"Stopped before {when}")
        return run_files.EXIT_STOPPED
    if outcome.stopped:
        reason = (
            f"Stopped at step {outcome.step}. A checkpoint was saved; "
            "the test set is evaluated only when a run completes."
        )
        _result(folder, outcome="stopped", reason=reason, best_step=outcome.best_step)
        return run_files.EXIT_STOPPED
    _result(folder, outcome="finished", reason=None, best_step=outcome.best_step)
    return run_files.EXIT_FINISHED


def run(folder: Path, run_config: RunConfig, *, stop: Callable[[], bool]) -> Outcome | None:
    """Train as the config says, inside the run's folder. None: a stop arrived before training began.

    Raises SousaError with a sentence for the run's page.
    """
    device = run_config.device
    if device.startswith("cuda:"):
        # Accelerate takes the first visible GPU; showing it a single one keeps runs on different GPUs apart.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", device.removeprefix("cuda:"))
    with closing(reporters.open_reporter(folder, run_config)) as reporter:
        # The first report comes before the heavy imports, so that the page shows at once that the run has started.
        reporter.progress(Progress(phase="preparing", done=0, total=1))
        resumed, began = _resume_point(folder, reporter), time.monotonic()

        from sousa_engine.runs import stages

        return stages.train(
            stages.Context(folder=folder, config=run_config, reporter=reporter, stop=stop, resumed=resumed, began=began)
        )


def _resume_point(folder: Path, reporter: reporters.RunReporter) -> ResumePoint | None:
    """Where to continue; None for a run that has not trained yet. Raises RunError if it has, but no checkpoint is left.

    The folder alone decides: an attempt that is started twice, by whatever process, continues from the same place.
    """
    if not resume.has_checkpoints(folder) and not _has_measured(folder):
        return None
    found = resume.find(folder)
    for sentence in found.damaged:
        reporters.log_damaged(reporter, sentence, found.step)
    return found


def _has_measured(folder: Path) -> bool:
    offset = 0
    while not (batch := spool.read_batch(folder / run_files.SPOOL, offset)).is_empty:
        if batch.points:
            return True
        offset = batch.end
    return False


def _result(folder: Path, **values: Any) -> None:
    try:
        run_files.write_json(folder / run_files.RESULT, values)
    except OSError as error:  # a full disk must not hide the exit code, which says the same
        _last_word(f"error: could not write {run_files.RESULT}: {error}")


def _last_word(text: str) -> None:
    """Print to the log, if there is room for it: a log on a full disk must not hide the result and the exit code."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def known_cause(error: Exception, folder: Path) -> str:
    """A sentence for an error that is not a bug of ours; "" if only the traceback can tell."""
    if isinstance(error, SousaError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:  # torch.save hides the disk's error behind one of its own
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return DISK_FULL
        if reason := _out_of_memory(cause):
            return reason
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, RuntimeError) and Workspace(root=folder.parent.parent).full_disk():
        return DISK_FULL  # raised by PyTorch's own code, which hides the system's error
    return ""


# From CUDA and its libraries, not from PyTorch's allocator: no room for a context or a workspace on a shared GPU.
_NO_ROOM_ON_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def _out_of_memory(error: BaseException) -> str:
    """By the exception's type if there is one; PyTorch has none for the CPU's memory or for MPS."""
    torch = sys.modules.get("torch")  # if it is not imported yet, the error is not from it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        more = f" while allocating {wanted[1]}" if wanted else ""
        return f"The GPU ran out of memory{more}. Lower training.batch_size, or select fewer modules."
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM_ON_GPU):
        return "The GPU has no free memory; other programs may be using it. Close them, or lower training.batch_size."
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("MPS backend out of memory", "DefaultCPUAllocator"))
    ):
        return "This machine ran out of memory. Lower training.batch_size, or select fewer modules."
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


if __name__ == "__main__":
    sys.exit(main())
