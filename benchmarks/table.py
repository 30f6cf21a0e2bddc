"""The table of runs with 10,000 runs: how long lists, sorting, filters and the page take.

    python -m benchmarks.table [--runs 10000] [--workspace DIR]

Fills a workspace with runs that have real configs, facts, curves, results, tags and notes, straight through SQL, and
prints CPU milliseconds, best of several tries, next to the cost of reading every run completely.
Writes benchmarks/results/table.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sousa_engine import targets
from sousa_engine.analysis.export import runs_csv
from sousa_engine.core.records import RunFilter, RunStatus
from sousa_engine.runs import prepare
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT, Workspace

RESULTS = Path(__file__).with_name("results") / "table.json"
EPOCHS, STEPS_PER_EPOCH, TRIES = 20, 38, 7
TAGS = ("baseline", "best", "draft", "paper", "rank study", "try again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workspace", type=Path, help="an empty folder for the runs (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(root=(options.workspace or Path(temporary)).resolve())
        began = time.perf_counter()
        fill(workspace, options.runs)
        mib = workspace.db.stat().st_size / 2**20
        print(f"{options.runs:,} runs in runs.db of {mib:.0f} MiB, filled in {time.perf_counter() - began:.1f} s")
        rows = [*listings(workspace), *page(workspace)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"runs": options.runs, "cpu_ms": dict(rows)}, indent=1) + "\n")


def fill(workspace: Workspace, count: int) -> None:
    """`count` runs of a few settings, most of them finished, as stored in runs.db."""
    chance = random.Random(0)
    configs = [json.loads(config) for config in _configs()]
    now = time.time_ns() // 1_000_000
    runs, points, summaries = [], [], []
    for number in range(1, count + 1):
        config = {**chance.choice(configs), "seed": number % 5, "name": f"study {number}" if number % 3 == 0 else ""}
        status = chance.choices(["finished", "failed", "stopped", "lost"], [90, 4, 4, 2])[0]
        created = now - (count - number) * 600_000
        epochs = EPOCHS if status == "finished" else chance.randrange(EPOCHS)
        facts = {"parameters": {"trainable": 8_104 + 3_072 * len(config["lora"]["targets"]), "total": 2_657_000}}
        tags = sorted(chance.sample(TAGS, chance.choice([0, 0, 0, 1, 2])))
        note = f"Seen after epoch {epochs}: worth another look." if number % 10 == 0 else ""
        runs.append(
            (
                number, f"r{number:05d}-bench", config["name"], status, created, created, created + 60_000,
                created + 60_000 + 1000 * chance.randrange(60, 900), json.dumps(config), json.dumps(facts),
                json.dumps(tags), note, created if number % 20 == 0 else None,
            )
        )  # fmt: skip
        top = chance.uniform(0.3, 0.9)
        curve = [round(200 * top * (1 - 0.8 ** (epoch + 1))) / 200 for epoch in range(epochs)]
        steps = [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(epochs)]
        points += [(number, step, value, created) for step, value in zip(steps, curve, strict=True)]
        if curve:
            summaries.append((number, "valid/accuracy", curve[-1], steps[-1], max(curve), steps[-1]))
        if status == "finished":
            summaries.append((number, "test/accuracy", top, steps[-1], top, steps[-1]))
    with Store.open(workspace) as store, store.connection.writing() as db:
        db.execute("INSERT INTO metric_names VALUES (1, 'valid/accuracy', 'higher'), (2, 'test/accuracy', 'higher')")
        db.conn.executemany(
            "INSERT INTO runs (run_number, id, name, status, wanted_device, slot, queue_position, created_by,"
            " created_at_ms, started_at_ms, ended_at_ms, config_json, facts_json, tags_json, note, archived_at_ms)"
            " VALUES (?, ?, ?, ?, 'auto', 'cpu', ?, 'cli', ?, ?, ?, ?, ?, ?, ?, ?)",
            runs,
        )
        db.conn.executemany(
            "INSERT INTO metric_points (run_number, metric_number, step, value, clip_count, at_ms)"
            " VALUES (?, 1, ?, ?, 200, ?)",
            points,
        )
        db.conn.executemany(
            "INSERT INTO metric_summaries (run_number, metric_number, last_value, last_step, last_clip_count,"
            " best_value, best_step) SELECT ?1, metric_number, ?3, ?4, 200, ?5, ?6 FROM metric_names WHERE metric = ?2",
            summaries,
        )


def listings(workspace: Workspace) -> Iterator[tuple[str, float]]:
    with Store.open(workspace) as store:
        shown = [row.id for row in store.runs.listing(limit=100).rows]
        everything = {
            "first 100 lines, newest first": lambda: store.runs.listing(limit=100),
            "first 100 by test accuracy": lambda: store.runs.listing(sort="test", limit=100),
            "first 100 by title": lambda: store.runs.listing(sort="title", descending=False, limit=100),
            "lines 9,400 to 9,500": lambda: store.runs.listing(limit=100, offset=9_400),
            "search of two words": lambda: store.runs.listing(RunFilter(words="attention study"), limit=100),
            "a tag and a status": lambda: store.runs.listing(
                RunFilter(tags=["best"], statuses=[RunStatus.FINISHED]), limit=100
            ),
            "curves of 100 lines": lambda: store.metrics.sparklines(shown, "valid/accuracy"),
            "all tags with their counts": store.marks.tags,
            "CSV of all lines": lambda: runs_csv(store.runs.listing(RunFilter(archived=None)).rows),
            "(every run whole, with its summaries)": lambda: store.metrics.summaries(
                [run.id for run in store.runs.all()]
            ),
        }
        for name, work in everything.items():
            yield measured(name, work, tries=2 if name.startswith("(") else TRIES)


def page(workspace: Workspace) -> Iterator[tuple[str, float]]:
    from streamlit.testing.v1 import AppTest

    os.environ["SOUSA_WORKSPACE"] = str(workspace.root)
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=300)
    app.run()
    app.switch_page(str(PROJECT_ROOT / "pages" / "runs.py")).run()
    assert not app.exception, app.exception
    yield measured("a script run of the page", lambda: app.run())
    app.text_input(key="q").set_value("attention study")
    yield measured("the same with a search", lambda: app.run())
    (table,) = app.get("bidi_component")
    size = len(table.proto.json.encode())
    print(f"{'the rows of a page, as sent':<42} {size / 1e3:8.1f} kB")


def measured(name: str, work: Callable[[], object], tries: int = TRIES) -> tuple[str, float]:
    """(name, CPU milliseconds of the best try); the first call does not count."""
    work()
    best = float("inf")
    for _ in range(tries):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    print(f"{name:<42} {1000 * best:8.1f} ms")
    return name, round(1000 * best, 2)


def _configs() -> Iterator[str]:
    for variant in ("ast-mini", "beats-mini", "ast-base"):
        outline = targets.load_outline(variant)
        for target_set in ("attention", "default", "all-linear"):
            draft = {
                "model": {"variant": variant, "weights": "random"},
                "lora": {"targets": targets.expand_sets(outline, [target_set]), "target_set": target_set},
            }
            yield prepare.prepare(draft).config.model_dump_json()


if __name__ == "__main__":
    main()
