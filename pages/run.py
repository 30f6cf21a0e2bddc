"""One run: its status, curves, results, settings and log. The URL /run?id=... survives a reload."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sousa_engine.analysis import log
from sousa_engine.analysis.charts.class_accuracy import class_accuracy_figure, class_accuracy_info
from sousa_engine.analysis.charts.confusion import confusion_figure, confusion_info
from sousa_engine.analysis.compare import Result, changes_from_defaults, describe_targets, results
from sousa_engine.analysis.confusion import class_results, confusion, mistakes
from sousa_engine.core.errors import SousaError
from sousa_engine.core.records import LONGEST_NOTE, Prediction, Run, RunFilter, RunStatus, Sweep
from sousa_engine.runs import orders, prepare
from sousa_engine.runs.executors.local import GRACE_S
from sousa_engine.store import Store, not_resumable
from sousa_engine.web import handover, manage, parts, titles
from sousa_engine.web.components.code_block import code_block
from sousa_engine.web.components.live_chart import live_chart
from sousa_engine.web.layers_view import layers_section
from sousa_engine.workspace import run_files

REFRESH_S = 2
CAUSE_LINES, LOG_LINES = 40, 200
MOST_OFFERED = 200
STOP_STEPS = ("stop requested", "pruned", "keeper", "keeper lost", "checkpoint")  # how the run ended is shown elsewhere


def main() -> None:
    manage.dialogs(after_deletion=lambda run_ids: st.switch_page(parts.page_path("runs")))
    with parts.open_store() as store:
        run_id = st.query_params.get("id", "")
        run = store.runs.get(run_id)
        if run is None:
            choose(store, run_id)
            return
        divergence = store.metrics.first_divergence(run.id)
        predictions = {split: store.runs.predictions(run.id, split) for split in ("test", "valid")}
        of_sweep = store.sweeps.get(run.sweep_id) if run.sweep_id else None
        known_tags = list(store.marks.tags())
        resumable = None if not_resumable(run) else orders.resumable(run, store)
    parts.name_tab(titles.of_run(run))
    header(run, of_sweep, known_tags, resumable)
    cause(run, store, divergence)
    if resumable:
        where = f"This run can be resumed from step {resumable.step:,}, epoch {resumable.epoch}. {resumable.note}"
        st.caption(parts.plain(resumable.why_not or where.strip()))
    if run.stop_requested_at_ms is not None and run.attempts:
        st.fragment(ladder, run_every=None if run.status.is_over else REFRESH_S)(run.id)
    live_chart([run], key=f"chart-{run.id}", names_tab=True)
    st.space("small")
    st.fragment(numbers, run_every=None if run.status.is_over else REFRESH_S)(run)
    st.space("small")
    details(run, predictions)


def choose(store: Store, run_id: str) -> None:
    st.title("Run")
    parts.name_tab(titles.of_page("Run"))
    if run_id:
        st.error(parts.plain(f"No run has the id {run_id!r}. Choose one below."), icon=":material/error:")
    else:
        st.caption("Choose a run to see its curves, results, settings and log.")
    found = store.runs.listing(RunFilter(archived=None), limit=MOST_OFFERED)
    if not found.total:
        st.info("Nothing trained yet.", icon=":material/info:")
        st.page_link(parts.page_path("launch"), label="Launch a run", icon=":material/rocket_launch:")
        return
    if found.total > MOST_OFFERED:
        st.caption(f"Only the {MOST_OFFERED} newest runs are listed here; the Runs page has all {found.total:,}.")
    picked = parts.pick_run(found.rows, key="run_choice")
    if picked:
        st.query_params["id"] = picked.id
        st.rerun()


# Title, badges and actions


def header(run: Run, of_sweep: Sweep | None, known_tags: list[str], resumable: orders.Resumable | None) -> None:
    with st.container(horizontal=True, gap="medium"):
        st.page_link(parts.page_path("runs"), label=":primary[All runs]", icon=":material/arrow_back:", width="content")
        if of_sweep:
            st.page_link(
                parts.page_path("sweeps"),
                label=f":primary[Part of sweep {parts.plain(of_sweep.name)}, trial {run.trial}]",
                icon=":material/grid_view:",
                query_params={"id": of_sweep.id},
                width="content",
            )
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(parts.plain(run.title), anchor=False, width="content")
        with st.container(horizontal=True, width="content", vertical_alignment="center"):
            actions(run, known_tags, resumable)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if run.status.is_over:  # until then the chart shows it, updated every second
            parts.status_badge(run.status)
        parts.weights_badge(run)
        st.badge(run.config.model.variant, icon=":material/account_tree:", color="gray", help="Backbone")
        parts.badge(run.config.dataset_name, icon=":material/library_music:", color="gray", help="Data set")
        st.badge(run.device or run.config.device, icon=":material/memory:", color="gray", help="Device")
        st.badge(f"seed {run.config.seed}", icon=":material/tag:", color="gray", help="Seed")
        for tag in run.tags:
            parts.badge(tag, icon=":material/sell:", color="blue", help="Tag")
        if run.archived_at_ms:
            st.badge("archived", icon=":material/archive:", color="gray", help=parts.when(run.archived_at_ms))
        took = ""
        if run.status.is_over and run.seconds is not None:
            took = f" · took {parts.duration(run.seconds)}"
        st.caption(f"{run.id} · {parts.when(run.created_at_ms)}{took}")
    if run.note:
        st.markdown(parts.plain(run.note).replace("\n", "  \n"))


def actions(run: Run, known_tags: list[str], resumable: orders.Resumable | None) -> None:
    if run.status is RunStatus.QUEUED:
        label = "Remove from queue"
        st.button(label, icon=":material/cancel:", on_click=manage.stop, args=([run.id],), key="stop")
        st.button(
            "Move to front",
            icon=":material/vertical_align_top:",
            on_click=manage.move,
            args=(run.id, 1),
            help="Start this run next.",
            key="front",
        )
    elif not run.status.is_over:
        st.button(
            "Stopping" if run.status is RunStatus.STOPPING else "Stop and save",
            icon=":material/stop_circle:",
            on_click=manage.stop,
            args=([run.id],),
            disabled=run.status is RunStatus.STOPPING,
            help="Saves a checkpoint, then stops. All metrics are kept.",
            key="stop",
        )
        st.button(
            "Stop now",
            icon=":material/dangerous:",
            on_click=manage.ask,
            args=("kill", [run.id]),
            disabled=run.kill_requested_at_ms is not None,
            help="Kills the run now; progress since the last checkpoint is lost.",
            key="kill",
        )
    if resumable:
        st.button(
            "Resume",
            icon=":material/resume:",
            on_click=manage.resume,
            args=(run.id,),
            disabled=bool(resumable.why_not),
            help="Continues from the last checkpoint, as the same run with the same curves.",
            key="resume",
        )
    # The run is part of the key: a late click must not clone the clone.
    pressed = st.button(
        "Clone", icon=":material/replay:", help="Queue another run with these settings.", key=f"clone-{run.id}"
    )
    token = parts.form_token(f"clone {run.id}", pressed)
    if pressed and (made := manage.clone([run.id], token)):
        st.switch_page(parts.page_path("run"), query_params={"id": made[0]})
    if st.button("Edit and launch", icon=":material/tune:", help="Open Launch with these settings.", key="again"):
        handover.leave_draft(run.config)
        st.switch_page(parts.page_path("launch"))
    with st.popover("Edit", icon=":material/edit:", help="Title, tags and note"):
        st.text_input("Title", run.config.name, key=f"name-{run.id}", placeholder=run.title, max_chars=120)
        st.multiselect(
            "Tags",
            sorted({*known_tags, *run.tags}, key=str.casefold),
            list(run.tags),
            key=f"tags-{run.id}",
            accept_new_options=True,
            placeholder="Choose a tag or enter a new one",
        )
        st.text_area("Note", run.note, key=f"note-{run.id}", max_chars=LONGEST_NOTE, height=140)
        st.button("Save", on_click=save, args=(run.id,), key="rename", type="primary")
    if not run.status.is_over:
        return
    if run.archived_at_ms:
        label = "Unarchive"
        st.button(label, icon=":material/unarchive:", on_click=manage.unarchive, args=([run.id],), key="unarchive")
    else:
        st.button(
            "Archive",
            icon=":material/archive:",
            on_click=manage.archive,
            args=([run.id],),
            help="Hidden from lists, not deleted.",
            key="archive",
        )
    st.button("Delete", icon=":material/delete:", on_click=manage.ask, args=("delete", [run.id]), key="delete")


def save(run_id: str) -> None:
    """Save what the fields hold when Save is clicked: they can be newer than the drawn button."""
    manage.edit(run_id, *(st.session_state[f"{field}-{run_id}"] for field in ("name", "tags", "note")))


def cause(run: Run, store: Store, divergence: tuple[str, int] | None) -> None:
    """Why the run failed: the reason, the first NaN or infinite value and the last lines of the log."""
    bad = run.status in (RunStatus.FAILED, RunStatus.LOST)
    if bad:
        st.error(
            parts.plain(run.reason or f"The run is {run.status.value}, but no reason was recorded."),
            icon=":material/error:",
        )
    elif run.status is RunStatus.STOPPED:
        st.info(parts.plain(run.reason or "Stopped."), icon=":material/stop_circle:")
    if divergence and f"step {divergence[1]}" not in (run.reason or ""):
        metric, step = divergence
        st.warning(f"{metric} became NaN or infinite at step {step:,}.", icon=":material/trending_up:")
    if bad:
        lines = log.tail(store.workspace.run_dir(run.id) / run_files.LOG, CAUSE_LINES)
        st.markdown(f"**Last {len(lines)} lines of the log**" if lines else "This run wrote no log.")
        show_lines(lines, key=f"cause-{run.id}")


def ladder(run_id: str) -> None:
    """The steps of stopping this run, each with its time."""
    with parts.open_store() as store:
        run, found = store.runs.get(run_id), store.runs.events(run_id)
    if run is None or run.stop_requested_at_ms is None:
        return
    steps = [event for event in found if event.kind in STOP_STEPS and event.at_ms >= run.stop_requested_at_ms]
    lines = [f"{parts.when(event.at_ms)[11:]} · {parts.plain(event.message)}" for event in steps]
    told_ms = [event.at_ms for event in steps if event.kind == "keeper"]  # the keeper's grace period starts here
    if run.status is RunStatus.STOPPING and run.kill_requested_at_ms is None and len(told_ms) == 1:
        last = parts.when(told_ms[0] + round(1000 * GRACE_S))[11:]
        lines.append(f"{last} · :gray[SIGKILL if it has not stopped by then.]")
    with st.container(border=True, gap="small"):
        st.markdown("**Stop log**" if run.status.is_over else "**Stopping**")
        st.markdown(parts.listed(lines))


# Results with their n


def numbers(drawn: Run) -> None:
    """Refreshed while the run is active; when its status changes, the whole page is redrawn."""
    with parts.open_store() as store:
        run = store.runs.get(drawn.id) or drawn
        (result,) = results([run], store.metrics.summaries([run.id]))
    if run.status is not drawn.status:
        st.rerun()
    data = run.facts.get("data", {})
    cards = st.columns(4)
    with cards[0].container(border=True, height="stretch"):
        st.metric("Best valid accuracy", parts.percent(result.best_valid and result.best_valid.value))
        step = f" · step {result.best_step:,}" if result.best_step else ""
        st.caption(
            parts.interval(result.best_valid) + step if result.best_valid else "Available after the first epoch."
        )
    with cards[1].container(border=True, height="stretch"):
        st.metric("Test accuracy", parts.percent(result.test and result.test.value))
        st.caption(test_caption(run, result, data.get("majority_test")))
    with cards[2].container(border=True, height="stretch"):
        st.metric("Test macro-F1", parts.percent(result.test_macro_f1))
        classes = data.get("classes")
        st.caption(f"Unweighted mean over {classes} classes." if classes else "Unweighted mean over classes.")
    with cards[3].container(border=True, height="stretch"):
        st.metric("Trainable parameters", "–" if result.trainable is None else f"{result.trainable:,}")
        share = (
            f"{100 * result.trainable / result.total:.2f} % of {result.total:,}. "
            if result.trainable and result.total
            else ""
        )
        trains = run.config.lora.summary
        st.caption(f"{share}{trains[0].upper()}{trains[1:]}.")


def test_caption(run: Run, result: Result, majority: float | None) -> str:
    if result.test is None:
        return (
            "Not evaluated: the run did not finish."
            if run.status.is_over
            else "Evaluated once, at the end, with the best checkpoint."
        )
    baseline = f" · majority-class baseline: {parts.percent(majority)}" if majority is not None else ""
    return parts.interval(result.test) + baseline


# Everything else, in tabs


def details(run: Run, predictions: dict[str, tuple[Prediction, ...]]) -> None:
    names = ["Results", "Layers", "Settings", "Log", "Events"]
    alive = not run.status.is_over and run.status is not RunStatus.QUEUED
    first = "Results" if any(predictions.values()) else "Log" if alive else "Settings"
    tabs = st.tabs(names, default=first, key=f"tabs-{run.id}-{first}", on_change="rerun")
    drawers = [
        lambda: draw_results(run, predictions),
        lambda: layers_section(run, refresh_s=REFRESH_S),
        lambda: settings(run),
        lambda: draw_log(run),
        lambda: events(run),
    ]
    for tab, draw in zip(tabs, drawers, strict=True):
        if tab.open:
            with tab:
                draw()


def draw_results(run: Run, predictions: dict[str, tuple[Prediction, ...]]) -> None:
    splits = [split for split, found in predictions.items() if found]
    if not splits:
        st.caption(
            "No predictions were saved." if run.status.is_over else "The confusion matrix appears when the run ends."
        )
        return
    split = st.segmented_control(
        "Split", splits, default=splits[0], required=True, key=f"split-{run.id}", label_visibility="collapsed"
    )
    matrix = confusion(predictions[split])
    st.caption(f"The best checkpoint recognised {matrix.right:,} of {matrix.n:,} {split} clips; errors are red.")
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("**Confusion matrix**")
        st.plotly_chart(confusion_figure(confusion_info(matrix)), key=f"confusion-{split}", alt="Confusion matrix")
    with right:
        st.markdown("**Accuracy per class**")
        figure = class_accuracy_figure(class_accuracy_info(class_results(matrix)))
        st.plotly_chart(figure, key=f"classes-{split}", alt="Accuracy per class with its 95 % interval")
    pairs = mistakes(matrix)
    if pairs:
        st.markdown("**Most frequent errors**")
        table = pd.DataFrame(
            {
                "True class": [pair.label for pair in pairs],
                "Predicted": [pair.predicted for pair in pairs],
                "Clips": [f"{pair.count} of {pair.n}" for pair in pairs],
            }
        )
        st.dataframe(table, hide_index=True, width="content", alt="Most frequent errors")


def settings(run: Run) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Changed from defaults**")
        changed = changes_from_defaults(run.config)
        if changed:
            table = pd.DataFrame([(c.field, *c.values) for c in changed], columns=["Field", "Default", "This run"])
            st.dataframe(table, hide_index=True, alt="Settings that differ from the defaults")
        else:
            st.caption("Nothing: all fields have their defaults.")
        st.markdown("**Environment**")
        st.table(environment(run), border="horizontal", width="content")
    with right:
        st.markdown("**Run this from a terminal**")
        try:
            code_block(prepare.to_command(run.config), key=f"command-{run.id}")
        except SousaError as error:
            st.caption(parts.plain(str(error)))
        st.markdown("**Config**")
        with st.container(height=420, border=False):
            code_block(prepare.to_yaml(run.config), key=f"config-{run.id}")


def environment(run: Run) -> dict[str, str]:
    facts, folder = run.facts, parts.default_workspace().run_dir(run.id)
    data = facts.get("data", {})
    clips = ", ".join(f"{split} {n:,}" for split, n in data.get("clips", {}).items())
    adapter = folder / "adapter"
    rows = {
        "Weights": run.weights_label or parts.weights_text(run),
        "Targets": describe_targets([target.path for target in run.config.lora.targets]),
        "Clips": clips,
        "Device": str(facts.get("device", run.device or "")),
        "Seed": str(run.config.seed),
        "Started": parts.when(run.started_at_ms) if run.started_at_ms else "",
        "Ended": parts.when(run.ended_at_ms) if run.ended_at_ms else "",
        "Training time": parts.duration(facts["train_s"]) if "train_s" in facts else "",
        "Peak memory": f"{facts['peak_memory_mib']:,.0f} MiB" if "peak_memory_mib" in facts else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
        "Adapter": f"`{adapter}`" if adapter.is_dir() else "",
        "Folder": f"`{folder}`",
    }
    return {name: value for name, value in rows.items() if value}


def draw_log(run: Run) -> None:
    st.fragment(log_tail, run_every=None if run.status.is_over else REFRESH_S)(run.id)


def log_tail(run_id: str) -> None:
    lines = log.tail(parts.default_workspace().run_dir(run_id) / run_files.LOG, LOG_LINES)
    if not lines:
        st.caption("The log is still empty.")
        return
    show_lines(lines, key=f"log-{run_id}")
    st.caption(f"The last {len(lines)} lines." if len(lines) == LOG_LINES else f"{len(lines)} lines.")


def show_lines(lines: tuple[str, ...], *, key: str) -> None:
    """A log; a long one is scrolled to its end."""
    if not lines:
        return
    with st.container(height=420 if len(lines) > 18 else "content", border=False, autoscroll=len(lines) > 18):
        code_block("\n".join(lines), key=key)


def events(run: Run) -> None:
    st.fragment(event_table, run_every=None if run.status.is_over else REFRESH_S)(run.id)


def event_table(run_id: str) -> None:
    with parts.open_store() as store:
        found = store.runs.events(run_id)
    table = pd.DataFrame(
        {
            "When": [parts.when(event.at_ms) for event in reversed(found)],
            "Event": [event.kind for event in reversed(found)],
            "Message": [event.message for event in reversed(found)],
        }
    )
    st.dataframe(table, hide_index=True, alt="Events of this run, newest first")


main()
