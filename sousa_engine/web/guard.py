"""Access control for the studio: the outermost layer around pages, websockets and JSON routes. See SECURITY.md.

Host       must be one of server.allowedHosts, otherwise 403: this stops sites that point their name to this machine
Origin     if sent with a websocket or a request that changes something, it must be the studio's own
address    connections over any address other than loopback are refused unless SOUSA_TOKEN is set
token      if set, every visitor enters it once; the browser keeps a cookie derived from it
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_VARIABLE = "SOUSA_TOKEN"
SHORTEST_TOKEN = 20
LONGEST_FORM_BYTES = 4096
_READS = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "SAMEORIGIN",  # not DENY: Streamlit shows components in frames of the same origin
    "Content-Security-Policy": "frame-ancestors 'self'",
}
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>SOUSA engine</title><style>:root{{color-scheme:light dark}}
body{{font:15px/1.5 sans-serif;max-width:26rem;margin:15vh auto;padding:0 1rem;
background:light-dark(#fdfcf9,#11181b);color:light-dark(#1d282c,#e7ebe8)}}
h1{{font:600 2.1rem serif}} [role=alert]{{color:light-dark(#b8402f,#ea7f6d)}}
input,button{{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.3rem 0;border-radius:.55rem;
border:1px solid light-dark(#e2ddd1,#2b383d);background:light-dark(#f4f1ea,#192327);color:inherit}}
button{{background:light-dark(#0e6b66,#20968a);border-color:transparent;color:#fff;cursor:pointer}}</style>
<h1>SOUSA engine</h1>{refused}<p>{said}</p><form method="post"><label for="t">Token</label>
<input id="t" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open the studio</button></form></html>"""


class UnsafeSetting(ValueError):
    """The studio must not start with this setting; str(error) says why, and what to do."""


def token_of(environment: Mapping[str, str]) -> str | None:
    """The token that visitors must enter; None if none is required. Raises UnsafeSetting if it is easy to guess."""
    token = environment.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return None
    if len(token) < SHORTEST_TOKEN or len(set(token)) < 8:
        raise UnsafeSetting(
            f"{TOKEN_VARIABLE} is too easy to guess: use at least {SHORTEST_TOKEN} characters, 8 of them different. "
            "Create one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def check_address(address: str | None, token: str | None) -> None:
    """Raise UnsafeSetting if the studio would be open to other machines without a token.

    address: server.address; None and "" mean all interfaces.
    """
    if token is None and not is_loopback(address or ""):
        raise UnsafeSetting(
            f"The studio would listen on {address or 'all interfaces'}, open to everyone who can reach this machine. "
            f"Keep server.address at 127.0.0.1, or set {TOKEN_VARIABLE} to a secret. See SECURITY.md."
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address. Names other than localhost are not trusted."""
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def host_of(header: str | None) -> str | None:
    """The host name in a Host header, in lower case; None if the header is not a valid host."""
    try:
        parts = urlsplit(f"//{header or ''}")
        plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None if plain else None


class Guard:
    """ASGI middleware. allowed_hosts: names as in server.allowedHosts; "*.example.org" allows its subdomains."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str], token: str | None = None):
        self._app = app
        self._hosts = [host.strip().lower().strip("[]").rstrip(".") for host in allowed_hosts]
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope) or await self._sign_in(scope, receive)
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before accepting it, so that the server answers 403
        else:
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None or not any(_matches(host, pattern) for pattern in self._hosts):
            return _no(
                "The studio does not accept this host name. Open http://localhost, or add the name to "
                "server.allowedHosts in .streamlit/config.toml."
            )
        if scope["type"] == "websocket" or scope["method"] not in _READS:
            origins = headers.getlist("origin")
            # The port counts: a page of another program on this machine has another origin.
            if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
                return _no("Request refused: it came from a page of another origin.")
            if not origins and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _no("Request refused: it came from a page of another origin.")
        local = (scope.get("server") or ("", None))[0]
        if self._token is None and _is_address(local) and not is_loopback(local):
            return _no(
                f"The studio is open only to its own machine. To allow others, set {TOKEN_VARIABLE}. See SECURITY.md."
            )
        return None

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response | None:
        """None if the visitor may enter; otherwise the response: the cookie for the right token, or the token form."""
        if self._token is None:
            return None
        name, proof = f"sousa_{_port(scope)}", _proof(self._token)
        shown = cookie_parser(Headers(scope=scope).get("cookie", "")).get(name, "")
        if hmac.compare_digest(shown.encode(), proof.encode()):
            return None
        if scope["type"] == "websocket":
            return _no("")
        request = Request(scope, receive)
        said = f"Enter the token of this studio: the value of {TOKEN_VARIABLE} where it was started."
        refused = ""
        if request.method == "POST" and (given := await _given_token(request)) is not None:
            # Digests have equal lengths, so that timing reveals neither length nor content.
            if hmac.compare_digest(_proof(given), proof):
                entered = RedirectResponse(_asked_for(scope), status_code=303)
                secure = request.url.scheme == "https"
                entered.set_cookie(name, proof, httponly=True, samesite="strict", secure=secure, path="/")
                return entered
            refused = '<p role="alert">That is not the token.</p>'
        headers = {"Cache-Control": "no-store", "WWW-Authenticate": "SOUSA-token"}
        return HTMLResponse(_FORM.format(said=said, refused=refused), status_code=401, headers=headers)


def guard_options(environment: Mapping[str, str], address: str | None, hosts: Sequence[str]) -> dict:
    """Options for Guard, from the environment and Streamlit's options. Raises UnsafeSetting."""
    token = token_of(environment)
    check_address(address, token)
    return {"allowed_hosts": list(hosts) or ["127.0.0.1", "localhost"], "token": token}


def refuse() -> NoReturn:
    """End a server that was started with a page instead of app.py: it would have no guard.

    `streamlit run FILE` imports a file that assigns an st.App, under its own name, and runs it as a page otherwise. So
    each page assigns one under that name, and this refuses to make it.
    """
    sys.exit("error: this page has no guard of its own. Start the studio with: streamlit run app.py")


def from_streamlit() -> dict:
    """Options for Guard, from the options of the running server."""
    import streamlit as st

    return guard_options(os.environ, st.get_option("server.address"), st.get_option("server.allowedHosts") or [])


async def _given_token(request: Request) -> str | None:
    """The token in the form; None for any other body, or a body that is too long."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return None
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM_BYTES:
            return None
    found = parse_qs(body.decode("utf-8", "replace")).get("token", [])
    return found[0].strip() if len(found) == 1 else None


def _asked_for(scope: Scope) -> str:
    """Path and query of the requested page. Never another host: browsers read //name and /\\name as one."""
    path = "/" + re.sub(r"[/\\]+", "/", scope["path"]).lstrip("/")
    query = scope.get("query_string", b"").decode("latin-1")
    return quote(path) + (f"?{query}" if query else "")


def _proof(token: str) -> str:
    """The cookie value: derived from the token, so a leaked cookie does not reveal it."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"sousa-engine cookie 1", hashlib.sha256).hexdigest()


def _matches(host: str, pattern: str) -> bool:
    """Whether the host matches. "*" alone matches nothing: it would disable the protection against DNS rebinding."""
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(scope: Scope) -> int:
    return (scope.get("server") or ("", 0))[1] or 0


def _no(sentence: str) -> Response:
    return PlainTextResponse(sentence, status_code=403, headers={"Cache-Control": "no-store"})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
