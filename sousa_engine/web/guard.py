"""Who may talk to the studio: the outermost layer around pages, websockets and JSON routes alike. See SECURITY.md.

Host       one of server.allowedHosts, else 403: a page of another site that made its name point here gets nothing
Origin     where a browser names one for a websocket or a request that changes something, it is the studio's own
address    a connection over another address than loopback is refused, unless SOUSA_TOKEN is set
token      where it is set, everybody shows it once; the browser keeps a cookie made from it
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
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
    "X-Frame-Options": "SAMEORIGIN",  # not DENY: Streamlit shows components in frames of its own origin
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
    """The studio must not start so: str(error) says why, and what to do."""


def token_of(environment: Mapping[str, str]) -> str | None:
    """The token that visitors have to show; None where none is asked for. Raises UnsafeSetting for an easy one."""
    token = environment.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return None
    if len(token) < SHORTEST_TOKEN or len(set(token)) < 8:
        raise UnsafeSetting(
            f"{TOKEN_VARIABLE} is too easy to guess: at least {SHORTEST_TOKEN} characters, 8 of them different. "
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def check_address(address: str | None, token: str | None) -> None:
    """Raises UnsafeSetting where the studio would listen to other machines, and everybody there could use it.

    address: server.address; None and "" are every interface.
    """
    if token is None and not is_loopback(address or ""):
        raise UnsafeSetting(
            f"The studio would listen on {address or 'every interface'}, for everybody who can reach this machine. "
            f"Leave server.address at 127.0.0.1, or set {TOKEN_VARIABLE} to a secret. See SECURITY.md."
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach it. A name other than localhost may lead anywhere."""
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def host_of(header: str | None) -> str | None:
    """The host name in a Host header or an Origin's place, in lower case; None for what is neither name nor address."""
    try:
        parts = urlsplit(f"//{header or ''}")
        plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None if plain else None


class Guard:
    """ASGI middleware. allowed_hosts: names as in server.allowedHosts; "*.example.org" stands for what lies below."""

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
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: the server answers 403
        else:
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None or not any(_matches(host, pattern) for pattern in self._hosts):
            return _no(
                "This name does not belong to the studio. Open it as http://localhost, or add the name to "
                "server.allowedHosts in .streamlit/config.toml."
            )
        if scope["type"] == "websocket" or scope["method"] not in _READS:
            origins = headers.getlist("origin")
            # Compared with the port: another program's page on this machine is another origin.
            if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
                return _no("A page of another origin asked for this, so it was not done.")
            if not origins and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _no("A page of another origin asked for this, so it was not done.")
        local = (scope.get("server") or ("", None))[0]
        if self._token is None and _is_address(local) and not is_loopback(local):
            return _no(f"The studio talks to its own machine alone. For others, set {TOKEN_VARIABLE}. See SECURITY.md.")
        return None

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response | None:
        """None for who may enter. Who sends the right token gets the cookie; everybody else is asked for it."""
        if self._token is None:
            return None
        name, proof = f"sousa_{_port(scope)}", _proof(self._token)
        shown = cookie_parser(Headers(scope=scope).get("cookie", "")).get(name, "")
        if hmac.compare_digest(shown.encode(), proof.encode()):
            return None
        if scope["type"] == "websocket":
            return _no("")
        request = Request(scope, receive)
        said = f"This studio asks for its token: the value of {TOKEN_VARIABLE} where it was started."
        refused = ""
        if request.method == "POST" and (given := await _given_token(request)) is not None:
            # Digests: equal in length, so that the time tells neither length nor content.
            if hmac.compare_digest(_proof(given), proof):
                entered = RedirectResponse(_asked_for(scope), status_code=303)
                secure = request.url.scheme == "https"
                entered.set_cookie(name, proof, httponly=True, samesite="strict", secure=secure, path="/")
                return entered
            refused = '<p role="alert">That is not the token.</p>'
        headers = {"Cache-Control": "no-store", "WWW-Authenticate": "SOUSA-token"}
        return HTMLResponse(_FORM.format(said=said, refused=refused), status_code=401, headers=headers)


def guard_options(environment: Mapping[str, str], address: str | None, hosts: Sequence[str]) -> dict:
    """Guard's settings from the environment and Streamlit's options. Raises UnsafeSetting."""
    token = token_of(environment)
    check_address(address, token)
    return {"allowed_hosts": list(hosts) or ["127.0.0.1", "localhost"], "token": token}


def from_streamlit() -> dict:
    """Guard's settings as this server was started."""
    import streamlit as st

    return guard_options(os.environ, st.get_option("server.address"), st.get_option("server.allowedHosts") or [])


async def _given_token(request: Request) -> str | None:
    """The form's token; None for any other body. No longer body than a form's is read."""
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
    """Path and query that the form was shown for, never another host: a browser takes //name and /\\name for one."""
    path = "/" + re.sub(r"[/\\]+", "/", scope["path"]).lstrip("/")
    query = scope.get("query_string", b"").decode("latin-1")
    return quote(path) + (f"?{query}" if query else "")


def _proof(token: str) -> str:
    """What the cookie holds: made from the token, so that who reads a cookie has not read the token."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"sousa-engine cookie 1", hashlib.sha256).hexdigest()


def _matches(host: str, pattern: str) -> bool:
    """ "*" alone is not honoured: a studio that answers to every name has no guard against DNS rebinding."""
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
