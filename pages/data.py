"""Data: browse a data set by class and by clip; listen to clips and look at them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from sousa_engine.analysis.export import clips_csv
from sousa_engine.core import rudiments
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.data import synth
from sousa_engine.data.clips import Clip, Manifest
from sousa_engine.data.manifest import dataset_names, majority_baseline
from sousa_engine.data.splits import SPLITS
from sousa_engine.web import addresses, kept, parts, reading_view, scan_view
from sousa_engine.web.baselines_view import baselines_section
from sousa_engine.web.clip_view import SPLIT_COLORS, rudiment_card, rudiment_of, show_clip
from sousa_engine.web.guard import refuse
from sousa_engine.workspace import default_workspace

if __name__ == "data":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

OWN = "my own data"
FOLDER_EXAMPLE = """\
drums/
├── single-stroke-roll/
│   ├── anna-01.wav
│   └── ben-01.flac
└── flam/
    ├── anna-02.wav
    └── ben-02.wav"""
CSV_EXAMPLE = """\
path,label,player,split
audio/001.wav,single-stroke-roll,anna,train
audio/002.wav,flam,ben,valid
audio/003.wav,flam,carl,test"""


def main() -> None:
    st.title("Data")
    st.caption("Browse a data set: classes, splits, players and every clip.")
    dataset = pick_dataset()
    if not dataset:
        bring_your_own()
        return
    config = reading_view.asked(dataset) if dataset not in synth.PRESETS else DataConfig(dataset=dataset)
    workspace = default_workspace()
    try:
        data = scan_view.opened(config, workspace)
        manifest = data.manifest
    except (UserError, WorkspaceError) as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        reading_view.offer(getattr(error, "fields", {}))
        scan_view.files_section(config, workspace)
        bring_your_own()
        scan_view.forget()  # so that a reload shows what the user has fixed
        return
    headline(manifest)
    st.page_link(
        parts.page_path("launch"),
        label="Train on this data set",
        icon=":material/rocket_launch:",
        query_params=scan_view.query_of_launch(dataset),
    )
    said = reading_view.section(data)
    how_it_was_read(manifest, said)
    scan_view.files_section(config, workspace)
    left, right = st.columns([5, 7], gap="large")
    with left:
        shown = filtered(manifest)
        clip = pick_clip(manifest, shown)
    with right:
        show_clip(manifest, clip, data.soundness)
    known = rudiment_of(clip.label)
    left, right = st.columns(2, gap="large") if known else (None, st.container())
    if known and left:
        with left:
            st.subheader("The rudiment", anchor=False)
            rudiment_card(known)
    with right:
        st.subheader("Players per split", anchor=False)
        split_card(manifest)
    st.subheader("Classes and splits", anchor=False)
    class_table(manifest)
    baselines_section(data, workspace)
    with st.expander("Bring your own data", icon=":material/folder_open:", expanded=False):
        bring_your_own()


# Which data set: the URL holds it, so that every view can be shared and reloaded


def pick_dataset() -> str:
    """The name or path that the URL asks for, else the one shown last; an empty string until the user enters a path."""
    asked = st.query_params.get("dataset")
    current = st.session_state.get("data.last", "tiny")
    if asked is not None and addresses.is_asked(asked):
        current = asked
    elif asked not in (None, current):
        st.query_params["dataset"] = current
    addresses.note(asked)
    embedded = {s.name: s for s in dataset_names()}
    choice = current if current in embedded else OWN
    kept.change("data.choice", choice)
    st.session_state["data.last"] = current
    st.segmented_control(
        "Data set",
        [*embedded, OWN],
        **kept.default("data.choice", choice),
        required=True,
        wrap=True,
        format_func=lambda name: f"{name} · {embedded[name].clips:,}" if name in embedded else name,
        help="The number of clips follows the name. Embedded sets are synthesised on this machine when needed.",
        on_change=lambda: go_to(dataset=None if (c := st.session_state["data.choice"]) == OWN else c),
    )
    if current in embedded:
        return current
    if st.session_state.get("data.path", current).strip() != current:
        st.session_state["data.path"] = current
    path = st.text_input(
        "Folder or table",
        **kept.value("data.path", current),
        placeholder="/path/to/drums or /path/to/clips.csv",
        help="A path on the machine that runs the studio. Nothing is copied; only file headers are read at first.",
        icon=":material/folder_open:",
        on_change=lambda: go_to(dataset=st.session_state["data.path"].strip()),
    )
    return path.strip()


def go_to(**parameters: str | None) -> None:
    """Change the URL. A new data set resets the clip and the filters. None means an empty path."""
    for name, value in parameters.items():
        st.query_params[name] = value or ""
    if "dataset" in parameters:
        reading_view.forget()
        st.session_state["data.last"] = parameters["dataset"] or ""
        addresses.note(st.session_state["data.last"])
        st.query_params.pop("clip", None)
        for key in ("class", "split", "tier", "player"):
            st.session_state.pop(key, None)


# The whole data set


def headline(manifest: Manifest) -> None:
    players = len({clip.group for clip in manifest.clips if clip.group})
    sizes = [sum(row.values()) for row in manifest.counts.values()]
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    facts = [
        ("Clips", f"{len(manifest.clips):,}", " · ".join(f"{split} {n:,}" for split, n in manifest.sizes.items())),
        ("Classes", f"{len(manifest.classes):,}", f"{each} clips each"),
        ("Players", f"{players:,}" if players else "–", "each in one split" if players else "not named"),
        ("Clip length", f"{manifest.clip_s:g} s", f"at {manifest.sample_rate_hz / 1000:g} kHz"),
        (
            "Majority baseline",
            parts.percent(majority_baseline(manifest, "test")),
            f"on test, n = {manifest.sizes['test']:,}",
        ),
    ]
    # A custom grid: five in a row on a desktop, two in a row on a phone.
    cells = "".join(
        f"<div style='border:1px solid color-mix(in srgb,currentColor 16%,transparent);border-radius:.55rem;"
        f"padding:.7rem .9rem'><dt style='font-size:.86rem'>{label}</dt>"
        f"<dd style='margin:0;font-size:1.65rem;font-weight:600;line-height:1.35'>{value}</dd>"
        f"<dd style='margin:0;font-size:.86rem;opacity:.68'>{detail}</dd></div>"
        for label, value, detail in facts
    )
    st.html(
        "<dl style='display:grid;gap:.8rem;margin:.2rem 0 .4rem;padding:0;"
        f"grid-template-columns:repeat(auto-fit,minmax(9.6rem,1fr))'>{cells}</dl>"
    )


def how_it_was_read(manifest: Manifest, said: Sequence[str]) -> None:
    """Notes on what was changed or left out, but for those that were `said`, above everything that depends on it."""
    if notes := [note for note in manifest.notes if note not in said]:
        with st.container(border=True, gap="small"):
            st.markdown("\n".join(f"- {parts.plain(note)}" for note in notes))
    if manifest.layout == "embedded":
        return
    if st.button("Read again", icon=":material/refresh:", type="tertiary", help="After the data changed."):
        scan_view.forget()
        st.rerun()


def class_table(manifest: Manifest) -> None:
    known = {r.slug: r for r in rudiments.RUDIMENTS}
    rows = []
    for label, row in manifest.counts.items():
        facts = {"class": label}
        if all(name in known for name in manifest.classes):
            facts["group"] = known[label].group
            facts["tempo"] = "{:.0f} to {:.0f}".format(*known[label].tempo_bpm)
        rows.append(facts | row | {"all": sum(row.values())})
    table = pd.DataFrame(rows)
    st.dataframe(
        table,
        hide_index=True,
        height="auto" if len(table) < 14 else 480,
        column_config={
            "class": st.column_config.TextColumn("Class", width="medium"),
            "group": st.column_config.TextColumn("Rudiment group", width="small"),
            "tempo": st.column_config.TextColumn("Usual BPM", width="small"),
            "all": st.column_config.ProgressColumn(
                "All", format="%d", min_value=0, max_value=int(table["all"].max()), color="primary", width="small"
            ),
        },
        alt="Clips of each class in train, valid and test",
    )


def split_card(manifest: Manifest) -> None:
    players = {split: sorted({manifest.clips[i].group for i in manifest.indices(split)} - {""}) for split in SPLITS}
    with st.container(border=True):
        if not any(players.values()):
            st.markdown(
                ":orange[:material/person_off:] This data set names no players, so train and test may contain the same "
                "player. If you know the players, a table with a `player` column keeps them apart."
            )
            return
        for split, names in players.items():
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.badge(split, color=SPLIT_COLORS[split])
                st.markdown(f"{len(names)} player" + ("s" if len(names) != 1 else ""))
            st.caption(parts.plain(", ".join(names[:12]) + (" …" if len(names) > 12 else "")))
        shared = sorted(set(players["train"]) & (set(players["valid"]) | set(players["test"])))
        if shared:
            st.markdown(
                f":orange[:material/warning:] In train and in another split: {parts.plain(', '.join(shared[:8]))}"
            )
        else:
            st.markdown(":green[:material/check:] No player is in two splits: the test set has only unseen players.")


# Clips


def filtered(manifest: Manifest) -> list[Clip]:
    """The clips that match the filters, which are kept in the URL."""
    st.subheader("Clips", anchor=False)
    tiers = [t for t in synth.TIERS if any(clip.columns.get("tier") == t for clip in manifest.clips)]
    players = sorted({clip.group for clip in manifest.clips} - {""})
    classes = st.multiselect(
        "Class",
        manifest.classes,
        key="class",
        bind="query-params",
        placeholder="All classes",
        label_visibility="collapsed",
    )
    with st.container(horizontal=True):
        splits = st.pills(
            "Split", SPLITS, key="split", bind="query-params", selection_mode="multi", label_visibility="collapsed"
        )
        chosen_tiers = (
            st.pills(
                "Tier", tiers, key="tier", bind="query-params", selection_mode="multi", label_visibility="collapsed"
            )
            if tiers
            else []
        )
    chosen_players = (
        st.multiselect(
            "Player",
            players,
            key="player",
            bind="query-params",
            placeholder="All players",
            label_visibility="collapsed",
        )
        if players
        else []
    )
    wanted = (
        (set(classes or ()), lambda clip: clip.label),
        (set(splits or ()), lambda clip: clip.split),
        (set(chosen_tiers or ()), lambda clip: clip.columns.get("tier")),
        (set(chosen_players or ()), lambda clip: clip.group),
    )
    return [clip for clip in manifest.clips if all(not chosen or of(clip) in chosen for chosen, of in wanted)]


def pick_clip(manifest: Manifest, shown: list[Clip]) -> Clip:
    """The table of clips. Returns the clip in the URL, or the first one."""
    chosen = manifest.by_id.get(st.query_params.get("clip", "")) or (shown or manifest.clips)[0]
    if not shown:
        st.info("No clip matches the filters. Clear one of them.", icon=":material/filter_alt_off:")
        return chosen
    at = next((i for i, clip in enumerate(shown) if clip.clip_id == chosen.clip_id), None)
    # A selection is a row number, so it is void once the rows change or a step button is pressed.
    state = f"clips.{hash(tuple(clip.clip_id for clip in shown))}.{st.session_state.get('data.step', 0)}"

    def select() -> None:
        rows = st.session_state[state]["selection"]["rows"]
        if rows and rows[0] < len(shown):
            go_to(clip=shown[rows[0]].clip_id)

    st.dataframe(
        clip_frame(shown),
        key=state,
        hide_index=True,
        on_select=select,
        selection_mode="single-row",
        selection_default={"selection": {"rows": [] if at is None else [at], "columns": [], "cells": []}},
        height="auto" if len(shown) < 12 else 470,
        column_config={
            "clip": st.column_config.TextColumn("Clip", width=192),
            "split": st.column_config.TextColumn("Split", width=58),
            "label": st.column_config.TextColumn("Class", width=110),
            "tempo_bpm": st.column_config.NumberColumn("BPM", format="%.0f", width=54),
            "tier": st.column_config.TextColumn("Tier", width=98),
            "snr_db": st.column_config.NumberColumn("SNR", format="%.0f dB", width=60),
            "length": st.column_config.NumberColumn("Length", format="%.2f s", width=70),
        },
        alt="Clips; select a row to listen to it",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        step_button("Previous", shown, -1 if at is None else at - 1, ":material/skip_previous:")
        step_button("Next", shown, 0 if at is None else at + 1, ":material/skip_next:")
        place = f"{len(shown):,} clips" if at is None else f"clip {at + 1:,} of {len(shown):,}"
        st.caption(f"{place}; select a row to listen.")
        st.download_button(
            "CSV",
            data=lambda: clips_csv(shown).encode("utf-8-sig"),  # as for runs: Excel needs the byte-order mark
            file_name="clips.csv",
            mime="text/csv",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
            help="All clips in this list, with file, label, player and split.",
            key="data.csv",
        )
    return chosen


def step_button(label: str, shown: list[Clip], to: int, icon: str) -> None:
    def step() -> None:
        st.session_state["data.step"] = st.session_state.get("data.step", 0) + 1
        go_to(clip=shown[to].clip_id)

    st.button(label, icon=icon, disabled=not 0 <= to < len(shown), on_click=step)


def clip_frame(clips: list[Clip]) -> pd.DataFrame:
    columns: dict[str, list] = {"clip": [clip.clip_id for clip in clips], "split": [clip.split for clip in clips]}
    if isinstance(clips[0].source, synth.ClipPlan):
        columns["clip"] = [clip.clip_id.split("/", 1)[1] for clip in clips]  # without the data set's name
        names = ("tempo_bpm", "tier", "snr_db")
    else:
        columns["label"] = [clip.label for clip in clips]
        columns["length"] = [clip.duration_s for clip in clips]
        names = tuple(clips[0].columns)
    return pd.DataFrame(columns | {name: [clip.columns.get(name) for clip in clips] for name in names})


# The user's own data


def bring_your_own() -> None:
    st.markdown(
        "You can use any labelled audio: wav, flac, ogg, mp3 and more, at any sample rate, mono or not. "
        "Files stay where they are. Folders and tables of many public data sets are read as they are; the simplest are:"
    )
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**A folder per class**")
        st.code(FOLDER_EXAMPLE, language=None)
        st.caption(
            "The folder name is the label. You can add `train/`, `valid/` and `test/` folders above the classes."
        )
    with right:
        st.markdown("**A table**")
        st.code(CSV_EXAMPLE, language="csv")
        st.caption(
            "CSV, TSV, JSON lines or parquet. Paths are relative to it. `player` and `split` are optional: if there is "
            "no split, one is made that is stratified by class and keeps each player in one split. Other columns are "
            "kept and shown."
        )
    st.markdown(
        "Every class needs at least three clips. All clips get the length that fits 95 % of the recordings, 1 to "
        "10 s, or the length in `data.clip_s`. Longer ones are cut at the end, shorter ones are padded with silence."
    )
    st.code("python -m sousa_engine train data=/path/to/drums", language="bash")


main()
