"""A real studio in a real browser: `streamlit run app.py` on a free port, in a temporary workspace, and Chromium.

studio   a running server (one per test file); .url, .workspace, .stop(), .kill(), .start()
nobody_supervises   for usefixtures: the runs of that studio are played by the tests
browser  one Chromium for the whole session
page     an empty tab (1400 x 900) that knows the address: page.goto("/backbones"); fails the test on page errors
settled  settled(page): wait until the script of that tab has run
tree     the module tree of that tab (tree_page.py); outline: what it shows unless told otherwise
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from seeding import no_supervisor
from tree_page import Tree

from sousa_engine import targets
from sousa_engine.workspace import PROJECT_ROOT, Workspace

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",  # it draws by software anyway: a process less
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-renderer-backgrounding",  # else Chromium lowers the priority of a tab it takes for hidden
    # The first three draw an address bar that nobody sees, for a quarter of the time a page costs. The others are
    # those that Playwright leaves out itself: a second list replaces the first.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup,"
    "AvoidUnnecessaryBeforeUnloadCheckSync,DestroyProfileOnBrowserClose,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,"
    "LensOverlay,MediaRouter,PaintHolding,ThirdPartyStoragePartitioning,AvoidCorsURLLoaderRestartOnRedirect,"
    "OptimizationHints,NetworkTimeServiceQuerying,AimEnabled,PreconnectToSearch",
]
VIEWPORT = {"width": 1400, "height": 900}
DEADLINE_MS = 240_000  # a deadline, not a pace: the machine may be busy with training
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"


class Studio:
    """A Streamlit server as a user starts it. The port stays the same over restarts, as a browser tab expects."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.port = free_port()
        self.log = workspace.root / "studio.log"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, deadline_s: float = 60) -> None:
        assert self.process is None, "already running"
        environment = {**os.environ, "SOUSA_WORKSPACE": str(self.workspace.root)}
        command = [sys.executable, "-m", "streamlit", "run", str(PROJECT_ROOT / "app.py")]
        command += ["--server.port", str(self.port), "--server.headless", "true"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.workspace.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + deadline_s
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the studio did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server, and nothing else, as Ctrl-C does."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 401  # it asks for its token
        except OSError:
            return False


def end_workers(workspace: Workspace) -> None:
    """The supervisor, keepers and trainers of this workspace: they outlive the studio on purpose, but not the test."""
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(workspace.root) in " ".join(p.info["cmdline"] or [])]
    for process in mine:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(mine, timeout=20)[1]:
        process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def settle(page, timeout_s: float = 60) -> None:
    """Wait until the script of this tab has run and Streamlit is idle."""
    page.wait_for_selector(IDLE, timeout=timeout_s * 1000)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = Studio(Workspace(root=tmp_path_factory.mktemp("studio")))
    studio.start()
    yield studio
    studio.stop()
    end_workers(studio.workspace)


@pytest.fixture(scope="module")
def nobody_supervises(studio):
    """The tests of a file are the supervisor of its studio."""
    with no_supervisor(studio.workspace):
        yield


@pytest.fixture
def another_studio():
    """`with another_studio(folder) as studio`: a server for one test, in the environment of that moment."""

    @contextlib.contextmanager
    def running(folder: Path):
        studio = Studio(Workspace(root=folder))
        studio.start()
        try:
            yield studio
        finally:
            studio.stop()
            end_workers(studio.workspace)

    return running


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect.set_options(timeout=DEADLINE_MS)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("SOUSA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            say_no = pytest.fail if os.environ.get("CI") else pytest.skip
            say_no("no Chromium here; install one, or name it in SOUSA_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(studio, browser):
    """One for the tests of a file: Streamlit's scripts are loaded and compiled once, which halves what a page costs."""
    context = browser.new_context(base_url=studio.url, viewport=VIEWPORT, reduced_motion="reduce")
    context.set_default_timeout(DEADLINE_MS)
    yield context
    context.close()


@pytest.fixture(scope="module")
def tabs(context):
    """tabs(): the tab of a file. In one that showed the studio before, it is there again for half the work."""
    tab = None

    def get():
        nonlocal tab
        tab = context.new_page() if tab is None or tab.is_closed() else tab
        return tab

    return get


@pytest.fixture
def page(request, context, studio, tabs):
    """An empty tab. What a test leaves in it is taken out behind it; after one marked own_tab, the tab itself."""
    page = tabs()
    page.set_viewport_size(VIEWPORT)
    errors: list[str] = []

    def note(error):
        errors.append(str(error))

    page.on("pageerror", note)
    yield page
    page.remove_listener("pageerror", note)
    if page.url.startswith(studio.url):
        page.evaluate("localStorage.clear(); sessionStorage.clear()")
    for opened in context.pages:
        if opened != page or request.node.get_closest_marker("own_tab"):
            opened.close()
    if not page.is_closed():
        page.goto("about:blank")
    context.clear_cookies()
    context.clear_permissions()
    assert not errors, errors


@pytest.fixture
def settled():
    return settle


@pytest.fixture
def tree(page, settled):
    return Tree(page, settled)


@pytest.fixture
def outline():
    return targets.load_outline("ast-base")
