"""Fields that are drawn again: what a message to the browser would replace, and what it leaves alone."""

import pytest
from streamlit.testing.v1 import AppTest

ALONE = {"backbones": "bench.classes", "launch": "launch.training.max_epochs", "sweeps": "sweep.epochs"}


def told(app) -> list[str]:
    """The fields whose value this run sends to the browser, where it replaces whatever stands there."""
    kinds = ("text_input", "text_area", "selectbox", "multiselect", "checkbox", "toggle", "button_group")
    fields = [field.proto for kind in kinds for field in app.get(kind)]
    assert len(fields) > 1
    return [proto.label for proto in fields if proto.set_value and not proto.disabled]


@pytest.mark.parametrize("page", [*ALONE, "data"])
def test_a_run_that_changes_no_field_tells_none_its_value(visit, page):
    """Such a value is older than what is typed while it travels."""
    app = visit(page)
    if page in ALONE:
        app.text_input(key=ALONE[page]).set_value("12").run()
    for _ in range(2):
        app.run()
        assert not app.exception and told(app) == []


@pytest.mark.parametrize("page", ALONE)
def test_a_field_that_is_drawn_anew_shows_what_the_session_holds(visit, page):
    app = visit(page)
    app.text_input(key=ALONE[page]).set_value("12").run()
    app.run()
    assert app.text_input(key=ALONE[page]).proto.default == "12"


def form():
    import streamlit as st

    from sousa_engine.web import kept

    def write():
        st.session_state["rank"] = "16"

    st.button("Preset", on_click=write)
    st.text_input("Rank", **kept.value("rank", "8"))


def test_what_was_typed_while_a_written_value_travelled_is_told_until_both_agree():
    app = AppTest.from_function(form, default_timeout=60).run()
    app.button[0].click().run()
    rank = app.text_input(key="rank")
    assert rank.proto.set_value and rank.proto.value == "16"
    app.text_input(key="rank").set_value("32").run()  # before the browser knew of 16, which now stands there
    rank = app.text_input(key="rank")
    assert rank.proto.set_value and rank.proto.value == "32"
    app.text_input(key="rank").set_value("64").run()
    assert app.text_input(key="rank").proto.set_value  # the 32 may have crossed it as well
    for _ in range(2):
        app.run()
    assert not app.text_input(key="rank").proto.set_value and app.text_input(key="rank").value == "64"
