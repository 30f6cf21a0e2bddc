"""Baselines on the page Compare: what the data gives away without a network, on the very clips of the compared runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import Baselines
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.core.config import DataConfig
from sousa_engine.core.records import Prediction
from sousa_engine.web import parts
from sousa_engine.workspace import Workspace, default_workspace

REMEMBERED_S = 60  # files that change within it are told apart by the clips' names and labels alone


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The one data set and split of the compared runs; found: its baselines, None before they are computed."""

    data: DataConfig
    folder: Path
    found: Baselines | None


def reference(rows: Sequence[TrialRow], predictions: Mapping[str, Sequence[Prediction]]) -> Reference | None:
    """What stands beside these settings; None where runs differ in clips or split, none was tested, or data is gone.

    predictions: run id -> its test split, of some or all of the runs; each must be of the baselines' clips.
    """
    tested = [found for found in predictions.values() if found]
    configs = {run.config.data.model_dump_json(): run.config.data for row in rows for run in row.runs}
    root = str(default_workspace().root)
    folders = {_folder(data, root) for data in configs}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None or not tested:
        return None
    data = next(iter(configs.values()))
    found = baselines.read(folder)
    if found and not all(baselines.of_clips(found, some) for some in tested):
        return None
    if found and any(row.clips not in (None, found.baselines[0].n) for row in rows):
        return None
    return Reference(data=data, folder=folder, found=found)


def remark(beside: Reference | None) -> None:
    """A line with the baselines; before they are computed, where to do that."""
    if beside is None:
        return
    if beside.found:
        n = beside.found.baselines[0].n
        listed = ", ".join(f"{one.short} {parts.percent(one.accuracy.value)}" for one in beside.found.baselines)
        st.caption(
            f"On the same {n:,} clips: {listed}.",
            help="Baselines: no network, fitted on the same train clips and chosen by valid. No part of the verdict.",
        )
        return
    own = DataConfig(dataset=beside.data.dataset)  # pyright: ignore[reportCallIssue]
    if _folder(own.model_dump_json(), str(default_workspace().root)) == beside.folder:
        st.page_link(
            parts.page_path("data"),
            label="Compute baselines",
            icon=":material/straighten:",
            query_params={"dataset": beside.data.dataset},
            help="What the data gives away without a network, on the same test clips, as a scale for these runs.",
        )


@st.cache_data(max_entries=64, ttl=REMEMBERED_S, show_spinner=False)
def _folder(data: str, root: str) -> Path | None:
    """baselines.folder_for, kept for a while: opening data of one's own reads the header of every file."""
    return baselines.folder_for(DataConfig.model_validate_json(data), Workspace(root=Path(root)))
