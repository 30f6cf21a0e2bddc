"""The layers of a run: how far training moved each target, and target sets without the weakest ones."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sousa_engine import targets
from sousa_engine.analysis.charts.layers import layers_figure, layers_info
from sousa_engine.analysis.compare import parameters
from sousa_engine.analysis.layers import Updates, grid, pruned, ranked, strongest, updates
from sousa_engine.core.errors import SousaError, UserError
from sousa_engine.core.records import LONGEST_SET_NAME, Run
from sousa_engine.runs import sweep_plan
from sousa_engine.web import handover, parts
from sousa_engine.web.handover import Ticks

MEANING = (
    "In per cent: the norm of each target's update relative to the norm of its weight, ‖ΔW‖ / ‖W‖. A small update "
    "hints that a module may not need an adapter, but proves nothing: retrain without it to find out."
)


def layers_section(run: Run, *, refresh_s: float) -> None:
    """Refreshed while the run is active; afterwards offers to leave out the weakest targets."""
    st.fragment(_layers, run_every=None if run.status.is_over else refresh_s)(run)
    if not _nothing_to_measure(run):
        _ablation(run)


def _layers(run: Run) -> None:
    if why := _nothing_to_measure(run):
        st.caption(why)
        return
    try:
        outline = targets.load_outline(run.config.model.variant)
        with parts.open_store() as store:
            run = store.runs.get(run.id) or run
            # The saved adapter is the best checkpoint's.
            points = store.metrics.updates(run.id, run.facts.get("best_step")) or store.metrics.updates(run.id)
    except SousaError as error:
        st.caption(parts.plain(str(error)))
        return
    found = updates(run.config, outline, points, parameters(run).get("trainable"))
    if found is None:
        st.caption(_nothing_measured(run))
        return
    kept = None
    heading, chart, controls = st.container(), st.container(), st.container()
    if run.status.is_over and len(found.targets) > 1:
        with controls:
            kept = _leave_out(run, found)
    elif not run.status.is_over:
        controls.caption("When the run ends, you can leave out the weakest targets here.")
    with heading:
        st.markdown(f"**How far training moved each target**, {_when(run, found)}")
        st.caption(MEANING)
    with chart:
        left, right = st.columns([3, 2], gap="medium")
        figure = layers_figure(layers_info(grid(found), kept), dark=st.context.theme.type == "dark")
        left.plotly_chart(
            figure, key=f"layers-{run.id}", alt="Updates by layer and role", config={"displayModeBar": False}
        )
        with right:
            _table(found, kept, height=int(figure.layout.height))


def _nothing_to_measure(run: Run) -> str:
    lora = run.config.lora
    if lora.method == "full":
        return (
            "Full fine-tuning changes the weights themselves, so there is no adapter to compare with a frozen weight."
        )
    if lora.method == "bitfit":
        return "BitFit trains only biases: no weight is adapted, so there is no update to measure."
    return "" if lora.targets else "No backbone module is adapted: only the head is trained."


def _nothing_measured(run: Run) -> str:
    if not run.status.is_over:
        return "Available after the first epoch."
    return "Not measured: the run ended before its first epoch was complete, or an earlier version created it."


def _when(run: Run, found: Updates) -> str:
    when = f"at step {found.step:,}" + (f", epoch {found.epoch}" if found.epoch else "")
    return f"{when}: the best checkpoint" if found.step == run.facts.get("best_step") else when


def _table(found: Updates, kept: tuple[str, ...] | None, height: int) -> None:
    """Strongest first."""
    rows = ranked(found)
    top = max((target.norm for target in rows if target.norm is not None), default=0.0)
    table = pd.DataFrame(
        {
            "Module": _without_what_all_share([target.path for target in rows]),
            "Update": [None if target.norm is None else 100 * target.norm for target in rows],
            "Parameters": [target.parameters for target in rows],
            "Share": [100 * target.share for target in rows],
        }
    )
    if kept is not None and len(kept) < len(rows):
        table.insert(0, "Kept", [target.path in kept for target in rows])
    st.dataframe(
        table,
        hide_index=True,
        height=height if len(rows) > 7 else "auto",
        placeholder="–",
        column_config={
            "Update": st.column_config.ProgressColumn(
                format="%.2f %%" if 100 * top >= 0.1 else "%.2g %%", min_value=0, max_value=100 * top or 1,
                help="‖ΔW‖ / ‖W‖", color="primary",
            ),
            "Parameters": st.column_config.NumberColumn(format="localized", help="Trainable parameters of its adapter"),
            "Share": st.column_config.NumberColumn(
                format="%.1f %%", help="Share of all trainable parameters, head included"
            ),
        },
        alt="Targets, strongest update first",
    )  # fmt: skip


def _without_what_all_share(paths: list[str]) -> list[str]:
    """Paths without their common first segments, up to the name in front of a layer number."""
    split, cut = [path.split(".") for path in paths], 0
    while all(len(p) > cut + 2 and p[cut] == split[0][cut] and not p[cut + 1].isdecimal() for p in split):
        cut += 1
    return [".".join(p[cut:]) for p in split]


def _leave_out(run: Run, found: Updates) -> tuple[str, ...]:
    """Choose how many targets to keep, and what to do with them. Returns their paths."""
    st.markdown("**Leave out the weakest**")
    left, right = st.columns([2, 3], gap="medium")
    with left:
        share = st.slider(
            "Keep the strongest", 5, 100, 100, 5, format="%d %%", key=f"keep-{run.id}",
            help="Share of modules to keep, by size of update. The others fade in the chart above.",
        )  # fmt: skip
    kept = strongest(found, share / 100)
    config = pruned(run.config, kept)
    count, every, after = len(kept), len(found.targets), found.without(kept)
    with left:
        st.caption(
            f"All {every} modules are kept. Move the slider to leave some out."
            if count == every
            else f"{count} of {every} modules are kept: {after:,} trainable parameters instead of "
            f"{found.trainable:,} ({100 * after / found.trainable:.0f} %), head included."
        )
    with right:
        suggested = f"strongest {count} of {every}, run {run.id[-4:]}"
        name = st.text_input(
            "Name of the new target set", placeholder=suggested, max_chars=LONGEST_SET_NAME, key=f"set-{run.id}",
            help="Leave empty to use the suggested name.",
        )  # fmt: skip
        st.caption(
            "A set keeps the modules and the head. It leaves method and rank open, so that it fits any run."
            + (" It does not keep this run's separate ranks; Launch does." if config.lora.rank_pattern else "")
        )
        with st.container(horizontal=True):
            nothing_left_out = count == every
            if st.button(
                "Save as a target set", icon=":material/bookmark_add:", type="primary", disabled=nothing_left_out,
                key="save_set",
            ):  # fmt: skip
                _save(run, " ".join(name.split()) or suggested, kept)
            if st.button("Open in the module tree", icon=":material/account_tree:", key="open_tree"):
                handover.leave_ticks(Ticks.of(config))
                st.switch_page(parts.page_path("backbones"), query_params={"variant": config.model.variant})
            if st.button(
                "Launch with the kept targets only", icon=":material/rocket_launch:", disabled=nothing_left_out,
                help="Open Launch with the settings and seed of this run but only these targets: a fair comparison.",
                key="launch_pruned",
            ):  # fmt: skip
                handover.leave_draft(config)
                st.switch_page(parts.page_path("launch"))
    return kept


def _ablation(run: Run) -> None:
    """Fill the form of a sweep that trains the run's target set with and without its parts."""
    try:
        spec = sweep_plan.ablation_of(run.config)
    except UserError as error:
        st.caption(parts.plain(str(error)))
        return
    st.markdown("**Which targets matter**")
    st.caption(
        f"Retrains this run with {len(spec.sets)} variants of the target set, {len(spec.seeds)} seeds each: "
        f"{parts.plain(', '.join(spec.sets))}."
        + (" Per-module ranks are left out." if run.config.lora.rank_pattern else "")
    )
    if st.button(
        "Run an ablation sweep", icon=":material/content_cut:", key="ablate",
        help=f"Fills the form on the Sweeps page: {spec.run_count} runs. Nothing starts until you press Start there.",
    ):  # fmt: skip
        handover.leave_sweep_draft(spec)
        st.switch_page(parts.page_path("sweeps"))


def _save(run: Run, name: str, paths: tuple[str, ...]) -> None:
    variant = run.config.model.variant
    try:
        with parts.open_store() as store:
            is_there = any(one.name == name for one in store.target_sets.all(variant))
            store.target_sets.save(name, variant, paths, run.config.lora.head)
    except SousaError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    done = "Replaced" if is_there else "Saved"
    st.toast(f"{done} {parts.plain(repr(name))}: {len(paths)} modules. Find it on Launch and on Backbones.")
