"""Baselines on the Compare page: accuracy without a neural network, on the same clips as the compared runs."""

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

REMEMBERED_S = 60  # changes to files within this time are noticed only by the clips' names and labels


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The data set and split that the compared runs share. found: its baselines, or None before they are computed."""

    data: DataConfig
    folder: Path
    found: Baselines | None


def reference(rows: Sequence[TrialRow], predictions: Mapping[str, Sequence[Prediction]]) -> Reference | None:
    """The baselines to show next to these settings.

    None if the runs differ in clips or split, if no run was tested, or if the data is gone.
    predictions: run id -> its test split, for some or all of the runs; each must cover the baselines' clips.
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


def remark(known: Reference | None) -> None:
    """A line with the baselines, or a link to compute them."""
    if known is None:
        return
    if known.found:
        n = known.found.baselines[0].n
        listed = ", ".join(f"{one.short} {parts.percent(one.accuracy.value)}" for one in known.found.baselines)
        st.caption(
            f"Baselines on the same {n:,} clips: {listed}.",
            help="No neural network; fitted on the same train clips and selected on valid. Not part of the verdict.",
        )
        return
    own = DataConfig(dataset=known.data.dataset)  # pyright: ignore[reportCallIssue]
    if _folder(own.model_dump_json(), str(default_workspace().root)) == known.folder:
        st.page_link(
            parts.page_path("data"),
            label="Compute baselines",
            icon=":material/straighten:",
            query_params={"dataset": known.data.dataset},
            help="How far you get without a neural network on the same test clips, as a reference for these runs.",
        )


@st.cache_data(max_entries=64, ttl=REMEMBERED_S, show_spinner=False)
def _folder(data: str, root: str) -> Path | None:
    """baselines.folder_for, cached briefly: opening a data set reads the header of every file."""
    return baselines.folder_for(DataConfig.model_validate_json(data), Workspace(root=Path(root)))
