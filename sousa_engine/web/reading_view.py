"""How a data set is read, on the Data page: a sentence, its evidence, and fields that read it in another way.

The fields are kept in the address, as data.level=2, so that the view can be shared; the links to Launch carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from sousa_engine.core import config, grammar
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import UserError
from sousa_engine.data import levels, tables
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.layouts import Reading
from sousa_engine.web import kept, parts

FIELDS = ("table", "level", "path_column", "label_column", "split_column", "group_column")
_COLUMNS = ("label", "path", "split", "group")
_AS_IT_LOOKS = ""


def asked(dataset: str) -> DataConfig:
    """The data set, read as the address says. What cannot be read there is named on the page and left out."""
    try:
        draft = grammar.parse([f"data.{name}={text}" for name, text in in_address().items()])
        grammar.set_field(draft, "data.dataset", dataset)
        return config.build(draft).data
    except UserError as error:
        st.warning(parts.plain(str(error)), icon=":material/link_off:")
        return DataConfig(dataset=dataset)


def in_address() -> dict[str, str]:
    """Field -> its text in the address."""
    found = {name: st.query_params.get(f"data.{name}", "") for name in FIELDS}
    return {name: text for name, text in found.items() if text}


def query() -> dict[str, str]:
    """Query parameters that a link to Launch carries."""
    return {f"data.{name}": text for name, text in in_address().items()}


def section(data: DataSet) -> tuple[str, ...]:
    """The reading of a data set of files, and fields to change it. Returns the sentences that it shows."""
    reading = data.recordings.reading if data.recordings else None
    if reading is None:
        return ()
    manifest = data.manifest
    sentence = reading.sentence(len(manifest.clips), len(manifest.classes))
    with st.expander(f"Read as: {parts.plain(sentence)}", icon=":material/account_tree:"):
        for line in reading.evidence:
            st.caption(parts.plain(line))
        columns_of(reading) if reading.way == "table" else levels_of(reading)
        if in_address():
            st.button("Read it as it looks", icon=":material/restart_alt:", key="reading.reset", on_click=forget)
    return (sentence, *reading.evidence)


def columns_of(reading: Reading) -> None:
    """A select box for each column that matters."""
    places = st.columns(len(_COLUMNS))
    for place, role in zip(places, _COLUMNS, strict=True):
        options = [_AS_IT_LOOKS, *reading.choices, *([tables.NONE] if role in ("split", "group") else [])]
        now = reading.columns.get(role, "no column")
        with place:
            choose(f"{role}_column", options, {_AS_IT_LOOKS: f"as it looks: {now}", tables.NONE: "none"})
    choose("table", [_AS_IT_LOOKS, tables.NONE], {_AS_IT_LOOKS: reading.table, tables.NONE: "none: go by folders"})


def levels_of(reading: Reading) -> None:
    """A select box of the levels of folders."""
    titles = {str(one.number): f"{one.number}: {levels.some(one.names)}" for one in reading.all_levels}
    choose("level", [_AS_IT_LOOKS, *titles], {_AS_IT_LOOKS: f"as it looks: {reading.labels}", **titles})


def offer(fields: Mapping[str, Any]) -> None:
    """A button for the reading that would fit, where another one was refused."""
    for name, value in fields.items():
        st.button(
            f"Read it with {name}={value}", icon=":material/account_tree:", key=f"reading.offer.{name}",
            on_click=put, args=(name.removeprefix("data."), str(value)),
        )  # fmt: skip


def choose(name: str, options: list[str], titles: Mapping[str, str]) -> None:
    key = f"reading.{name}"
    held = in_address().get(name, _AS_IT_LOOKS)
    kept.change(key, held if held in options else _AS_IT_LOOKS)
    st.selectbox(
        config.field_label(f"data.{name}"), options, **kept.index(key, held, options),
        format_func=lambda option: titles.get(option, option), help=config.field_help(f"data.{name}"),
        on_change=lambda: put(name, st.session_state[key]),
    )  # fmt: skip


def put(name: str, text: str) -> None:
    """Let the address ask for this value of a field."""
    if text:
        st.query_params[f"data.{name}"] = text
    else:
        st.query_params.pop(f"data.{name}", None)


def forget() -> None:
    for name in FIELDS:
        st.query_params.pop(f"data.{name}", None)
