"""Which address a page takes over: what a visitor asks for, not what a late message of the browser still carries."""

from types import SimpleNamespace

import pytest

from sousa_engine.web import addresses


@pytest.fixture
def session(monkeypatch):
    state, context = {}, SimpleNamespace(is_history_navigation=False)
    monkeypatch.setattr(addresses, "st", SimpleNamespace(session_state=state))
    monkeypatch.setattr(addresses, "get_script_run_ctx", lambda: context)
    addresses.enter("compare")
    return context


def test_a_late_message_does_not_undo_the_newest_choice(session):
    for written in ("", "a", "b"):
        addresses.note(written)
    assert not addresses.is_asked("a") and not addresses.is_asked("")
    assert addresses.is_asked("c")


def test_back_asks_for_an_address_that_the_page_wrote_earlier(session):
    addresses.note("a")
    addresses.note("b")
    session.is_history_navigation = True
    assert addresses.is_asked("a")


def test_a_page_that_opens_takes_over_any_address(session):
    addresses.note("a")
    assert not addresses.enter("compare") and not addresses.is_asked("a")
    assert addresses.enter("runs") and addresses.enter("compare") and addresses.is_asked("a")
