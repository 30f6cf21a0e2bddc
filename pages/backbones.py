"""Backbones: look into a network, tick the modules to adapt, save them as a set, launch with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import streamlit as st

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.config import HEAD_TITLES, HeadPolicy, RunConfig
from sousa_engine.core.errors import ConfigError, SousaError, UnknownNameError, UserError
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.core.records import LONGEST_SET_NAME, TargetSet
from sousa_engine.runs import prepare
from sousa_engine.store import Store
from sousa_engine.targets import EntryMatch, Outline, Resolution
from sousa_engine.web import addresses, handover, kept, parts
from sousa_engine.web.components.module_tree import Choice, choose, ticked
from sousa_engine.web.components.module_tree import module_tree as draw_tree
from sousa_engine.web.guard import refuse
from sousa_engine.web.handover import Ticks
from sousa_engine.web.weights_view import weights_section
from sousa_engine.workspace import default_workspace

if __name__ == "backbones":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

PRESETS: dict[str, tuple[str, HeadPolicy]] = {  # recommended set -> its button, and the head policy it sets
    "attention": ("Attention", "train"),
    "attention+mlp": ("Attention + MLP", "train"),
    "se": ("SE", "train"),
    "se+pointwise": ("SE + pointwise", "train"),
    "all-linear": ("All linear + head", "lora"),
}
EXAMPLE = "peft_target_modules:\n- query\n- value"
workspace = default_workspace()
base = RunConfig()
DEFAULT = base.model.variant


def main() -> None:
    st.title("Backbones")
    variant = pick_variant()
    about(variant)
    weights_section(variant, workspace)
    bench(variant.name)


def pick_variant() -> backbones.Variant:
    """The backbone that the address asks for, else the one chosen last; the address then names it, so that it can be
    shared."""
    asked, options = st.query_params.get("variant", ""), list(backbones.VARIANTS)
    wanted = asked if asked and addresses.is_asked(asked) else st.session_state.get("variant", DEFAULT)
    addresses.note(asked)
    try:
        variant = backbones.variant(wanted)
    except UnknownNameError as error:
        variant = backbones.variant(DEFAULT)
        st.warning(parts.plain(f"{error} Showing {variant.name} instead."))
    kept.change("variant", variant.name)
    if st.query_params.get("variant") != variant.name:
        st.query_params["variant"] = variant.name
        addresses.note(variant.name)
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        held = kept.index("variant", variant.name, options)
        st.selectbox(config.field_label("model.variant"), options, **held, on_change=name_in_address)
    with right:
        st.caption("Tick the modules to adapt. Every row is a real module, addressed by its full path.")
    return variant


def name_in_address() -> None:
    st.query_params["variant"] = st.session_state["variant"]


def about(variant: backbones.Variant) -> None:
    """The card of the variant: its description, its licence, and the weights that a run would get here."""
    front, state = variant.front_end, backbones.weights_state(variant.name, workspace)
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.subheader(variant.title, anchor=False, width="content")
            if state.available:
                parts.badge(state.label, icon=":material/check:", color="green")
            else:
                st.badge("pretrained weights not installed", icon=":material/warning:", color="orange")
        st.markdown(variant.description)
        if not state.available:
            st.caption(parts.plain(state.message))
        longest_s = variant.max_frames * front.hop_ms / 1000
        st.caption(
            f"{variant.parameters:,} parameters with 40 classes  ·  {front.sample_rate_hz / 1000:g} kHz, "
            f"{front.mel_bins} mel bins, clips up to {longest_s:.3g} s  ·  licence {variant.licence}  ·  "
            f"source: {linked(variant.source)}"
        )


def linked(source: str) -> str:
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The values of the fields next to the tree. r: the general rank. classes: rows of the new head.

    problems: a sentence for each field that cannot be read; its value is the default then.
    """

    method: Method
    r: int
    head: HeadPolicy
    classes: int
    problems: tuple[str, ...] = ()


@st.fragment
def bench(name: str) -> None:
    """The tree and everything that depends on its ticks: one fragment, so that a tick redraws nothing else."""
    outline = targets.load_outline(name)
    take_over_ticks(outline)
    left, right = st.columns([7, 3], gap="medium")
    with right:
        fields = adapter_fields(outline)
        preset_buttons(outline)
    with left:
        chosen = picked(outline, fields)
    with right:
        with parts.open_store() as store:
            saved = {one.name: one for one in store.target_sets.all(outline.variant)}
        launch_button(outline, chosen, saved, fields)
        sets, paste, yaml = st.tabs(["Saved sets", "Paste a list", "Copy as YAML"])
        with sets:
            save_form(outline, chosen, saved, fields)
            saved_sets(outline, saved)
        with paste:
            pasted_list(outline)
        with yaml:
            copy_yaml(outline, chosen, fields)


def picked(outline: Outline, fields: Fields) -> Choice:
    """Draw the tree; returns what is ticked. Modules that the method cannot adapt are grey."""
    return draw_tree(
        outline, start=targets.recommended_sets(outline)[targets.default_set(outline)], r=fields.r, head=fields.head,
        num_classes=fields.classes, blocked=targets.not_adaptable(outline, fields.method), method=fields.method,
    )  # fmt: skip


def take_over_ticks(outline: Outline) -> None:
    """Tick what another page left for this backbone (the targets of an earlier run, for example), once."""
    ticks = handover.new_ticks("backbones", outline.variant)
    if ticks is None:
        return
    choose(outline, ticks.paths, ticks.ranks)
    st.session_state.update({"bench.head": ticks.head, "bench.r": str(ticks.r)})
    if METHODS[ticks.method].takes_targets:
        st.session_state["bench.method"] = ticks.method


def adapter_fields(outline: Outline) -> Fields:
    """Method, rank, number of classes and head policy."""
    names = [name for name, method in METHODS.items() if method.takes_targets]
    name = st.selectbox(
        config.field_label("lora.method"), names, format_func=lambda n: METHODS[n].title,
        **kept.index("bench.method", names[0], names),
        help="How the ticked modules are adapted. BitFit and full fine-tuning take no targets: choose them on Launch.",
    )  # fmt: skip
    method = METHODS[name]
    st.caption(method.sentence)
    a, b = st.columns(2)
    with a:
        r = st.text_input(
            config.field_label("lora.r"), **kept.value("bench.r", str(base.lora.r)),
            help=f"{config.field_help('lora.r')} Adapter size grows linearly with it. To give one module a separate "
            "rank, edit its row in the tree; 'all like this' then copies the rank to the same module in every layer.",
            disabled="r" not in method.settings,
        )  # fmt: skip
    with b:
        classes = st.text_input(
            "Classes", **kept.value("bench.classes", str(outline.num_classes)),
            help="Number of classes of the new head: 40 for the rudiments.",
        )  # fmt: skip
    head = st.segmented_control(
        config.field_label("lora.head"), list(HEAD_TITLES), format_func=HEAD_TITLES.get,
        **kept.default("bench.head", base.lora.head), required=True, width="stretch",
        help="The new classifier: train it fully, adapt it with rank r, or freeze it at its random start.",
    )  # fmt: skip
    problems, numbers = [], [base.lora.r, outline.num_classes]
    for i, (text, name, least, most) in enumerate(((r, "lora.r", 1, 1024), (classes, "Classes", 2, 100_000))):
        label = config.field_label(name) if "." in name else name
        try:
            numbers[i] = inputs.number(text, label, whole=True, low=least, high=most)
        except ConfigError as error:
            problems.append(str(error))
    return Fields(
        method=method, r=numbers[0], head=head or base.lora.head, classes=numbers[1], problems=tuple(problems)
    )


def preset_buttons(outline: Outline) -> None:
    """A button for each recommended set of this backbone."""
    st.caption("Presets")
    with st.container(horizontal=True, gap="small"):
        for name, paths in targets.recommended_sets(outline).items():
            label, policy = PRESETS.get(name, (name, "train"))
            st.button(label, key=f"preset {name}", on_click=take, args=(outline, paths, policy))


def take(
    outline: Outline, paths: tuple[str, ...], head: HeadPolicy | None, ranks: Mapping[str, int] | None = None
) -> None:
    choose(outline, paths, ranks or {})
    if head:
        st.session_state["bench.head"] = head


def launch_button(outline: Outline, chosen: Choice, saved: Mapping[str, TargetSet], fields: Fields) -> None:
    """The button that opens Launch with the ticks, the problems that disable it, and the count of parameters."""
    counts = targets.count(
        outline, chosen.paths, r=fields.r, head=fields.head, num_classes=fields.classes, ranks=chosen.ranks,
        method=fields.method.name,
    )  # fmt: skip
    lora = {
        "method": fields.method.name, "targets": [target.model_dump() for target in outline.targets(chosen.paths)],
        "rank_pattern": chosen.ranks, "r": fields.r, "head": fields.head,
    }  # fmt: skip
    problems = [*fields.problems, *config.problems({"lora": lora}).values()]
    if not counts.trainable:
        problems.append("Nothing would train: no module is ticked and the head is frozen.")
    for problem in problems:
        st.error(parts.plain(problem))
    narrow = targets.highest_ranks(outline, chosen.paths, chosen.ranks, fields.r)
    if narrow and fields.method.takes_ranks and problems:
        st.button(
            f"Use the highest possible rank for {count_of(len(narrow), 'narrow module')}", width="stretch",
            on_click=give_narrow_ranks, args=(outline, fields.r),
        )  # fmt: skip
    if st.button(
        "Launch with these targets", type="primary", icon=":material/rocket_launch:", width="stretch",
        disabled=bool(problems),
    ):  # fmt: skip
        ticks = Ticks(
            variant=outline.variant, paths=chosen.paths, ranks=chosen.ranks, r=fields.r, head=fields.head,
            method=fields.method.name, name=name_of(outline, chosen.paths, saved, fields.head),
        )  # fmt: skip
        handover.leave_ticks(ticks, seen_by="backbones")
        st.switch_page(parts.page_path("launch"))
    separate = f" {count_of(len(chosen.ranks), 'separate rank')}." if chosen.ranks else ""
    st.caption(
        f"{count_of(counts.layers, 'module')} with {fields.method.title}, {counts.trainable:,} trainable of "
        f"{counts.total:,} parameters ({counts.percent:.3g} %).{separate}"
    )


def count_of(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def give_narrow_ranks(outline: Outline, r: int) -> None:
    chosen = ticked(outline)  # can be newer than the button that was pressed
    narrow = targets.highest_ranks(outline, chosen.paths, chosen.ranks, r)
    choose(outline, chosen.paths, {**chosen.ranks, **narrow})


def name_of(outline: Outline, ticked: tuple[str, ...], saved: Mapping[str, TargetSet], head: HeadPolicy) -> str:
    """The name of the saved or recommended set that holds exactly these modules, or ""."""
    for name, one in saved.items():
        if set(one.paths) == set(ticked) and one.head == head:
            return name
    return targets.set_name(outline, ticked)


def save_form(outline: Outline, chosen: Choice, saved: Mapping[str, TargetSet], fields: Fields) -> None:
    with st.form("save set", border=False, clear_on_submit=True):
        a, b = st.columns([3, 1], vertical_alignment="bottom")
        with a:
            name = st.text_input(
                "Name this selection", max_chars=LONGEST_SET_NAME, placeholder="attention of the top 4",
            )  # fmt: skip
        with b:
            pressed = st.form_submit_button("Save", width="stretch")
    lost = f" It does not keep the {count_of(len(chosen.ranks), 'separate rank')}; Copy as YAML does."
    st.caption(
        "A set keeps the modules and the head. It leaves method and rank open, so that it fits any run."
        + (lost if chosen.ranks else "")
    )
    name = " ".join(name.split())
    if pressed and not name:
        st.error("Enter a name for the set.")
    elif pressed and changed(lambda store: store.target_sets.save(name, outline.variant, chosen.paths, fields.head)):
        done = "Replaced" if name in saved else "Saved"
        st.toast(f"{done} {parts.plain(repr(name))}: {count_of(len(chosen.paths), 'module')}.")
        st.session_state[f"saved set of {outline.variant}"] = name
        st.rerun()


def saved_sets(outline: Outline, saved: Mapping[str, TargetSet]) -> None:
    if not saved:
        st.caption(f"No sets saved for {outline.variant} yet.")
        return
    key = f"saved set of {outline.variant}"
    first = next(iter(saved))
    if st.session_state.get(key, first) not in saved:
        st.session_state[key] = first
    chosen = st.selectbox(
        "Saved sets", list(saved), **kept.index(key, first, list(saved)),
        format_func=lambda n: f"{n} ({count_of(len(saved[n].paths), 'module')}, head: {HEAD_TITLES[saved[n].head]})",
    )  # fmt: skip
    one = saved[chosen]
    with st.container(horizontal=True):
        st.button("Load", icon=":material/download:", on_click=load_saved, args=(outline, key, saved))
        if st.button("Delete", icon=":material/delete:", key="delete_set"):
            st.session_state["set to delete"] = chosen
    if st.session_state.get("set to delete") == chosen:
        delete_set(chosen, outline.variant)
    known = {node.path for node in outline.nodes}
    gone = [path for path in one.paths if path not in known]
    if gone:
        st.warning(f"This network no longer has {count_of(len(gone), 'module')} of this set, e.g. `{gone[0]}`.")


def keep_sets() -> None:
    st.session_state.pop("set to delete", None)


@st.dialog("Delete a target set", icon=":material/delete:", on_dismiss=keep_sets)
def delete_set(name: str, variant: str) -> None:
    st.write(f"Delete {parts.plain(repr(name))}? Runs that used it keep a copy.")
    with st.container(horizontal=True, vertical_alignment="center"):
        sure = parts.danger_button("Delete", icon=":material/delete:", key="delete_set_now")
        cancelled = st.button("Cancel", key="delete_set_not")
    if cancelled or (sure and changed(lambda store: store.target_sets.delete(name, variant))):
        keep_sets()
        st.rerun()


def load_saved(outline: Outline, key: str, saved: Mapping[str, TargetSet]) -> None:
    one = saved[st.session_state[key]]
    take(outline, one.paths, one.head)


def changed(change: Callable[[Store], Any]) -> bool:
    """Write to the store; if that fails, show the reason and return False."""
    try:
        with Store.open(workspace) as store:
            change(store)
    except SousaError as error:
        st.error(parts.plain(str(error)))
        return False
    return True


def pasted_list(outline: Outline) -> None:
    """A list from a config file or a paper, matched entry by entry before anything is ticked."""
    text = st.text_area(
        "Target names, as YAML or with commas", key="pasted", height=150,
        placeholder=EXAMPLE, persist_state="session",
    )  # fmt: skip
    if not text.strip():
        st.caption("For example `query, key, value`, `attention.o_proj`, `/layers\\.(10|11)/` or `all-linear`.")
        return
    sets = targets.recommended_sets(outline)
    try:
        entries, resolution = matched(outline, text)
    except UserError as error:
        st.error(parts.plain(str(error)))
        return
    lines = [
        f":green[:material/check:] `{entry}`: {count_of(len(sets[entry]), 'module')}, a preset."
        for entry in entries
        if entry in sets
    ]
    matches = [match for match in resolution.matches if match.entry in entries]
    with st.container(height=260 if len(lines + matches) > 8 else "content", border=False):
        st.markdown("\n\n".join([*lines, *map(match_line, matches)]))
    in_head = [path for path in resolution.paths if outline.in_head(path)]
    if in_head:
        st.caption(f"The list names the head (`{in_head[0]}`): ticking it sets the head policy to LoRA.")
    if resolution.unmatched:
        st.error(
            f"No match for {len(resolution.unmatched)} of {len(entries)} entries, so the list cannot be ticked yet."
        )
    else:
        said_besides(outline, text, resolution.paths)
    with st.container(horizontal=True):
        st.button(
            tick_label(0 if resolution.unmatched else len(resolution.paths)),
            type="primary",
            disabled=bool(resolution.unmatched) or not resolution.paths,
            on_click=tick_pasted, args=(outline,),
        )  # fmt: skip
        if any(match.today for match in matches):
            st.button("Use current names", on_click=use_current_names, args=(outline,))


def said_besides(outline: Outline, text: str, paths: tuple[str, ...]) -> None:
    """What ticking a pasted list also sets, and which of its settings are not taken over."""
    found = targets.pasted_settings(text)
    try:
        r, ranks, notes = pasted_ranks(outline, found, paths)
    except UserError as error:
        st.warning(parts.plain(f"The ranks of this list are not taken over. {error}"))
        r, ranks, notes = None, {}, []
    sets = [f"rank {r}"] if r else []
    sets += [f"a separate rank for {count_of(len(ranks), 'module')}"] if ranks else []
    if sets:
        st.caption(f"Ticking this list also sets {' and '.join(sets)}.")
    for note in notes:
        st.caption(parts.plain(note))
    if found.others:
        others = ", ".join(f"{name} = {inputs.shown(value)}" for name, value in found.others.items())
        where = "This page sets modules, method, rank and head; Launch has the rest."
        st.caption(parts.plain(f"Not taken over: {others}. {where}"))


def pasted_ranks(
    outline: Outline, found: targets.PastedSettings, paths: tuple[str, ...]
) -> tuple[int | None, dict[str, int], list[str]]:
    """The general rank of a pasted block, its separate ranks by path, and notes on them. Raises UserError."""
    r, ranks, notes = found.r, {}, []
    if r is not None and (wrong := config.problems({"lora": {"r": r}})):
        raise ConfigError(next(iter(wrong.values())))
    if found.ranks:
        ranks, notes = prepare.ranks_of(outline, found.ranks, paths)
        modules = [target.model_dump() for target in outline.targets(ranks)]
        if wrong := config.problems({"lora": {"targets": modules, "rank_pattern": ranks}}):
            raise ConfigError(next(iter(wrong.values())))
    return r, {path: rank for path, rank in ranks.items() if rank != r}, notes


def tick_label(count: int) -> str:
    """The button that ticks a pasted list of `count` modules; 0: not known."""
    return {0: "Tick these modules", 1: "Tick this module"}.get(count, f"Tick these {count} modules")


def matched(outline: Outline, text: str) -> tuple[list[str], Resolution]:
    """The entries of a pasted list, and the modules they match. Raises UserError if it is not a list of names."""
    entries = grammar.entries(text)
    return entries, targets.resolve(outline, targets.expand_sets(outline, entries))


# Both read the field when they are clicked: its text can be newer than the button that was pressed.


def tick_pasted(outline: Outline) -> None:
    with suppress(UserError):  # the page shows the error
        text = st.session_state["pasted"]
        _, resolution = matched(outline, text)
        if not resolution.paths or resolution.unmatched:
            return
        r, ranks = None, {}
        with suppress(UserError):
            r, ranks, _ = pasted_ranks(outline, targets.pasted_settings(text), resolution.paths)
        take(outline, resolution.paths, "lora" if any(map(outline.in_head, resolution.paths)) else None, ranks)
        if r is not None:
            st.session_state["bench.r"] = str(r)


def use_current_names(outline: Outline) -> None:
    with suppress(UserError):
        entries, resolution = matched(outline, st.session_state["pasted"])
        st.session_state["pasted"] = targets.names_yaml(targets.current_names(entries, resolution))


def match_line(match: EntryMatch) -> str:
    """One entry and what it matches, as Markdown."""
    entry = match.entry.replace("`", "'")
    if match.via == "none":
        near = f"Nearest: {', '.join(f'`{name}`' for name in match.nearest)}." if match.nearest else ""
        return f":red[:material/close:] `{entry}` matches nothing. {parts.plain(match.note)} {near}"
    color, icon = ("orange", "history") if match.via == "old name" else ("green", "check")
    what = f"{len(match.paths)} modules" if len(match.paths) > 1 else f"`{match.paths[0]}`"
    how = "" if match.via == "old name" else f", by {match.via}"
    return f":{color}[:material/{icon}:] `{entry}`: {what}{how}. {parts.plain(match.note)}"


def copy_yaml(outline: Outline, chosen: Choice, fields: Fields) -> None:
    paths = [*chosen.paths, *([outline.head_layer.path] if fields.head == "lora" else [])]
    if not paths:
        st.caption("Nothing is ticked.")
        return
    st.code(targets.selection_yaml(outline, paths, chosen.ranks), language="yaml")
    versions = ", ".join(f"{name} {number}" for name, number in outline.versions.items())
    st.caption(
        f"The shortest names that mean exactly these modules, in {versions}."
        + (" The head is included." if fields.head == "lora" else "")
        + (f" All other modules have rank {fields.r}." if chosen.ranks else "")
    )


main()
