"""The studio's guard: foreign names, foreign pages and other machines get a sentence, and nothing else."""

from __future__ import annotations

import ast
from urllib.parse import urljoin, urlsplit

import pytest
import streamlit
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit.web.server.app_discovery import discover_asgi_app

from sousa_engine.web import guard
from sousa_engine.web.guard import Guard, UnsafeSetting
from sousa_engine.workspace import PROJECT_ROOT

STREAM = "ws://localhost:8501/stream"
TOKEN = "correct-horse-battery-staple"
HOSTS = ["127.0.0.1", "localhost", "::1", "*.lab.example"]
FOREIGN = [
    "evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "169.254.1.1",
    "localhost@evil.example", "evil.example#localhost", "localhost:port", "lab.example", "", "[::2]",
]  # fmt: skip


def client(token: str | None = None, *, address: str = "localhost") -> TestClient:
    async def echo(socket):
        await socket.accept()
        await socket.send_text("in")
        await socket.close()

    async def page(request):
        return PlainTextResponse("in", headers={"Referrer-Policy": "no-referrer"} if request.query_params else {})

    routes = [Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/stream", echo)]
    inner = Guard(Starlette(routes=routes), allowed_hosts=HOSTS, token=token)

    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            scope["server"] = (address, 8501)  # as uvicorn says it: the address the connection came in by
        await inner(scope, receive, send)

    return TestClient(app, base_url="http://localhost:8501")


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_foreign_host_is_refused_in_a_sentence(host, method):
    answer = client().request(method, "/", headers={"host": host})
    assert answer.status_code == 403 and "allowedHosts" in answer.text


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_gets_no_websocket(host):
    with pytest.raises(WebSocketDisconnect), client().websocket_connect(STREAM, headers={"host": host}):
        pass


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8501", "127.0.0.1:9", "localhost.", "[::1]:8501", "a.lab.example"]
)
def test_the_studios_own_names_are_let_in(host):
    assert client().get("/", headers={"host": host}).text == "in"


def test_two_hosts_in_one_request_are_refused():
    headers = [("host", "localhost"), ("host", "evil.example")]
    assert client().get("/", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:3000", "http://localhost", "http://localhost:8501.evil.example"],
)
def test_a_page_of_another_origin_can_change_nothing_and_opens_no_websocket(origin):
    assert client().post("/", headers={"origin": origin}).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        client().websocket_connect(STREAM, headers={"origin": origin}),
    ):
        pass


def test_the_studios_own_page_may():
    own = {"origin": "http://localhost:8501"}
    assert client().post("/", headers=own).text == "in"
    with client().websocket_connect(STREAM, headers=own) as socket:
        assert socket.receive_text() == "in"
    assert client().post("/").text == "in", "a program that is no browser names no origin"
    assert client().post("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("address", ["192.168.1.5", "10.0.0.1", "2001:db8::1", "0.0.0.0"])
def test_who_comes_from_another_machine_is_refused_however_the_server_was_started(address):
    answer = client(address=address).get("/")
    assert answer.status_code == 403 and "SOUSA_TOKEN" in answer.text
    assert client(TOKEN, address=address).get("/").status_code == 401


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.8.8.8", "::ffff:127.0.0.1"])
def test_this_machine_is_let_in(address):
    assert client(address=address).get("/").text == "in"


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.5", "myhost", "example.org"])
def test_the_studio_does_not_start_for_others_without_a_token(address):
    with pytest.raises(UnsafeSetting, match=r"127\.0\.0\.1.*SOUSA_TOKEN"):
        guard.guard_options({}, address, HOSTS)
    assert guard.guard_options({"SOUSA_TOKEN": TOKEN}, address, HOSTS)["token"] == TOKEN


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
def test_it_starts_for_this_machine(address):
    assert guard.guard_options({"SOUSA_TOKEN": " "}, address, []) == {
        "allowed_hosts": ["127.0.0.1", "localhost"],
        "token": None,
    }


@pytest.mark.parametrize("token", ["secret", "a" * 40, "abc" * 10])
def test_a_token_that_can_be_guessed_is_refused(token):
    with pytest.raises(UnsafeSetting, match="token_urlsafe"):
        guard.token_of({"SOUSA_TOKEN": token})


def test_every_name_is_not_a_name():
    everyone = Guard(Starlette(), allowed_hosts=["*"])
    assert TestClient(everyone, base_url="http://evil.example").get("/").status_code == 403


# The token


def test_the_token_is_asked_for_once_and_kept_in_a_strict_cookie():
    visitor = client(TOKEN)
    asked = visitor.get("/")
    assert asked.status_code == 401 and 'type="password"' in asked.text and asked.text != "in"
    entered = visitor.post("/", data={"token": TOKEN}, follow_redirects=False)
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert visitor.get("/").text == "in"
    with visitor.websocket_connect(STREAM) as socket:
        assert socket.receive_text() == "in"


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ü" * 30, "<script>", "x" * 10_000])
def test_a_wrong_token_gets_no_cookie_and_is_not_shown_again(given):
    answer = client(TOKEN).post("/", data={"token": given})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert "<script>" not in answer.text


@pytest.mark.parametrize("cookie", ["", "sousa_8501=" + "0" * 64, "sousa_8501=\u00fc", f"sousa_8501={TOKEN}"])
def test_a_wrong_cookie_and_no_cookie_open_nothing(cookie):
    headers: dict = {b"cookie": cookie.encode()}
    assert client(TOKEN).get("/", headers=headers).status_code == 401
    with pytest.raises(WebSocketDisconnect), client(TOKEN).websocket_connect(STREAM, headers=headers):
        pass


@pytest.mark.parametrize(
    "asked",
    ["/", "/runs", "/runs?q=flam%20tap&status=failed&status=lost", "/run?id=20260101-ab", "/a%20b%3F?x=%2F%2Fy"],
)
def test_who_shows_the_token_lands_on_what_was_asked_for(asked):
    assert entered_at(asked) == asked


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example", "///evil.example/x", "/%2Fevil.example", "/%2f%2fevil.example", "/\\evil.example",
        "/\\\\evil.example", "/%5Cevil.example", "/%5c/evil.example", "/%09/evil.example", "/%0d%0a//evil.example",
        "/.//evil.example", "/..//evil.example", "/%2e%2e/%2fevil.example", "/https://evil.example",
        "/https:%2f%2fevil.example", "//evil.example?next=//evil.example", "//localhost@evil.example",
        "//evil.example%5C@localhost:8501",
    ],
)  # fmt: skip
def test_the_token_leads_to_no_other_site(path):
    there = entered_at(path)
    assert there.startswith("/") and "//" not in there.split("?")[0] and "\\" not in there
    assert not set(there) & set("\t\r\n")
    assert urlsplit(urljoin("http://localhost:8501/", there)).netloc == "localhost:8501"


@pytest.mark.parametrize("query", ["?next=https://evil.example", "?/\\evil.example"])
def test_a_query_is_kept_and_leads_nowhere(query):
    assert entered_at("/runs" + query).split("?")[0] == "/runs"


def entered_at(path: str) -> str:
    """Where the browser is sent that showed the token at this address of the studio's."""
    url = "http://localhost:8501" + path
    answer = client(TOKEN).post(url, data={"token": TOKEN}, follow_redirects=False)
    assert answer.status_code == 303
    return answer.headers["location"]


def test_a_foreign_page_cannot_send_the_token_either():
    foreign = {"origin": "http://evil.example"}
    assert client(TOKEN).post("/", data={"token": TOKEN}, headers=foreign).status_code == 403


def test_every_answer_carries_the_headers_that_browsers_heed():
    for answer in (
        client().get("/"),
        client().get("/none"),
        client(TOKEN).get("/"),
        client().get("/", headers={"host": "x"}),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert client().get("/?own=1").headers["referrer-policy"] == "no-referrer", "what an answer set itself stays"


SCRIPTS = [PROJECT_ROOT / "sousa_engine" / "web" / "main.py", *sorted((PROJECT_ROOT / "pages").glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_server_of_a_page_alone_ends_before_it_serves_anything(script):
    """Streamlit imports a file with an app in it under its own name, and would run any other as a page, unguarded."""
    found = discover_asgi_app(script)
    assert (found.is_asgi_app, found.import_string) == (True, f"{script.stem}:app")
    (condition,) = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.If)][:1]
    module = ast.Module([condition], type_ignores=[])
    with pytest.raises(SystemExit, match=r"streamlit run app\.py"):
        exec(compile(module, str(script), "exec"), {"__name__": script.stem, "st": streamlit, "refuse": guard.refuse})
