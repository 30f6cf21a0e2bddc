"""The studio as an ASGI app: `streamlit run app.py`. The pages are in pages/, their router is sousa_engine/web/main.py.

Why st.App: with a `pages/` folder next to the main script, Streamlit would handle a deep link that is opened first
with its old file router. With the main script in another folder, any address works as the first one.
"""

import asyncio
import logging
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from sousa_engine.core.errors import SousaError
from sousa_engine.runs import ensure
from sousa_engine.web import guard, late_timers, overtaken_values, tell, terminal
from sousa_engine.web.routes import routes
from sousa_engine.workspace import default_workspace

WATCH_S = 0.4  # between two checks for a supervisor


@asynccontextmanager
async def lifespan(app):
    """Start the supervisor before the first visitor unless one is running, and restart it if it is killed while runs
    are active or queued. It continues when the studio stops.
    """
    try:
        ensure.ensure(default_workspace())
    except SousaError as error:  # the pages report it too; a read-only workspace can still be viewed
        print(f"sousa-engine: {error}", file=sys.stderr)
    watch = asyncio.create_task(keep_supervised())
    yield
    watch.cancel()


async def keep_supervised():
    while True:
        await asyncio.sleep(WATCH_S)
        with suppress(SousaError, OSError):  # the pages report it; it may be temporary
            await asyncio.to_thread(ensure.revive, default_workspace())


try:
    guarded = guard.from_streamlit()
except guard.UnsafeSetting as error:
    sys.exit(f"error: {error}")

late_timers.pass_over()
overtaken_values.keep()
logging.getLogger(terminal.LOGGER).addFilter(terminal.OneLine())

app = st.App(
    Path(__file__).resolve().parent / "sousa_engine" / "web" / "main.py",
    lifespan=lifespan,
    routes=routes(),
    on_script_error=tell,  # also for callbacks and fragments, which bypass the router
    # Streamlit checks Host and Origin only for its websocket; pages and JSON routes need the same guard.
    middleware=[Middleware(guard.Guard, **guarded)],
)
