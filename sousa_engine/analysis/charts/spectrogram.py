"""A clip as a chart: strokes by hand, waveform, and mel spectrogram with the detected onsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.listen import RANGE_DB, Envelope, Spectrogram

WAVE = f"rgba({template.RIGHT},0.75)"
ONSET = "#ffb347"
HANDS = {"R": "#0e8c82", "L": "#c47a1c"}
# Dark in both themes: quiet sounds need contrast near black. Lightness increases monotonically.
SCALE = [[0, "#0a1315"], [0.3, "#10363a"], [0.55, "#0f706b"], [0.75, "#4bb3a3"], [0.9, "#cfe3b4"], [1, "#fff3c9"]]
_MARKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)


class StrokeMark(NamedTuple):
    """One stroke as played. text: its hover text."""

    onset_s: float
    hand: str
    accent: bool
    text: str


class SpectrogramInfo(NamedTuple):
    """cells: (mels, frames) uint8, dB above the floor; the loudest is RANGE_DB. ticks: (row, "1 kHz"), the mel axis."""

    duration_s: float
    envelope: Envelope
    times_s: np.ndarray
    cells: np.ndarray
    mels_hz: np.ndarray
    ticks: tuple[tuple[float, str], ...]
    onsets_s: tuple[float, ...]
    strokes: tuple[StrokeMark, ...]


def spectrogram_info(
    envelope: Envelope,
    spectrogram: Spectrogram,
    onsets_s: Sequence[float],
    *,
    duration_s: float,
    strokes: Sequence[StrokeMark] = (),
) -> SpectrogramInfo:
    """strokes: known for a synthesised clip; a recording has none."""
    top_hz = float(spectrogram.mels_hz[-1]) * 1.001  # half the sample rate, with room for rounding
    rows = np.arange(len(spectrogram.mels_hz))
    ticks = tuple(
        (float(np.interp(hz, spectrogram.mels_hz, rows)), f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz")
        for hz in _MARKS_HZ
        if hz <= top_hz
    )
    return SpectrogramInfo(
        duration_s=duration_s,
        envelope=envelope,
        times_s=spectrogram.times_s,
        cells=np.clip(np.round(spectrogram.db + RANGE_DB), 0, RANGE_DB).astype(np.uint8),
        mels_hz=spectrogram.mels_hz,
        ticks=ticks,
        onsets_s=tuple(onsets_s),
        strokes=tuple(strokes),
    )


def height_px(with_strokes: bool) -> int:
    return 470 if with_strokes else 410


def spectrogram_figure(info: SpectrogramInfo) -> go.Figure:
    """Three strips over one time axis (two if the strokes are unknown)."""
    figure = go.Figure(layout=_layout(info))
    if info.strokes:
        for hand, color in HANDS.items():
            figure.add_trace(_strokes([s for s in info.strokes if s.hand == hand], hand, color))
    figure.add_trace(_wave(info))
    figure.add_trace(_heatmap(info))
    if info.onsets_s:
        figure.add_trace(_onsets(info))
    return figure


def _layout(info: SpectrogramInfo) -> go.Layout:
    wave, hands = ([0.66, 0.85], [0.88, 1.0]) if info.strokes else ([0.68, 1.0], [0.99, 1.0])
    loudest = max(float(np.abs(info.envelope.low).max()), float(np.abs(info.envelope.high).max()), 1e-6)
    bare = {"showgrid": False, "showticklabels": False, "fixedrange": True, "ticks": "", "showline": False}
    return template.layout(
        height=height_px(bool(info.strokes)),
        xaxis={
            "range": [0, info.duration_s], "title": {"text": "seconds"}, "anchor": "y", "showgrid": False,
            "minallowed": 0, "maxallowed": info.duration_s, "nticks": 9,
        },
        yaxis={
            "domain": [0.0, 0.63], "showgrid": False, "fixedrange": True, "range": [-0.5, len(info.mels_hz) - 0.5],
            "tickmode": "array", "tickvals": [row for row, _ in info.ticks], "ticktext": [t for _, t in info.ticks],
        },
        yaxis2={**bare, "domain": wave, "range": [-1.05 * loudest, 1.05 * loudest], "zeroline": False},
        yaxis3={
            **bare, "domain": hands, "range": [-0.6, 1.6], "zeroline": False, "visible": bool(info.strokes),
            "tickmode": "array", "tickvals": [0, 1], "ticktext": ["left", "right"], "showticklabels": True,
        },
        showlegend=False,
        hovermode="closest",
        dragmode="zoom",
        bargap=0,
    )  # fmt: skip


def _strokes(strokes: Sequence[StrokeMark], hand: str, color: str) -> go.Scatter:
    return go.Scatter(
        x=[s.onset_s for s in strokes],
        y=[int(hand == "R")] * len(strokes),
        yaxis="y3",
        mode="markers",
        marker={
            "size": [12 if s.accent else 7 for s in strokes],
            "color": color,
            "symbol": ["circle" if s.accent else "circle-open" for s in strokes],
            "line": {"width": 2, "color": color},
        },
        text=[s.text for s in strokes],
        hovertemplate="%{text}<br>%{x:.3f} s<extra></extra>",
        name="right hand" if hand == "R" else "left hand",
    )


def _wave(info: SpectrogramInfo) -> go.Scatter:
    e = info.envelope
    return go.Scatter(
        x=np.concatenate([e.times_s, e.times_s[::-1]]).astype(np.float32),
        y=np.concatenate([e.high, e.low[::-1]]).astype(np.float32),
        yaxis="y2",
        mode="lines",
        line={"width": 0.6, "color": WAVE},
        fill="toself",
        fillcolor=WAVE,
        hoverinfo="skip",
        name="waveform",
    )


def _heatmap(info: SpectrogramInfo) -> go.Heatmap:
    return go.Heatmap(
        x=info.times_s.astype(np.float32),
        z=info.cells,
        zmin=0,
        zmax=RANGE_DB,
        colorscale=SCALE,
        customdata=np.broadcast_to(np.round(info.mels_hz).astype(np.uint16)[:, None], info.cells.shape),
        hovertemplate="%{x:.2f} s, %{customdata} Hz<br>%{z} dB above the floor<extra></extra>",
        colorbar={
            "title": {"text": "dB", "side": "top"}, "len": 0.63, "y": 0.0, "yanchor": "bottom", "thickness": 8,
            "tickvals": [0, 20, 40, 60, 80], "ticktext": ["−80", "−60", "−40", "−20", "0"], "outlinewidth": 0,
            "xpad": 6,
        },
        name="mel spectrogram",
    )  # fmt: skip


def _onsets(info: SpectrogramInfo) -> go.Scatter:
    top, bottom = len(info.mels_hz) - 0.5, len(info.mels_hz) - 9
    x = [t for onset in info.onsets_s for t in (onset, onset, None)]
    y = [v for _ in info.onsets_s for v in (bottom, top, None)]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"width": 2, "color": ONSET},
        hovertemplate="onset at %{x:.3f} s<extra></extra>",
        name="onset detected by librosa",
    )
