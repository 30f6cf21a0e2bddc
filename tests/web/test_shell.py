"""The studio's shell: every page opens, a mistake is a sentence, torch stays out, strangers' addresses are refused."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine.web import parts
from sousa_engine.workspace import PROJECT_ROOT

MAIN = PROJECT_ROOT / "sousa_engine" / "web" / "main.py"
PAGES = sorted(path.stem for path in (PROJECT_ROOT / "pages").glob("*.py"))


@pytest.fixture
def studio(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    return AppTest.from_file(str(MAIN), default_timeout=60)


def test_the_router_knows_every_page_file():
    assert PAGES == ["backbones", "compare", "data", "doctor", "home", "launch", "queue", "run", "runs", "sweeps"]


def test_a_garbage_database_is_a_sentence_and_no_traceback(studio, workspace):
    workspace.db.write_bytes(b"this is no database" * 100)
    studio.run()
    assert not studio.exception
    assert "runs.db" in studio.error[0].value


def test_a_workspace_that_may_not_be_looked_into_ends_no_page(studio, workspace, monkeypatch):
    looked = Path.is_file

    def refused(place):
        if place == workspace.db:
            raise PermissionError(13, "Permission denied", str(place))
        return looked(place)

    monkeypatch.setattr(Path, "is_file", refused)
    assert not studio.run().exception


def test_a_full_disk_is_told_on_every_page(studio, full_disk):
    assert any("is full" in error.value for error in studio.run().error)


def test_every_page_opens_in_an_empty_workspace_and_none_imports_torch(workspace):
    script = f"""
import json, os, sys
os.environ["SOUSA_WORKSPACE"] = {str(workspace.root)!r}
from streamlit.testing.v1 import AppTest
import app
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
assert hasattr(ScriptRunner._run_script, "__wrapped__"), "app.py passes over late timers"
studio = AppTest.from_file({str(MAIN)!r}, default_timeout=60).run()
problems = []
for name in {PAGES!r}:
    studio.switch_page(os.path.join({str(PROJECT_ROOT)!r}, "pages", name + ".py")).run()
    problems += [f"{{name}}: {{e.message}}" for e in studio.exception]
    if not (studio.title or studio.error or studio.info or studio.markdown):
        problems.append(name + " says nothing")
heavy = [m for m in ("torch", "transformers", "peft", "torchaudio") if m in sys.modules]
print(json.dumps([problems, heavy, "librosa" in sys.modules]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    problems, heavy, heard = json.loads(answer.stdout.splitlines()[-1])
    assert problems == []
    assert heavy == [] and heard, "the page Data draws a clip without torch"


def test_a_request_under_a_foreign_host_name_is_refused(workspace, monkeypatch):
    script = """
from starlette.testclient import TestClient
import app
for host in ("evil.example", "localhost", "127.0.0.1:8501"):
    print(TestClient(app.app, base_url=f"http://{host}").get("/_stcore/health").status_code)
"""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.split() == ["403", "200", "200"], answer.stderr


def test_the_studio_listens_on_this_machine_alone_and_sends_no_statistics():
    settings = tomllib.loads((PROJECT_ROOT / ".streamlit" / "config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["allowedHosts"] == ["127.0.0.1", "localhost"]
    assert settings["server"]["enableXsrfProtection"]
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["browser"]["serverAddress"], "Streamlit asks checkip.amazonaws.com for it otherwise"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_both_themes_bring_full_palettes_and_readable_text(mode):
    theme = tomllib.loads((PROJECT_ROOT / ".streamlit" / "config.toml").read_text())["theme"]
    ours = theme[mode]
    assert set(theme["light"]) == set(theme["dark"])
    assert len(ours["chartSequentialColors"]) == len(ours["chartDivergingColors"]) == 10
    assert len(set(ours["chartCategoricalColors"])) >= 8
    for behind in ("backgroundColor", "secondaryBackgroundColor"):
        assert contrast(ours["textColor"], ours[behind]) >= 7
        assert contrast(ours["linkColor"], ours[behind]) >= 4.5
        for color in ours["chartCategoricalColors"]:
            assert contrast(color, ours[behind]) >= 2.7


def contrast(one: str, other: str) -> float:
    """WCAG 2.1 contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_plain_text_is_shown_as_it_is_and_addresses_stay_whole():
    assert parts.plain("at http://127.0.0.1:8501, a:b") == r"at http://127.0.0.1:8501, a\:b"
    assert parts.plain("a_b *c* <i>") == r"a\_b \*c\* \<i\>"
    assert parts.plain("get x_1 from https://a.b/c_d?e=1, or [f](g)") == (
        r"get x\_1 from https://a.b/c_d?e=1, or \[f\](g)"
    )


def test_an_address_ends_where_it_ends():
    assert parts.plain('<a href="http://a.b/c">d</a>') == r'\<a href="<http://a.b/c>"\>d\</a\>'
    assert parts.plain("[d](http://a.b)") == r"\[d\](<http://a.b>)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        (":smile: :+1: :streamlit:", ":\u2060smile: :\u2060+1: :\u2060streamlit:"),  # escaped colons would not do
        ("12:30:05", r"12\:30\:05"),
        ("a\n===\nb\n---", "a\n\\===\nb\n\\---"),
        ("- a\n+ b\n1. c\n2) d", "\\- a\n\\+ b\n1\\. c\n2\\) d"),
        ("-5 of 1.5 - x", "-5 of 1.5 - x"),
        ("    a\n\tb", "\u00a0\u00a0\u00a0\u00a0a\n\u00a0\u00a0\u00a0\u00a0b"),
        ("a\u202eb\x1b[1m", r"a\\u202eb\\x1b\[1m"),
    ],
)
def test_plain_text_is_no_entity_emoji_heading_list_or_code_and_turns_no_line(text, shown):
    assert parts.plain(text) == shown


def test_a_badge_escapes_its_brackets_once():
    def draw():
        from sousa_engine.web import parts

        parts.badge("[md](http://evil.example) *b*")

    (drawn,) = AppTest.from_function(draw, default_timeout=60).run().markdown
    assert drawn.value == r":blue-badge[\[md\](<http://evil.example>) \*b\*]"
