"""What the waits of OpenMP's threads cost, on a free machine and beside busy programs.

    python -m benchmarks.threads [--rounds 5] [--backbones ast-mini efficientat-mini] [--record]

One process for each setting computes LoRA steps on noise; a round asks each in turn for the same steps, so that all of
them meet the same neighbours. "busy": as many busy loops run beside as there are cores; the work that they get done is
measured too, and the load of the machine, whose other programs are neighbours as well. Prints medians over rounds,
relative to OpenMP's default in the same round. --record writes benchmarks/results/threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

RESULTS = Path(__file__).with_name("results") / "threads.json"
STEPS = 6
BATCH = 16
CLEARED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
DEFAULT = "OpenMP's default"


def settings(cores: int) -> dict[str, dict[str, str]]:
    fewer = str(max(1, cores - 1))
    return {
        DEFAULT: {},
        "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
        "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
        "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
        "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
        f"OMP_NUM_THREADS={fewer} (cores - 1)": {"OMP_NUM_THREADS": fewer},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=["ast-mini", "efficientat-mini"])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--steps-of", metavar="BACKBONE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps_of:
        answer_steps(options.steps_of)
        return
    rows = [row for backbone in options.backbones for row in measure(backbone, options.rounds)]
    found = {"cores": cores(), "rounds": options.rounds, "steps": STEPS, "rows": rows}
    if options.record:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(backbone: str, rounds: int) -> list[dict]:
    """One row for each setting, on a machine that is left alone and on one that is busy."""
    tried = settings(cores())
    rows = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(backbone, more)) for name, more in tried.items()}
        for process in workers.values():
            ask(process)  # warm up
        for neighbours in (0, cores()):
            with ExitStack() as beside:
                loops = [beside.enter_context(busy_loop()) for _ in range(neighbours)]
                found = [one_round(workers, loops) for _ in range(rounds)]
            for name in tried:
                ratios = {
                    key: statistics.median(one[name][key] / one[DEFAULT][key] for one in found)
                    for key in ("wall_s", "cpu_s", *(["neighbours"] if neighbours else []))
                }
                of_it = [one[name] for one in found]
                rows.append(
                    {
                        "backbone": backbone,
                        "busy": bool(neighbours),
                        "setting": name,
                        "wall_s": statistics.median(one["wall_s"] for one in of_it),
                        "cpu_s": statistics.median(one["cpu_s"] for one in of_it),
                        "load": statistics.median(one["load"] for one in of_it),
                        "ratios": ratios,
                    }
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def one_round(workers: dict[str, subprocess.Popen], loops: list[subprocess.Popen]) -> dict[str, dict[str, float]]:
    found = {}
    for name, process in workers.items():
        before, began = [count(loop) for loop in loops], time.monotonic()
        found[name] = ask(process)
        done = sum(count(loop) - earlier for loop, earlier in zip(loops, before, strict=True))
        found[name] |= {"neighbours": done / (time.monotonic() - began), "load": os.getloadavg()[0]}
    return found


@contextmanager
def worker(backbone: str, more: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process that computes STEPS steps for each line that it is sent."""
    environment = {name: value for name, value in os.environ.items() if name not in CLEARED} | more
    command = [sys.executable, "-m", "benchmarks.threads", "--steps-of", backbone]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def busy_loop() -> Iterator[subprocess.Popen]:
    """A process that counts, and answers each line with its count."""
    code = (
        "import select, sys\nn = 0\nwhile True:\n    for _ in range(100_000): n += 1\n"
        "    if select.select([sys.stdin], [], [], 0)[0]:\n        sys.stdin.readline(); print(n, flush=True)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen) -> dict[str, float]:
    return json.loads(_said(process))


def count(process: subprocess.Popen) -> int:
    return int(_said(process))


def _said(process: subprocess.Popen) -> str:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def answer_steps(backbone: str) -> None:
    import torch

    from sousa_engine import backbones
    from sousa_engine.runs import prepare
    from sousa_engine.training import adapters
    from sousa_engine.workspace import default_workspace

    config = prepare.prepare({"model": {"variant": backbone}, "data": {"dataset": "tiny"}}).config
    network = backbones.open_network(backbone, num_classes=40, weights="random", workspace=default_workspace())
    module = adapters.attach(network, config.lora, total_steps=10**6)
    groups = adapters.parameter_groups(module, network.head_path, lr=1e-4, head_lr=1e-4, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    features = torch.randn(BATCH, 198, network.spec.mel_bins)
    target = torch.arange(BATCH) % 40
    module.train()
    for _ in sys.stdin:
        began, spent = time.monotonic(), time.process_time()
        for _ in range(STEPS):
            torch.nn.functional.cross_entropy(module(features=features), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - spent}), flush=True)


def summary() -> str:
    """The table of RESULTS.md, from the results on disk."""
    return table(json.loads(RESULTS.read_text()))


def table(found: dict) -> str:
    """Wall time and processor time of the same steps, and the work of the neighbours, relative to the default."""
    loads = [max(row["load"] for row in found["rows"] if row["busy"] is busy) for busy in (False, True)]
    lines = [
        f"| backbone | setting | wall time | processor time | beside {found['cores']} busy loops: wall time | "
        "processor time | work of the loops |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    rows = {(row["backbone"], row["setting"], row["busy"]): row["ratios"] for row in found["rows"]}
    for backbone, setting in dict.fromkeys((row["backbone"], row["setting"]) for row in found["rows"]):
        alone, busy = rows[backbone, setting, False], rows[backbone, setting, True]
        values = (alone["wall_s"], alone["cpu_s"], busy["wall_s"], busy["cpu_s"], busy["neighbours"])
        lines.append(f"| `{backbone}` | {setting} | {' | '.join(f'{value:.2f}' for value in values)} |")
    loads_text = " and ".join(f"{load:.0f}" for load in loads)
    return "\n".join(
        [*lines, "", f"Highest load of a minute, without and with the loops: {loads_text} on {found['cores']} cores."]
    )


if __name__ == "__main__":
    main()
