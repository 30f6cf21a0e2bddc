"""The Doctor page: the findings of another process, problems first, folder names as plain text."""

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine.core.errors import RunError
from sousa_engine.maintenance import doctor
from sousa_engine.maintenance.doctor import Finding
from sousa_engine.workspace import PROJECT_ROOT

MAIN = PROJECT_ROOT / "sousa_engine" / "web" / "main.py"
FINE = Finding(name="Python", level="ok", text="3.12, /opt/<b>me</b>/[x](javascript:alert(1))")
BAD = Finding(name="Database", level="problem", text="runs.db is torn", fix="Make it *again*.")


@pytest.fixture
def page(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    findings = [FINE, BAD]
    asked = []
    monkeypatch.setattr(doctor, "ask", lambda workspace, **address: asked.append(workspace) or list(findings))
    studio = AppTest.from_file(str(MAIN), default_timeout=60)
    studio.switch_page(str(PROJECT_ROOT / "pages" / "doctor.py")).run()
    return studio, findings, asked


def test_problems_come_first_with_their_fix(page):
    studio, _, _ = page
    assert not studio.exception
    assert studio.error[0].value.startswith("1 problem;")
    texts = [m.value for m in studio.markdown]
    bad, fix, fine = (next(i for i, t in enumerate(texts) if w in t) for w in ("Database", "again", "Python"))
    assert bad < fix < fine


def test_paths_are_shown_as_text(page):
    studio, _, _ = page
    assert FINE.text in [text.value for text in studio.text]  # st.text reads no Markdown
    assert r"Make it \*again\*." in "".join(m.value for m in studio.markdown)
    assert not any(m.allow_html for m in studio.markdown)


def test_it_is_asked_once_until_somebody_asks_again(page):
    studio, findings, asked = page
    studio.run()
    assert len(asked) == 1
    findings.remove(BAD)
    studio.button(key="again").click().run()
    assert len(asked) == 2
    assert not studio.error and studio.success[0].value == doctor.summary([FINE])


def test_a_doctor_that_fails_is_a_sentence_and_is_asked_anew(page, monkeypatch):
    studio, _, _ = page

    def fail(workspace, **address):
        raise RunError("The doctor did not answer in 150 s.")

    monkeypatch.setattr(doctor, "ask", fail)
    studio.button(key="again").click().run()
    assert not studio.exception and "did not answer" in studio.error[0].value
    monkeypatch.setattr(doctor, "ask", lambda workspace, **address: [FINE])
    studio.run()
    assert not studio.error


def test_a_workspace_at_fault_leads_to_the_doctor_a_mistyped_value_does_not(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    studio = AppTest.from_file(str(MAIN), default_timeout=60)
    assert "doctor" not in [link.proto.page for link in studio.run().get("page_link")]
    workspace.db.write_bytes(b"this is no database" * 100)
    assert "doctor" in [link.proto.page for link in studio.run().get("page_link")]
