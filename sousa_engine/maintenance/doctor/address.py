"""Check of the browser address: where the studio listens, and which program answers there."""

from __future__ import annotations

import errno
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from sousa_engine.maintenance.doctor.findings import Finding

ADDRESS_PATIENCE_S = 1.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST, PORT = "STREAMLIT_SERVER_ADDRESS", "STREAMLIT_SERVER_PORT"


def address(host: str, port: int, answering: str, *, has_token: bool) -> Finding:
    """answering: "studio", "" if nothing answers, else a description of the server that does."""
    shown = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    if host not in LOOPBACK and not host.startswith("127.") and not has_token:
        text = f"{url} listens on {host or 'every interface'}, which the studio refuses without a token"
        fix = "Set server.address to 127.0.0.1, or SOUSA_TOKEN to a secret (SECURITY.md)."
        return Finding(name="Browser address", level="problem", text=text, fix=fix)
    if answering == "studio":
        return Finding(name="Browser address", level="ok", text=f"{url}: the studio is running")
    if answering:
        text = f"{url} is used by another program ({answering})"
        fix = "The studio will use the next free port and print it. To choose one: --server.port 8600"
        return Finding(name="Browser address", level="warning", text=text, fix=fix)
    return Finding(
        name="Browser address",
        level="ok",
        text=f"nothing answers at {url} (start the studio with: make app), unless it runs on another port",
    )


def studio_address(config: Path, environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port as Streamlit reads them: the environment overrides the file. "" is every interface."""
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8")).get("server", {})
    except (OSError, tomllib.TOMLDecodeError):
        settings = {}
    host = environment.get(HOST, settings.get("address", ""))
    port = environment.get(PORT, settings.get("port", 8501))
    return str(host), int(port) if str(port).isdecimal() else 8501


def who_answers(host: str, port: int) -> str:
    """`answering` for `address`. A studio answers its health check with "ok", or asks for its token."""
    near = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    url = f"http://{f'[{near}]' if ':' in near else near}:{port}/_stcore/health"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ADDRESS_PATIENCE_S) as answer:
            return "studio" if answer.read(16) == b"ok" else "a web server"
    except urllib.error.HTTPError as error:
        error.close()
        return "studio" if error.headers.get("WWW-Authenticate", "").startswith("SOUSA") else "a web server"
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        is_refused = isinstance(reason, OSError) and reason.errno in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)
        return "" if is_refused or isinstance(reason, TimeoutError) else "not a web server"
    except ValueError:
        return ""
    except Exception as error:  # http.client: not HTTP at all
        return type(error).__name__
