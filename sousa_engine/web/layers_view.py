"""The layers of a run: how far training moved each target, and a new target set without those it hardly moved."""

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
from sousa_engine.web import parts, sweep_form

MEANING = (
    "Per cent: the norm of each target's update against the norm of its weight, ‖ΔW‖ / ‖W‖. A small one is a hint that "
    "a module may do without an adapter, and no proof: modules differ in how much a change of the same size does. "
    "A training without them tells."
)


def layers_section(run: Run, *, refresh_s: float) -> None:
    """Draws itself anew while the run is alive, and offers to leave out the weakest once it is over."""
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
            run = store.run(run.id) or run
            # What is kept is the best checkpoint's adapter.
            points = store.updates(run.id, run.facts.get("best_step")) or store.updates(run.id)
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
        controls.caption("When the run is over, the weakest can be left out here.")
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
            "Full fine-tuning changes the weights themselves: there is no adapter to measure against a frozen weight."
        )
    if lora.method == "bitfit":
        return "BitFit trains biases alone: no weight is adapted, so there is no update to measure."
    return "" if lora.targets else "No module of the backbone was adapted: only the head trains."


def _nothing_measured(run: Run) -> str:
    if not run.status.is_over:
        return "Comes after the first epoch."
    return "Not measured: the run ended before its first epoch did, or an earlier version made it."


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
        table.insert(0, "Stays", [target.path in kept for target in rows])
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
            "Parameters": st.column_config.NumberColumn(format="localized", help="What its adapter trains"),
            "Share": st.column_config.NumberColumn(
                format="%.1f %%", help="Of all that trains, head included"
            ),
        },
        alt="Targets, strongest update first",
    )  # fmt: skip


def _without_what_all_share(paths: list[str]) -> list[str]:
    """Paths without the first segments they have in common, as far as the name in front of a layer's number."""
    split, cut = [path.split(".") for path in paths], 0
    while all(len(p) > cut + 2 and p[cut] == split[0][cut] and not p[cut + 1].isdecimal() for p in split):
        cut += 1
    return [".".join(p[cut:]) for p in split]


def _leave_out(run: Run, found: Updates) -> tuple[str, ...]:
    """How many stay, what that comes to, and what can be done with them. Returns their paths."""
    st.markdown("**Leave out the weakest**")
    left, right = st.columns([2, 3], gap="medium")
    with left:
        share = st.slider(
            "Keep the strongest", 5, 100, 100, 5, format="%d %%", key=f"keep-{run.id}",
            help="Of the modules, counted by their update. What is left out fades in the picture above.",
        )  # fmt: skip
    kept = strongest(found, share / 100)
    config = pruned(run.config, kept)
    count, every, after = len(kept), len(found.targets), found.without(kept)
    with left:
        st.caption(
            f"All {every} modules stay. Move the slider to see what would remain."
            if count == every
            else f"{count} of {every} modules stay. With them {after:,} parameters train instead of "
            f"{found.trainable:,} ({100 * after / found.trainable:.0f} %), head included."
        )
    with right:
        suggested = f"strongest {count} of {every}, run {run.id[-4:]}"
        name = st.text_input(
            "Name of the new target set", placeholder=suggested, max_chars=LONGEST_SET_NAME, key=f"set-{run.id}",
            help="Left empty, it is called as the field suggests. A set keeps the modules and the head's policy.",
        )  # fmt: skip
        with st.container(horizontal=True):
            nothing_left_out = count == every
            if st.button(
                "Save as a target set", icon=":material/bookmark_add:", type="primary", disabled=nothing_left_out,
                key="save_set",
            ):  # fmt: skip
                _save(run, " ".join(name.split()) or suggested, kept)
            if st.button("Open in the module tree", icon=":material/account_tree:", key="open_tree"):
                st.session_state["ticks"] = {
                    "variant": config.model.variant, "paths": list(kept), "ranks": config.lora.ranks,
                    "head": config.lora.head, "r": config.lora.r, "method": config.lora.method, "name": "",
                }  # fmt: skip
                st.switch_page(parts.page_path("backbones"), query_params={"variant": config.model.variant})
            if st.button(
                "Launch without the others", icon=":material/rocket_launch:", disabled=nothing_left_out,
                help="Open Launch with this run's settings and seed and only these targets: the fair comparison.",
                key="launch_pruned",
            ):  # fmt: skip
                st.session_state["draft"] = config.model_dump(mode="json")
                st.switch_page(parts.page_path("launch"))
    return kept


def _ablation(run: Run) -> None:
    """The way to a sweep that trains the run's target set with and without its parts; the form there is filled."""
    try:
        spec = sweep_plan.ablation_of(run.config)
    except UserError as error:
        st.caption(parts.plain(str(error)))
        return
    st.markdown("**Which targets earn their keep**")
    st.caption(
        f"Trains the set again in {len(spec.sets)} versions with {len(spec.seeds)} seeds each, all else as in this "
        "run: "
        f"{parts.plain(', '.join(spec.sets))}."
        + (" Ranks of single modules are left out." if run.config.lora.rank_pattern else "")
    )
    if st.button(
        "Sweep an ablation", icon=":material/content_cut:", key="ablate",
        help=f"Fills the form on the page Sweeps: {spec.run_count} runs. Nothing starts before you press Start there.",
    ):  # fmt: skip
        st.session_state[sweep_form.DRAFT] = spec.model_dump(mode="json")
        st.switch_page(parts.page_path("sweeps"))


def _save(run: Run, name: str, paths: tuple[str, ...]) -> None:
    variant = run.config.model.variant
    try:
        with parts.open_store() as store:
            is_there = any(one.name == name for one in store.target_sets(variant))
            store.save_target_set(name, variant, paths, run.config.lora.head)
    except SousaError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    done = "Replaced" if is_there else "Saved"
    st.toast(f"{done} {parts.plain(repr(name))}: {len(paths)} modules. It is on Launch and on Backbones.")
