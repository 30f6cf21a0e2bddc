"""`make faults`: every kind of fault, 50 rounds each, and what came of it. Everything but the rows must be 0.

    python -m tests.faults [--rounds N] [--seed N] [--only KIND ...] [--beside N] [--record]

--record: the totals go to benchmarks/results/faults.json too, which a test holds RESULTS.md to; with --only, the other
kinds stay there as they were. Exit code 1 if anything was lost, doubled or left behind.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import sqlite3
import sys
import time
from collections.abc import Mapping

from sousa_engine.workspace import PROJECT_ROOT
from tests.faults.ground import Tally
from tests.faults.kinds import KINDS, NoDisk, play

RESULTS = PROJECT_ROOT / "benchmarks" / "results" / "faults.json"
HEADS = {
    "rounds": "rounds", "acknowledged": "rows acknowledged", "resumed": "resumed", "lost": "rows lost",
    "doubled": "rows doubled", "endless": "runs without an end", "untrue": "untrue ends", "orphans": "orphans",
    "unreadable": "checkpoints unreadable", "databases": "databases broken",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Kill runs in every way, and count.")
    parser.add_argument("--rounds", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=None, help="of all random moments")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--beside", type=int, default=3, help="workspaces beside each other")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}, for the table of RESULTS.md")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.rounds} rounds each", flush=True)
    rows, total, began = {}, Tally(), time.monotonic()
    for name in options.only:
        try:
            tally = play(name, options.rounds, str(seed), beside=options.beside)
        except NoDisk as why:
            print(f"{KINDS[name].title}: left out, {why}", flush=True)
            continue
        rows[name] = tally
        total.add(tally)
        print(f"{time.monotonic() - began:5.0f} s  {KINDS[name].title}: {line(tally)}", flush=True)
        for note in tally.notes:
            print(f"    {note}", flush=True)
        if options.record:
            _write(name, seed, tally)
    print(table({KINDS[name].title: vars(tally) for name, tally in rows.items()}))
    return 1 if any(total.faults.values()) else 0


def line(tally: Tally) -> str:
    wrong = {name: count for name, count in tally.faults.items() if count}
    return f"{tally.rounds} rounds, {tally.acknowledged:,} rows, {tally.resumed} resumed, wrong: {wrong or 'nothing'}"


def table(kinds: Mapping[str, Mapping[str, int]]) -> str:
    """The totals as RESULTS.md shows them. kinds: title -> counts, as the file of results has them."""
    lines = [f"| fault | {' | '.join(HEADS.values())} |", "|---|" + "---:|" * len(HEADS)]
    total = {name: sum(kind[name] for kind in kinds.values()) for name in HEADS}
    for title, counts in [*kinds.items(), ("**all**", total)]:
        lines.append(f"| {title} | {' | '.join(f'{counts[name]:,}' for name in HEADS)} |")
    return "\n".join(lines)


def _write(name: str, seed: int, tally: Tally) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"kinds": {}}
    kinds = found["kinds"] | {KINDS[name].title: {"seed": seed, **vars(tally)}}
    kinds = {kind.title: kinds[kind.title] for kind in KINDS.values() if kind.title in kinds}
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    found = {
        "system": f"{system}, SQLite {sqlite3.sqlite_version}",
        "kinds": kinds,
        "total": {name: sum(kind[name] for kind in kinds.values()) for name in HEADS},
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
