"""Whether a weights file fits a backbone, before a run starts: the check of `weights import`, its answer kept.

    python -m sousa_engine.backbones.inspection BACKBONE FILE     # prints {"problem": "..."}, "" if the file fits

The check needs torch, so a process that has not loaded it (a page, the supervisor) asks a separate process, once for
each path, size and time of a file.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from sousa_engine import backbones
from sousa_engine.backbones import Variant, pretrained
from sousa_engine.core.errors import WeightsError
from sousa_engine.workspace import PROJECT_ROOT, Workspace, run_files

_VERSION = 1  # increased when the answer for the same file would differ
_MOST_KEPT = 200
_LONGEST_S = 600.0


def problem(variant: Variant, file: Path, workspace: Workspace) -> str:
    """Why a run of this backbone cannot start from this file, a sentence; "" if it can. Embedded files are trusted."""
    file = file.absolute()
    if file.is_relative_to(pretrained.EMBEDDED):
        return ""
    try:
        facts = file.stat()
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}."
    kept = workspace.cache / "weights-checks.json"
    key = json.dumps([_VERSION, variant.name, str(file), facts.st_size, facts.st_mtime_ns])
    known = run_files.read_json(kept) or {}
    if isinstance(answer := known.get(key), str):
        return answer
    if "torch" in sys.modules:
        answer = _inspect(variant, file)
    else:
        answer, is_final = _asked(variant, file)
        if not is_final:
            return answer
    known = dict(list(known.items())[1 - _MOST_KEPT :]) | {key: answer}
    with contextlib.suppress(OSError):  # it is only a cache
        kept.parent.mkdir(parents=True, exist_ok=True)
        run_files.write_json(kept, known)
    return answer


def _inspect(variant: Variant, file: Path) -> str:
    try:
        pretrained.check_fits(file, variant, backbones.family(variant))
    except WeightsError as error:
        return str(error)
    return ""


def _asked(variant: Variant, file: Path) -> tuple[str, bool]:
    """(the answer of a separate process, True), or (why it gave none, False)."""
    command = [sys.executable, "-m", "sousa_engine.backbones.inspection", variant.name, str(file)]
    try:
        done = subprocess.run(
            command, cwd=PROJECT_ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return f"Checking {file} did not finish within {_LONGEST_S:g} s.", False
    try:
        return str(json.loads(done.stdout.strip().splitlines()[-1])["problem"]), True
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"Checking {file} failed: {last.rstrip('.')}.", False


if __name__ == "__main__":
    print(json.dumps({"problem": _inspect(backbones.variant(sys.argv[1]), Path(sys.argv[2]))}))
