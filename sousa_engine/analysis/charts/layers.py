"""How much training changed the targets of a run, by layer and role: stronger colour, larger update."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import plotly.graph_objects as go

from sousa_engine.analysis.charts import template
from sousa_engine.analysis.layers import Cell, Grid

ROW_PX = 30
INKS = {False: "#12302e", True: "#e8f0ef"}
TEAL, DARK_FROM = "rgba(15,112,105,{})", 0.7  # share of the highest value; white text is easier to read above it


class LayersInfo(NamedTuple):
    """values[i][j]: mean share of layers[i], roles[j]; None without targets. fades: cells without a kept target."""

    layers: tuple[str, ...]
    roles: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]  # in the cell: per cent, "–" if not measured, "" without targets
    notes: tuple[tuple[str, ...], ...]  # on hover
    fades: tuple[tuple[bool, ...], ...]


def layers_info(grid: Grid, kept: Collection[str] | None = None) -> LayersInfo:
    """kept: the paths to keep, if others are to be left out."""
    layers = tuple("outside" if layer is None else str(layer) for layer in grid.layers)
    roles = tuple(role or "other" for role in grid.roles)
    remaining = None if kept is None else set(kept)
    return LayersInfo(
        layers=layers,
        roles=roles,
        values=tuple(tuple(cell.mean if cell else None for cell in row) for row in grid.cells),
        texts=tuple(tuple(_text(cell) for cell in row) for row in grid.cells),
        notes=tuple(
            tuple(_note(cell, layer, role, remaining) for cell, role in zip(row, roles, strict=True))
            for row, layer in zip(grid.cells, layers, strict=True)
        ),
        fades=tuple(
            tuple(bool(cell) and remaining is not None and not _kept(cell, remaining) for cell in row)
            for row in grid.cells
        ),
    )


def layers_figure(info: LayersInfo, *, dark: bool = False) -> go.Figure:
    """One colour that works in both themes. dark: whether the theme is dark, which decides the colour of numbers."""
    top = max((value for row in info.values for value in row if value is not None), default=0.0)
    rows, columns = range(len(info.layers)), range(len(info.roles))
    faded = [(i, j) for i in rows for j in columns if info.fades[i][j]]
    plain = [(i, j) for i in rows for j in columns if info.texts[i][j] and not info.fades[i][j]]
    return go.Figure(
        [
            go.Heatmap(
                z=[[None if info.fades[i][j] else info.values[i][j] for j in columns] for i in rows],
                zmin=0,
                zmax=top or 1,
                xgap=2,
                ygap=2,
                showscale=False,
                text=info.texts,  # not drawn here, because the text colour depends on the cell
                colorscale=[[0, TEAL.format(0.06)], [1, TEAL.format(1)]],
                hoverinfo="skip",
            ),
            go.Scatter(
                x=[j for _, j in faded],
                y=[i for i, _ in faded],
                text=[f"<s>{info.texts[i][j]}</s>" for i, j in faded],
                mode="text",
                textfont={"size": 11},
                opacity=0.6,
                hoverinfo="skip",
            ),
            go.Heatmap(  # invisible; gives each cell its hover text, faded or not
                z=[[0 if info.texts[i][j] else None for j in columns] for i in rows],
                colorscale=[[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]],
                showscale=False,
                hoverongaps=False,
                text=info.notes,
                hovertemplate="%{text}<extra></extra>",
            ),
            _numbers(
                info, [(i, j) for i, j in plain if not _is_dark(info, i, j, top)], {"size": 11, "color": INKS[dark]}
            ),
            _numbers(info, [(i, j) for i, j in plain if _is_dark(info, i, j, top)], {"size": 11, "color": "white"}),
        ],
        layout=template.layout(
            height=max(300, ROW_PX * len(info.layers) + 62),
            showlegend=False,
            xaxis={
                "side": "top",
                "showgrid": False,
                "showline": False,
                "tickmode": "array",
                "tickvals": list(columns),
                "ticktext": [role.replace(".", "<br>") for role in info.roles],
                "tickfont": {"size": 11},
                "range": [-0.5, len(info.roles) - 0.5],
                "fixedrange": True,
            },
            yaxis={
                "title": {"text": "layer"},
                "showgrid": False,
                "showline": False,
                "tickmode": "array",
                "tickvals": list(rows),
                "ticktext": list(info.layers),
                "range": [len(info.layers) - 0.5, -0.5],
                "fixedrange": True,
            },
        ),
    )


def percent(share: float) -> str:
    """Two or three significant digits: 12.3, 1.23, 0.012."""
    value = 100 * share
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.0995 or not value else f"{value:.2g}"


def _text(cell: Cell | None) -> str:
    return "" if cell is None else "–" if cell.mean is None else percent(cell.mean)


def _note(cell: Cell | None, layer: str, role: str, remaining: set[str] | None) -> str:
    if cell is None:
        return ""
    count = len(cell.targets)
    mean = "not measured" if cell.mean is None else f"{percent(cell.mean)} % of its weight"
    mean += f", mean of {count}" if count > 1 and cell.mean is not None else ""
    where = "outside the layers" if layer == "outside" else f"layer {layer}"
    lines = [f"<b>{role}</b>, {where}", mean]
    lines += [cell.targets[0].path] if count == 1 else []
    if remaining is not None:
        kept = _kept(cell, remaining)
        left_out = "left out" if not kept else f"{kept} of {count} kept" if kept < count else ""
        lines += [left_out] if left_out else []
    return "<br>".join(lines)


def _kept(cell: Cell, remaining: set[str]) -> int:
    return sum(target.path in remaining for target in cell.targets)


def _is_dark(info: LayersInfo, i: int, j: int, top: float) -> bool:
    value = info.values[i][j]
    return value is not None and value >= DARK_FROM * top > 0


def _numbers(info: LayersInfo, cells: list[tuple[int, int]], font: dict) -> go.Scatter:
    return go.Scatter(
        x=[j for _, j in cells],
        y=[i for i, _ in cells],
        text=[info.texts[i][j] for i, j in cells],
        mode="text",
        textfont=font,
        hoverinfo="skip",
    )
