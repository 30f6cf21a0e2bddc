"""A real server and a real browser: who is let in, and that names are text wherever they are shown."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys

import pytest
from seeding import Training, config, no_supervisor

from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import RunStatus
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT, run_files

pytestmark = pytest.mark.browser
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
NAMES = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "**bold** :red[red] $x^2$ <script>alert(1)</script>",
]
TOKEN = "correct-horse-battery-staple"


def ask(studio, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    if answer.status != 101:
        answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize(
    "path", ["/", "/runs", "/api/live?run=abc", "/_stcore/health", "/assets/live_chart/uPlot.min.js"]
)
def test_a_foreign_host_gets_no_page_and_no_route(studio, path):
    assert ask(studio, path, Host="evil.example").status == 403
    assert ask(studio, path, Host=f"127.0.0.1:{studio.port}").status != 403


def test_the_websocket_opens_for_the_studios_own_page_alone(studio):
    host, stream = f"127.0.0.1:{studio.port}", "/_stcore/stream"
    assert ask(studio, stream, Host=host, Origin=f"http://{host}", **UPGRADE).status == 101
    assert ask(studio, stream, Host=host, Origin="http://evil.example", **UPGRADE).status == 403
    assert ask(studio, stream, Host=host, Origin="http://localhost:3000", **UPGRADE).status == 403
    foreign = f"evil.example:{studio.port}"
    assert ask(studio, stream, Host=foreign, Origin=f"http://{foreign}", **UPGRADE).status == 403


@pytest.mark.parametrize("path", ["/", "/api/live", "/_stcore/health"])
def test_every_answer_carries_the_headers_that_browsers_heed(studio, path):
    answer = ask(studio, path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_the_studio_refuses_to_listen_for_others_without_a_token(studio, address):
    command = [sys.executable, "-m", "streamlit", "run", str(PROJECT_ROOT / "app.py"), "--server.headless", "true"]
    command += ["--server.port", "0", "--server.address", address]
    environment = {**os.environ, "SOUSA_WORKSPACE": str(studio.workspace.root)}
    environment.pop("SOUSA_TOKEN", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "SOUSA_TOKEN" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.own_tab
def test_names_of_runs_are_text_on_every_page(studio, page, settled):
    with Store.open(studio.workspace) as store:
        runs = [store.runs.enqueue(RunConfig(name=name)) for name in NAMES]
        for run in runs:
            store.runs.request_stop(run.id)
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    compare = "&".join(f"run={run.id}" for run in runs[:2])
    for place in ("/", "/runs", *(f"/run?id={run.id}" for run in runs), f"/compare?{compare}"):
        page.goto(place)
        settled(page)
        assert page.locator("img[src=x], a[href^='javascript:']").count() == 0, place
    page.goto("/")
    for name in NAMES:
        page.get_by_text(name).first.wait_for()
    assert dialogs == []


def test_a_log_is_text_and_its_button_copies_it(studio, page, settled):
    lines = ["epoch 1/3", "<img src=x onerror=alert(1)>", "**no** [link](javascript:alert(1))"]
    with no_supervisor(studio.workspace):
        training = Training.begin(studio.workspace, config(seed=3))
        (training.folder / run_files.LOG).write_text("\n".join(lines) + "\n")
        run = training.end(RunStatus.FAILED, "It broke.")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/run?id={run.id}")
    settled(page)
    block = page.locator(".block", has_text=lines[0]).first
    assert block.locator("pre").inner_text().splitlines() == lines
    assert page.locator("img[src=x], a[href^='javascript:']").count() == 0
    block.get_by_role("button", name="Copy to clipboard").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == lines


def test_with_a_token_the_browser_is_asked_once_and_the_studio_works(
    tmp_path, browser, another_studio, monkeypatch, settled
):
    monkeypatch.setenv("SOUSA_TOKEN", TOKEN)
    with another_studio(tmp_path) as studio:
        assert ask(studio, "/").status == 401
        assert ask(studio, "/api/live").status == 401
        assert ask(studio, "/_stcore/stream", **UPGRADE).status == 403
        context = browser.new_context(base_url=studio.url)
        page = context.new_page()
        page.goto("/runs?archived=true&q=a%26b")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button").click()
        page.get_by_text("That is not the token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button").click()
        settled(page)
        page.get_by_role("heading", name="Runs", exact=True).wait_for()
        assert page.url == f"{studio.url}/runs?archived=true&q=a%26b", "what was asked for before the token was"
        context.close()
