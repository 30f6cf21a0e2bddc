"""One clip: its facts, its sound, its spectrogram and its rudiment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from sousa_engine.analysis import listen
from sousa_engine.analysis.charts.spectrogram import StrokeMark, height_px, spectrogram_figure, spectrogram_info
from sousa_engine.core import rudiments
from sousa_engine.core.errors import UserError
from sousa_engine.data import audio, excerpt, scan, synth
from sousa_engine.data.clips import Clip, Manifest
from sousa_engine.data.soundness import Soundness
from sousa_engine.web import parts

SPLIT_COLORS = {"train": "green", "valid": "orange", "test": "blue"}


@st.cache_data(max_entries=32, show_spinner="Decoding …")
def sound(content_key: str, clip_id: str, _manifest: Manifest, _soundness: Mapping[str, Soundness]) -> np.ndarray:
    """The waveform. A file that no scan has approved is decoded in a separate process, which takes 0.3 s."""
    clip = _manifest.by_id[clip_id]
    if isinstance(clip.source, Path) and not scan.is_sound(clip.source, _soundness):
        return excerpt.waveform(clip.source, _manifest.clip_s, _manifest.sample_rate_hz)
    return audio.waveform(_manifest, clip)


@st.cache_data(max_entries=32, show_spinner="Analysing with librosa (half a minute the first time) …")
def heard(content_key: str, clip_id: str, _waveform: np.ndarray, _sample_rate_hz: int) -> listen.Listening:
    return listen.listen(_waveform, _sample_rate_hz)


def show_clip(manifest: Manifest, clip: Clip, soundness: Mapping[str, Soundness]) -> None:
    """Title, player, spectrogram, tempo; the spectrogram comes last: librosa loads slowly. soundness: scan results."""
    known = rudiment_of(clip.label)
    st.subheader(parts.plain(known.name if known else clip.label), anchor=False)
    with st.container(horizontal=True, gap="small"):
        st.badge(clip.split, color=SPLIT_COLORS[clip.split])
        for text in badges(clip):
            parts.badge(text, color="gray")
    try:
        waveform = sound(manifest.content_key, clip.clip_id, manifest, soundness)
    except UserError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    if not np.abs(waveform).max() > 0:
        st.info("This clip is completely silent.", icon=":material/volume_off:")
        return
    st.audio(waveform, sample_rate=manifest.sample_rate_hz)
    marks = strokes(clip)
    # The height is reserved, so that nothing moves when the picture arrives.
    picture = st.container(height=height_px(bool(marks)) + 8, border=False, gap=None)
    words = st.empty()
    with picture:
        listening = heard(manifest.content_key, clip.clip_id, waveform, manifest.sample_rate_hz)
        figure = clip_figure(manifest, waveform, listening, marks)
        st.plotly_chart(figure, key="clip", config={"displayModeBar": False}, alt="Waveform and mel spectrogram")
    words.caption(in_words(clip, listening, marks))


def badges(clip: Clip) -> list[str]:
    if isinstance(clip.source, synth.ClipPlan):
        p = clip.source
        return [
            p.player,
            p.tier,
            f"{p.tempo_bpm:.0f} BPM",
            p.room,
            f"SNR {p.snr_db:.0f} dB",
            f"{p.cycles:.1f} cycles",
        ]
    facts = [f"{clip.duration_s:.2f} s", *([clip.group] if clip.group else [])]
    return facts + [f"{k}: {v}" for k, v in clip.columns.items() if k != "player" and v][:6]


def clip_figure(
    manifest: Manifest, waveform: np.ndarray, listening: listen.Listening, marks: list[StrokeMark]
) -> go.Figure:
    return spectrogram_figure(
        spectrogram_info(
            listen.envelope(waveform, manifest.sample_rate_hz),
            listening.spectrogram,
            listening.onsets_s,
            duration_s=manifest.clip_s,
            strokes=marks,
        )
    )


def strokes(clip: Clip) -> list[StrokeMark]:
    """The true strokes of a synthesised clip; an empty list for a recording."""
    if not isinstance(clip.source, synth.ClipPlan):
        return []
    marks = []
    for e in synth.events(clip.source):
        kind = "flam" if e.flam else "drag" if e.drag else "buzz" if e.buzz else "tap"
        text = f"{'right' if e.hand == 'R' else 'left'} hand, {kind}{', accent' if e.accent else ''}"
        marks.append(StrokeMark(onset_s=e.onset_s, hand=e.hand, accent=e.accent, text=text))
    return marks


def in_words(clip: Clip, listening: listen.Listening, marks: list[StrokeMark]) -> str:
    """librosa's onset count and tempo, next to the true strokes and the labelled tempo."""
    count = len(listening.onsets_s)
    onsets = f"**{count} {'onset' if count == 1 else 'onsets'}**" + (f" for {len(marks)} strokes" if marks else "")
    written, found = written_bpm(clip), listening.tempo_bpm
    if found is None:
        tempo = "no tempo"
    elif written is None:
        tempo = f"a tempo of **{found:.0f} BPM**"
    else:
        share = listen.tempo_share(found, written)
        relation = "labelled" if share is None else "as labelled:" if share == 1 else f"{share} × the labelled"
        tempo = f"a tempo of **{found:.0f} BPM**, {relation} {written:.0f}"
    legend = " Filled dots are accents; ticks on the spectrogram are librosa's onsets." if marks else ""
    return f"librosa finds {onsets} and {tempo}.{legend}"


def written_bpm(clip: Clip) -> float | None:
    for name in ("tempo_bpm", "tempo", "bpm"):
        try:
            value = float(clip.columns[name])
        except (KeyError, ValueError):
            continue
        if value > 0:
            return value
    return None


def rudiment_of(label: str) -> rudiments.Rudiment | None:
    """The rudiment that a label names, in any usual spelling ("single_paradiddle", "Single Paradiddle")."""
    slug = re.sub(r"[\s_]+", "-", label.strip().lower())
    return next((r for r in rudiments.RUDIMENTS if slug in (r.slug, r.sousa_slug.replace("_", "-"))), None)


def rudiment_card(r: rudiments.Rudiment) -> None:
    names = {other.slug: other.name for other in rudiments.RUDIMENTS}
    with st.container(border=True, gap="small"):
        st.markdown(f"**{r.name}** · number {r.number} of 40 · {r.group} group")
        st.code(r.sticking, language=None, wrap_lines=True)
        st.caption("R right, L left, > accent, ~ buzz; lower-case letters are grace notes.")
        beats = f"{r.cycle_beats:g} beat" + ("s" if r.cycle_beats != 1 else "")
        low, high = r.tempo_bpm
        st.markdown(
            f":gray[Played in] {r.subdivision} &ensp; :gray[Usual tempo] {low:.0f} to {high:.0f} BPM &ensp; "
            f":gray[One cycle] {beats}"
        )
        if r.sounds_like:
            twins = " and ".join(names[slug] for slug in r.sounds_like)
            st.markdown(
                f":orange[:material/hearing:] Sounds like the {twins}: strokes and accents fall at the same times, "
                "and only the timbre of the hands distinguishes them."
            )
        if r.note:
            st.caption(f"Sources: {parts.plain(r.note)}.")
