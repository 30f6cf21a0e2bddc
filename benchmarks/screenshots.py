"""Make the screenshots of README: one per page, of runs that this script trains.

    python -m benchmarks.screenshots [--workspace DIR] [PAGE ...]

It uses the sweep of benchmarks/story.py, trained first if missing (half an hour; only for pages that need it), and one
run that is still training when its page is captured. Needs Chromium (SOUSA_CHROMIUM selects another browser).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from playwright.sync_api import Page

from benchmarks import story
from benchmarks.browser import IDLE, chromium, studio
from sousa_engine.core import config, grammar
from sousa_engine.runs import orders, prepare
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

FOLDER = Path(__file__).with_name("screenshots")
PAGES = {
    "backbones": "/backbones?variant=ast-mini",
    "data": "/data?dataset=tiny",
    "launch": "/launch",
    "queue": "/queue",
    "doctor": "/doctor",
    "run": "/run?id={live}",
    "studio": "/",
    "runs": "/runs",
    "finished": "/run?id={best}",
    "sweep": "/sweeps?id={sweep}",
    "compare": "/compare?sweep={sweep}",
}
OF_THE_SWEEP = {"studio", "runs", "finished", "sweep", "compare"}
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs") / "story")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(PAGES)}; all")
    options = parser.parse_args()
    asked = options.pages or list(PAGES)
    if unknown := set(asked) - PAGES.keys():
        parser.error(f"no page is named {', '.join(sorted(unknown))}")
    workspace = Workspace(root=options.workspace.resolve())
    workspace.root.mkdir(parents=True, exist_ok=True)
    FOLDER.mkdir(exist_ok=True)
    ids = {}
    if OF_THE_SWEEP & set(asked):
        with Store.open(workspace) as store:
            swept = story.train(store)
            best = next(run for run in store.sweeps.runs(swept.id) if run.config.seed == 0)
        ids = {"sweep": swept.id, "best": best.id}
    live = orders.start(
        workspace,
        prepare.prepare(grammar.parse(["data=tiny", "training.max_epochs=60", "seed=1"])).config,
        created_by="cli",
    )
    with Store.open(workspace) as store:
        waiting = [
            store.runs.enqueue(config.build({**live.config.model_dump(), "seed": seed}), created_by="cli")
            for seed in (2, 3, 4)
        ]
    try:
        wait_for_steps(workspace, live.id, 40)
        take(workspace, {name: PAGES[name].format(live=live.id, **ids) for name in asked})
    finally:
        with Store.open(workspace) as store:
            for run in (*waiting, live):
                store.runs.request_stop(run.id)


def wait_for_steps(workspace: Workspace, run_id: str, steps: int) -> None:
    while True:
        with Store.open(workspace) as store:
            run = store.runs.get(run_id)
        if run is None or run.status.is_over:
            raise SystemExit(f"run {run_id} ended before its screenshot: {run and run.reason}")
        if run.progress and run.progress.phase == "training" and run.progress.done >= steps:
            return
        time.sleep(0.5)


def take(workspace: Workspace, pages: dict[str, str]) -> None:
    looks = workspace.root / "looks"  # for developers of a page; README shows the light ones
    looks.mkdir(exist_ok=True)
    with studio(workspace) as url, chromium() as browser:
        for name, path in pages.items():
            shoot(browser, url + path, FOLDER / f"{name}.png", "light", WIDE)
            shoot(browser, url + path, looks / f"{name}-dark.png", "dark", WIDE)
            shoot(browser, url + path, looks / f"{name}-phone.png", "dark", NARROW)


def shoot(browser, url: str, file: Path, scheme: str, viewport: dict[str, int]) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page: Page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector(IDLE)
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_load_state("networkidle") if "/run?" not in url else page.wait_for_timeout(2500)
    page.wait_for_timeout(1000)  # wait for fonts and the first paint of the chart; this is a screenshot, not a test
    page.screenshot(path=file)
    print(file)
    context.close()


if __name__ == "__main__":
    main()
