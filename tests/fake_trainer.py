"""A trainer's double for the process tests: `python -m tests.fake_trainer RUN_DIR`, via `--trainer-module`.

It writes a real spool and obeys the real rules, without torch. What it does stands in the run's name, as words:

    steps=20 pause_s=0.01      how many steps, and how long each takes
    hold=10                    after step 10: wait until there is a file `go` in the run's folder
    at=10 do=kill              at step 10: kill (SIGKILL to itself), crash (exit code 1), quit (0, without a result),
                               user (exit code 2 with a reason), nan, torn (half a spool line, then SIGKILL),
                               deaf (ignores SIGTERM from there on), child (leaves a process of its group behind)

After each spool write it bumps a counter outside the product (the file `acknowledged`): the tests compare with that.
A run that is resumed goes on behind its last counted step.
"""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import Prediction, Progress
from sousa_engine.workspace import run_files
from sousa_engine.workspace.spool import SpoolWriter, write_predictions


def main() -> int:
    folder = Path(sys.argv[1])
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    config = RunConfig.model_validate_json((folder / run_files.CONFIG).read_text())
    words = dict(word.split("=", 1) for word in config.name.split())
    steps, at, do = int(words.get("steps", 20)), int(words.get("at", 0)), words.get("do", "")
    counter = os.open(folder / "acknowledged", os.O_RDWR | os.O_CREAT)
    done = struct.unpack("q", os.pread(counter, 8, 0) or bytes(8))[0]  # by the launch before, if the run was resumed
    with SpoolWriter(folder / run_files.SPOOL) as spool:
        spool.facts({"weights_label": "none: a double", "pid": os.getpid(), "device": config.device})
        for step in range(done + 1, steps + 1):
            value = math.nan if do == "nan" and step == at else 1 / step
            spool.metrics(step, {"train/loss": value}, epoch=1)
            os.pwrite(counter, struct.pack("q", step), 0)
            spool.progress(Progress(phase="training", done=step, total=steps, epoch=1, max_epochs=1))
            if step == at and (code := _misbehave(do, folder)):
                return code
            if stops:
                spool.event("checkpoint", f"Saved at step {step}.")
                run_files.write_json(folder / run_files.RESULT, {"outcome": "stopped", "reason": f"Stopped at {step}."})
                return run_files.EXIT_STOPPED
            time.sleep(float(words.get("pause_s", 0.01)))
            while step == int(words.get("hold", 0)) and not stops and not (folder / "go").exists():
                time.sleep(0.01)
        spool.metrics(steps, {"test/accuracy": 0.5}, epoch=1, n=2)
    clip = {"split": "test", "label": "flam", "probability": 0.75}
    write_predictions(
        folder / run_files.PREDICTIONS,
        [
            Prediction(clip_id="a", predicted="flam", label_probability=0.75, **clip),
            Prediction(clip_id="b", predicted="drag", label_probability=0.25, **clip),
        ],
    )
    run_files.write_json(folder / run_files.RESULT, {"outcome": "finished", "reason": None})
    return run_files.EXIT_FINISHED


def _misbehave(do: str, folder: Path) -> int:
    if do == "torn":
        with (folder / run_files.SPOOL).open("ab") as file:
            file.write(b'{"k":"metrics","t":1,"st')
    if do in ("kill", "torn"):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "crash":
        raise RuntimeError("the double was told to crash")
    if do == "quit":
        os._exit(0)
    if do == "user":
        run_files.write_json(folder / run_files.RESULT, {"outcome": "failed", "reason": "r=0 will not do."})
        return run_files.EXIT_USER_ERROR
    if do == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if do == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child_pid").write_text(str(child.pid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
