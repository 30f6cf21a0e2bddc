"""How long it takes until the next supervisor adopts a running run after the first one was killed.

    python -m benchmarks.adoption [--tries 10]

A studio is open, as usual; it notices the loss and starts the next supervisor. Measures the seconds from SIGKILL to the
event "adopted" in runs.db: the median and all tries. Writes benchmarks/results/adoption.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.browser import studio
from sousa_engine.core.records import RunStatus
from sousa_engine.runs import orders, prepare
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace, locks, run_files

RESULTS = Path(__file__).with_name("results") / "adoption.json"
LOOK_S = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(root=Path(temporary))
        draft = {"data": {"dataset": "micro"}, "training": {"max_epochs": 500}}
        with studio(workspace), Store.open(workspace) as store:
            run = orders.start(workspace, prepare.prepare(draft).config, created_by="cli")
            wait(lambda: store.runs.get(run.id).progress, "the first step")
            trainer = run_files.read_json(workspace.run_dir(run.id) / run_files.KEEPER)["trainer_pid"]
            seconds = [adopted(workspace, store, run.id, before) for before in range(options.tries)]
            same = run_files.read_json(workspace.run_dir(run.id) / run_files.KEEPER)["trainer_pid"] == trainer
            assert same and store.runs.get(run.id).status is RunStatus.RUNNING, "the run must not be affected"
            store.runs.request_stop(run.id, at_once=True)
            wait(lambda: store.runs.get(run.id).status.is_over, "the end")
    print(f"adopted after {statistics.median(seconds):.2f} s (median of {options.tries}; longest {max(seconds):.2f} s)")
    found = {"cores": os.cpu_count(), "median_s": round(statistics.median(seconds), 2)}
    RESULTS.write_text(json.dumps({**found, "all_s": [round(one, 2) for one in seconds]}, indent=1) + "\n")


def adopted(workspace: Workspace, store: Store, run_id: str, before: int) -> float:
    """Kill the present supervisor after it has had the run for a while; before: number of adoptions so far."""
    wait(lambda: locks.is_held(workspace.supervisor_lock), "a supervisor")
    time.sleep(1.5)
    pid = int(workspace.supervisor_lock.read_text())
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait(lambda: sum(event.kind == "adopted" for event in store.runs.events(run_id)) > before, "the adoption")
    return time.monotonic() - began


def wait(condition: Callable[[], object], what: str, limit_s: float = 120.0) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"waited {limit_s:.0f} s for {what}")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
