"""A large workspace in the browser (10,000 runs, 2,000,000 metric rows): time until the table and a curve are painted.

    python -m benchmarks.storage [--runs 10000] [--rows 2000000] [--tries 7] [--workspace DIR]

Fills a workspace, starts the studio on it, and measures in Chromium (SOUSA_CHROMIUM selects another browser):

empty, opened   a fresh tab at a studio of one line, st.title: from the start of the navigation to the frame in which
                the title is painted. This is the start of Streamlit itself: its scripts, its websocket
table, opened   a fresh tab at /runs: from the start of the navigation to the frame in which a row is painted
table, clicked  in an open studio: from the click on Runs to that frame
curve           the page of a run of 100,000 steps: from the request for the curve to the frame in which it is painted
curve, clicked  from the click on that run to that frame, with the complete page of the run

Reports milliseconds of wall time: the median and all tries. Writes benchmarks/results/storage.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page
from tqdm import tqdm

from benchmarks import table
from benchmarks.browser import IDLE, chromium, studio
from sousa_engine.store import Store, metric_tables
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace
from sousa_engine.workspace.spool import SpoolPoint

RESULTS = Path(__file__).with_name("results") / "storage.json"
TITLES = {
    "empty, opened": "an empty Streamlit page, opened in a fresh tab (control)",
    "table, opened": "the table of runs, opened in a fresh tab",
    "table, clicked": "the table of runs, after a click in an open studio",
    "curve": "a curve of 100,000 steps, after it was requested",
    "curve, clicked": "the whole page of that run, after a click",
}
TABLE_TARGET_MS, CURVE_TARGET_MS = 1000, 300
LONG_STEPS, IN_ONE_TRANSACTION = 100_000, 200
# Checks once per frame, through shadow roots; `painted` is the time of the frame after the one that has the element.
WATCH = """
(() => {
  const deep = (root, selector) => {
    const hit = root.querySelector(selector)
    if (hit) return hit
    for (const element of root.querySelectorAll("*")) {
      const inner = element.shadowRoot && deep(element.shadowRoot, selector)
      if (inner) return inner
    }
    return null
  }
  window.painted = {}
  window.watchFor = (name, selector) => {
    delete window.painted[name]
    const look = () => requestAnimationFrame(() =>
      deep(document, selector) ? requestAnimationFrame(() => (window.painted[name] = performance.now())) : look())
    look()
  }
  document.addEventListener("click", () => (window.clicked = performance.now()), true)
  window.watchFor("title", "h1")
  window.watchFor("row", "tr[data-id]")
  window.watchFor("curve", ".uplot canvas")
})()
"""


def summary() -> str:
    """The table of RESULTS.md, from the results on disk."""
    measured = json.loads(RESULTS.read_text())["measured"]
    rows = [f"| {title} | {measured[name]['median_ms'] / 1000:.2f} s |" for name, title in TITLES.items()]
    return "\n".join(["| what is painted | after |", "|---|---:|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=2_000_000, help="minimum number of metric rows")
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument("--workspace", type=Path, help="filled if it has no runs (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(root=(options.workspace or Path(temporary)).resolve())
        workspace.root.mkdir(parents=True, exist_ok=True)
        if not workspace.db.exists():
            fill(workspace, options.runs, options.rows)
        size = count(workspace)
        print(", ".join(f"{key}: {value:,}" for key, value in size.items()))
        empty = Path(temporary) / "empty.py"
        empty.write_text("import streamlit as st\nst.title('Empty')\n")
        with studio(workspace) as url, studio(workspace, empty) as nothing, chromium() as browser:
            measured = {
                "empty, opened": tries(options.tries, lambda: opened(browser, nothing, "title")),
                "table, opened": tries(options.tries, lambda: opened(browser, f"{url}/runs", "row")),
                "table, clicked": tries(options.tries, lambda: clicked(browser, url)),
                **curves(options.tries, browser, url, size["longest"]),
            }
    found = {
        name: {"median_ms": round(statistics.median(every), 1), "all_ms": [round(one, 1) for one in every]}
        for name, every in measured.items()
    }
    for name, result in found.items():
        target = TABLE_TARGET_MS if name.startswith("table") else CURVE_TARGET_MS if name == "curve" else None
        judged = "" if target is None else f"  {'within' if result['median_ms'] < target else 'OVER'} {target} ms"
        print(f"{name:<16} {result['median_ms']:8.1f} ms{judged}")
    RESULTS.parent.mkdir(exist_ok=True)
    made = {**size, "cores": os.cpu_count(), "targets_ms": {"table": TABLE_TARGET_MS, "curve": CURVE_TARGET_MS}}
    RESULTS.write_text(json.dumps({**made, "measured": found}, indent=1) + "\n")


def fill(workspace: Workspace, runs: int, rows: int) -> None:
    """The runs of benchmarks.table, with a curve of the training loss for each; the newest has a long one."""
    table.fill(workspace, runs)
    with Store.open(workspace, checkpoints=True) as store:
        (there,) = store.connection.db.execute("SELECT count(*) FROM metric_points").fetchone()
        each = math.ceil((rows - there - LONG_STEPS) / runs)
        numbers = range(1, runs + 1)
        for first in tqdm(range(0, runs, IN_ONE_TRANSACTION), desc="filling"):
            with store.connection.writing(durable=False) as db:
                for number in numbers[first : first + IN_ONE_TRANSACTION]:
                    metric_tables.add_points(db, number, loss(LONG_STEPS if number == runs else each, number))
        Ledger(store).checkpoint_wal()


def loss(steps: int, seed: int) -> list[SpoolPoint]:
    made_at_ms = time.time_ns() // 1_000_000
    return [
        SpoolPoint("train/loss", step, 1 + math.exp(-3 * step / steps) + 0.1 * math.sin(step + seed), 1, 8, made_at_ms)
        for step in range(1, steps + 1)
    ]


def count(workspace: Workspace) -> dict[str, int]:
    with Store.open(workspace) as store:
        (rows,) = store.connection.db.execute("SELECT count(*) FROM metric_points").fetchone()
        longest = store.metrics.curve(store.runs.all(limit=1)[0].id, "train/loss")
        return {
            "runs": store.runs.count(),
            "metric_rows": rows,
            "db_mib": workspace.db.stat().st_size >> 20,
            "longest": longest.steps[-1],
        }


def tries(count: int, measure: Callable[[], float]) -> list[float]:
    measure()  # the first visit of a page compiles it
    return [measure() for _ in range(count)]


def opened(browser: Browser, address: str, what: str) -> float:
    with tab(browser) as page:
        page.goto(address)
        page.wait_for_function(f"window.painted.{what}")
        return page.evaluate(f"window.painted.{what}")


def clicked(browser: Browser, url: str) -> float:
    with tab(browser) as page:
        page.goto(f"{url}/launch")
        page.wait_for_selector(IDLE)
        page.wait_for_load_state("networkidle")
        page.get_by_role("link", name="Runs", exact=True).first.click()
        page.wait_for_function("window.painted.row")
        return page.evaluate("window.painted.row - window.clicked")


def curves(count: int, browser: Browser, url: str, steps: int) -> dict[str, list[float]]:
    """From the request, or from the click on the run in the table, to the painted curve."""
    asked, complete = [], []
    for attempt in range(count + 1):
        with tab(browser) as page:
            page.goto(f"{url}/runs")
            page.wait_for_selector("tr[data-id]")
            page.wait_for_selector(IDLE)
            page.locator("tr[data-id] a").first.click()
            page.wait_for_function("window.painted.curve")
            answer = page.evaluate(
                "({asked: performance.getEntriesByType('resource').find(e => e.name.includes('api/live')).startTime,"
                " painted: window.painted.curve, clicked: window.clicked})"
            )
            if attempt:  # the first compiles the page
                asked.append(answer["painted"] - answer["asked"])
                complete.append(answer["painted"] - answer["clicked"])
    assert steps > 0.99 * LONG_STEPS, f"the newest run has {steps} steps"  # the first of its last bucket
    return {"curve": asked, "curve, clicked": complete}


@contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


if __name__ == "__main__":
    main()
