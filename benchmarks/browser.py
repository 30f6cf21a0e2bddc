"""A studio on a separate port, and Chromium to open it (SOUSA_CHROMIUM selects another browser)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from sousa_engine.workspace import PROJECT_ROOT, Workspace

IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"


@contextmanager
def studio(workspace: Workspace, app: Path = PROJECT_ROOT / "app.py") -> Iterator[str]:
    """The address of the studio, as soon as it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(app)]
    command += ["--server.port", str(port), "--server.headless", "true"]
    server = subprocess.Popen(
        command, env={**os.environ, "SOUSA_WORKSPACE": str(workspace.root)}, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            if server.poll() is not None:
                raise SystemExit("the studio did not start")
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = os.environ.get("SOUSA_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
