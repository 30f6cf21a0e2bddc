"""The studio as an ASGI app: `streamlit run app.py`. The pages are in pages/, their router in sousa_engine/web/main.py.

Why streamlit.App: a `pages/` folder beside the script that Streamlit runs would switch on its old file router
for whoever opens a deep link first; with the router elsewhere, every address works as the first one.
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
from sousa_engine.web import guard, late_timers, tell, terminal
from sousa_engine.web.routes import routes
from sousa_engine.workspace import default_workspace

WATCH_S = 0.4  # between two looks for a supervisor


@asynccontextmanager
async def lifespan(app):
    """Start the supervisor, unless one runs, before the first visitor, and another should it be killed while runs
    live or wait. It goes on when the studio stops.
    """
    try:
        ensure.ensure(default_workspace())
    except SousaError as error:  # the pages say it too: a workspace that cannot be written can still be read
        print(f"sousa-engine: {error}", file=sys.stderr)
    watch = asyncio.create_task(keep_supervised())
    yield
    watch.cancel()


async def keep_supervised():
    while True:
        await asyncio.sleep(WATCH_S)
        with suppress(SousaError, OSError):  # the pages say it; it may pass
            await asyncio.to_thread(ensure.revive, default_workspace())


try:
    guarded = guard.from_streamlit()
except guard.UnsafeSetting as error:
    sys.exit(f"error: {error}")

late_timers.pass_over()
logging.getLogger(terminal.LOGGER).addFilter(terminal.OneLine())

app = st.App(
    Path(__file__).resolve().parent / "sousa_engine" / "web" / "main.py",
    lifespan=lifespan,
    routes=routes(),
    on_script_error=tell,  # in callbacks and fragments too, which do not pass through the router
    # Streamlit checks Host and Origin on its websocket alone; pages and JSON routes need the same guard.
    middleware=[Middleware(guard.Guard, **guarded)],
)
