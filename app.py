"""The studio as an ASGI app: `streamlit run app.py`. The pages are in pages/, their router in sousa_engine/web/main.py.

Why streamlit.App: a `pages/` folder beside the script that Streamlit runs would switch on its old file router
for whoever opens a deep link first; with the router elsewhere, every address works as the first one.
"""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sousa_engine.errors import SousaError
from sousa_engine.workspace import default_workspace


@asynccontextmanager
async def lifespan(app):
    """Start the supervisor, unless one runs, before the first visitor. It goes on when the studio stops."""
    try:
        from sousa_engine import supervisor

        supervisor.ensure(default_workspace())
    except ImportError:
        pass
    except SousaError as error:  # the pages tell it too: a studio that cannot write can still be read
        print(f"sousa-engine: {error}", file=sys.stderr)
    yield


try:
    from sousa_engine.web.routes import routes
except ImportError:

    def routes():
        return []


app = st.App(
    Path(__file__).resolve().parent / "sousa_engine" / "web" / "main.py",
    lifespan=lifespan,
    routes=routes(),
    # Streamlit checks Host on its websocket alone; the JSON routes need the same guard against DNS rebinding.
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=st.get_option("server.allowedHosts") or ["*"])],
)
