"""Backbones: look into a network, tick the modules that get LoRA, name the set, launch with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import streamlit as st

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar
from sousa_engine.core.config import HeadPolicy, RunConfig
from sousa_engine.core.errors import SousaError, UnknownNameError, UserError
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.core.records import LONGEST_SET_NAME, TargetSet
from sousa_engine.store import Store
from sousa_engine.targets import EntryMatch, Outline, Resolution
from sousa_engine.web import parts
from sousa_engine.web.components.module_tree import Choice, choose, ticked
from sousa_engine.web.components.module_tree import module_tree as draw_tree
from sousa_engine.web.weights_view import weights_section
from sousa_engine.workspace import default_workspace

HEADS = {"train": "Train fully", "lora": "LoRA", "freeze": "Freeze"}
READY: dict[str, tuple[str, HeadPolicy]] = {  # recommended set -> its button, and the head's policy it comes with
    "attention": ("Attention", "train"),
    "attention+mlp": ("Attention + MLP", "train"),
    "se": ("SE", "train"),
    "se+pointwise": ("SE + pointwise", "train"),
    "all-linear": ("All linear, head too", "lora"),
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
    """The backbone in the address, else the one looked at last; the address then names it, so it can be passed on."""
    try:
        variant = backbones.variant(st.query_params.get("variant") or st.session_state.get("bench.variant", DEFAULT))
    except UnknownNameError as error:
        variant = backbones.variant(DEFAULT)
        st.warning(parts.plain(f"{error} This is {variant.name}."))
    st.session_state["variant"] = st.session_state["bench.variant"] = variant.name
    if st.query_params.get("variant") != variant.name:
        st.query_params["variant"] = variant.name
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        st.selectbox("Backbone", list(backbones.VARIANTS), key="variant", on_change=name_in_address)
    with right:
        st.caption("Tick the modules that get LoRA. What you tick is a real module of the real network, by full path.")
    return variant


def name_in_address() -> None:
    st.query_params["variant"] = st.session_state["variant"]


def about(variant: backbones.Variant) -> None:
    """The variant's card: what it is, under which licence, and which weights it would get here."""
    front, state = variant.front_end, backbones.weights_state(variant.name, workspace)
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.subheader(variant.title, anchor=False, width="content")
            if state.available:
                parts.badge(state.label, icon=":material/check:", color="green")
            else:
                st.badge("no pretrained weights here", icon=":material/warning:", color="orange")
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
    """What the fields beside the tree say. r: the general rank. classes: rows of the new head."""

    method: Method
    r: int
    head: HeadPolicy
    classes: int


@st.fragment
def bench(name: str) -> None:
    """The tree and everything that follows its ticks: one fragment, so that a tick redraws nothing else."""
    outline = targets.load_outline(name)
    take_over_ticks(outline)
    left, right = st.columns([7, 3], gap="medium")
    with right:
        fields = adapter_fields(outline)
        ready_sets(outline)
    with left:
        chosen = picked(outline, fields)
    with right:
        with parts.open_store() as store:
            saved = {one.name: one for one in store.target_sets(outline.variant)}
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
    """The tree, and what is ticked in it: what the method cannot adapt is grey."""
    method = fields.method
    blocked = {node.path: reason for node in outline.nodes if node.adaptable and (reason := method.reason(node.kind))}
    return draw_tree(
        outline, start=targets.recommended_sets(outline)[targets.default_set(outline)], r=fields.r, head=fields.head,
        num_classes=fields.classes, blocked=blocked, method=method,
    )  # fmt: skip


def take_over_ticks(outline: Outline) -> None:
    """Tick what Launch holds for this backbone (from an earlier run, say), once, whenever that is new."""
    held = st.session_state.get("ticks")
    if not held or held["variant"] != outline.variant or held is st.session_state.get("bench.seen_ticks"):
        return
    st.session_state["bench.seen_ticks"] = held
    choose(outline, held["paths"], held.get("ranks"))
    for field in ("head", "r", "method"):
        if field in held and (field != "method" or METHODS[held[field]].takes_targets):
            st.session_state[f"bench.{field}"] = held[field]


def adapter_fields(outline: Outline) -> Fields:
    """Method, rank, number of classes and the head's policy."""
    names = [name for name, method in METHODS.items() if method.takes_targets]
    name = st.selectbox(
        "Method", names, format_func=lambda n: METHODS[n].title, key="bench.method", persist_state="session",
        help="How the ticked modules are adapted. BitFit and full fine-tuning take no ticks: choose them on Launch.",
    )  # fmt: skip
    method = METHODS[name]
    st.caption(f"{method.help[0].upper()}{method.help[1:]}.")
    a, b = st.columns(2)
    with a:
        r = st.number_input(
            "Rank r", min_value=1, max_value=1024, value=base.lora.r, key="bench.r", persist_state="session",
            help=config.field_help("lora.r").capitalize() + ". Adapters grow in proportion. A single module gets a "
            "rank of its own in its row of the tree; 'all like this' then gives it to the same module in every layer.",
            disabled="r" not in method.settings,
        )  # fmt: skip
    with b:
        classes = st.number_input(
            "Classes", min_value=2, max_value=100_000, value=outline.num_classes, key="bench.classes",
            persist_state="session", help="Rows of the new head. The 40 rudiments, unless your data has others.",
        )  # fmt: skip
    head = st.segmented_control(
        "Head", list(HEADS), default=base.lora.head, format_func=HEADS.get, key="bench.head", required=True,
        persist_state="session", width="stretch",
        help="The classifier is new, so something has to train it: all of it, an adapter of rank r, or nothing.",
    )  # fmt: skip
    return Fields(method=method, r=int(r), head=head or base.lora.head, classes=int(classes))


def ready_sets(outline: Outline) -> None:
    """A button for each set that this family's roles recommend."""
    st.caption("Ready sets")
    with st.container(horizontal=True, gap="small"):
        for name, paths in targets.recommended_sets(outline).items():
            label, policy = READY.get(name, (name, "train"))
            st.button(label, key=f"ready {name}", on_click=take, args=(outline, paths, policy))


def take(outline: Outline, paths: tuple[str, ...], head: HeadPolicy | None) -> None:
    choose(outline, paths)
    if head:
        st.session_state["bench.head"] = head


def launch_button(outline: Outline, chosen: Choice, saved: Mapping[str, TargetSet], fields: Fields) -> None:
    """What the ticks come to, in Python's own count, and the way to Launch if that can be trained."""
    counts = targets.count(
        outline, chosen.paths, r=fields.r, head=fields.head, num_classes=fields.classes, ranks=chosen.ranks,
        method=fields.method.name,
    )  # fmt: skip
    lora = {
        "method": fields.method.name, "targets": [target.model_dump() for target in outline.targets(chosen.paths)],
        "rank_pattern": chosen.ranks, "r": fields.r, "head": fields.head,
    }  # fmt: skip
    problems = list(config.problems({"lora": lora}).values())
    if not counts.trainable:
        problems.append("Nothing would train: no module is ticked and the head is frozen.")
    for problem in problems:
        st.error(parts.plain(problem))
    narrow = narrow_ranks(outline, chosen, fields.r)
    if narrow and fields.method.takes_ranks and problems:
        st.button(
            f"Give {len(narrow)} narrow module{'s' * (len(narrow) > 1)} the highest rank possible", width="stretch",
            on_click=give_narrow_ranks, args=(outline,),
        )  # fmt: skip
    if st.button(
        "Launch with these targets", type="primary", icon=":material/rocket_launch:", width="stretch",
        disabled=bool(problems),
    ):  # fmt: skip
        name = name_of(outline, chosen.paths, saved, fields.head)
        st.session_state["ticks"] = st.session_state["bench.seen_ticks"] = {
            "variant": outline.variant, "paths": list(chosen.paths), "ranks": dict(chosen.ranks),
            "head": fields.head, "r": fields.r, "method": fields.method.name, "name": name,
        }  # fmt: skip
        st.switch_page(parts.page_path("launch"))
    modules = "1 module" if counts.layers == 1 else f"{counts.layers} modules"
    own = {0: "", 1: " 1 has a rank of its own."}.get(
        len(chosen.ranks), f" {len(chosen.ranks)} have a rank of their own."
    )
    st.caption(
        f"{modules} with {fields.method.title}, {counts.trainable:,} trainable of {counts.total:,} parameters "
        f"({counts.percent:.3g} %).{own}"
    )


def narrow_ranks(outline: Outline, chosen: Choice, r: int) -> dict[str, int]:
    """path -> the highest rank possible, of what is ticked and narrower than its rank."""
    widths = {target.path: target.width for target in outline.targets(chosen.paths)}
    return {path: width for path, width in widths.items() if width < chosen.ranks.get(path, r)}


def give_narrow_ranks(outline: Outline) -> None:
    chosen = ticked(outline)  # a tick can be newer than the button that was drawn
    narrow = narrow_ranks(outline, chosen, int(st.session_state["bench.r"]))
    choose(outline, chosen.paths, {**chosen.ranks, **narrow})


def name_of(outline: Outline, ticked: tuple[str, ...], saved: Mapping[str, TargetSet], head: HeadPolicy) -> str:
    """The name of the saved or recommended set that is exactly this, or ""."""
    for name, one in saved.items():
        if set(one.paths) == set(ticked) and one.head == head:
            return name
    ready = targets.recommended_sets(outline)
    return next((name for name, paths in ready.items() if set(paths) == set(ticked)), "")


def save_form(outline: Outline, chosen: Choice, saved: Mapping[str, TargetSet], fields: Fields) -> None:
    with st.form("save set", border=False, clear_on_submit=True):
        a, b = st.columns([3, 1], vertical_alignment="bottom")
        with a:
            name = st.text_input(
                "Name for what is ticked now", max_chars=LONGEST_SET_NAME, placeholder="attention of the top 4",
                help="A set keeps the modules and the head's policy. Ranks are not saved.",
            )  # fmt: skip
        with b:
            pressed = st.form_submit_button("Save", width="stretch")
    name = " ".join(name.split())
    if pressed and not name:
        st.error("A set needs a name to be found again.")
    elif pressed and changed(lambda store: store.save_target_set(name, outline.variant, chosen.paths, fields.head)):
        st.toast(f"{'Replaced' if name in saved else 'Saved'} {parts.plain(repr(name))}: {len(chosen.paths)} modules.")
        st.session_state[f"saved set of {outline.variant}"] = name
        st.rerun()


def saved_sets(outline: Outline, saved: Mapping[str, TargetSet]) -> None:
    if not saved:
        st.caption(f"No set saved for {outline.variant} yet.")
        return
    key = f"saved set of {outline.variant}"
    if parts.say_again(key, "") not in saved:
        st.session_state[key] = next(iter(saved))
    chosen = st.selectbox(
        "Saved sets", list(saved), key=key, persist_state="session",
        format_func=lambda n: f"{n} ({len(saved[n].paths)} modules, head: {HEADS[saved[n].head].lower()})",
    )  # fmt: skip
    one = saved[chosen]
    with st.container(horizontal=True):
        st.button("Load", icon=":material/download:", on_click=load_saved, args=(outline, key, saved))
        with st.popover("Delete", icon=":material/delete:"):
            st.write(f"Delete {parts.plain(repr(chosen))}? Runs that used it keep their own copy.")
            if st.button("Delete it", type="primary") and changed(
                lambda store: store.delete_target_set(chosen, outline.variant)
            ):
                st.rerun()
    known = {node.path for node in outline.nodes}
    gone = [path for path in one.paths if path not in known]
    if gone:
        st.warning(f"{len(gone)} of its modules are not in this network any more, e.g. `{gone[0]}`.")


def load_saved(outline: Outline, key: str, saved: Mapping[str, TargetSet]) -> None:
    one = saved[st.session_state[key]]
    take(outline, one.paths, one.head)


def changed(change: Callable[[Store], Any]) -> bool:
    """Write to the store; False, with the reason shown, if it cannot be written."""
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
    ready = targets.recommended_sets(outline)
    try:
        entries, resolution = matched(outline, text)
    except UserError as error:
        st.error(parts.plain(str(error)))
        return
    lines = [f":green[:material/check:] `{e}`: {len(ready[e])} modules, a ready set." for e in entries if e in ready]
    matches = [match for match in resolution.matches if match.entry in entries]
    with st.container(height=260 if len(lines + matches) > 8 else "content", border=False):
        st.markdown("\n\n".join([*lines, *map(match_line, matches)]))
    in_head = [path for path in resolution.paths if outline.in_head(path)]
    if in_head:
        st.caption(f"It names the head (`{in_head[0]}`): ticking sets the head's policy to LoRA.")
    if re.search(r"^\s*rank_pattern:", text, re.MULTILINE):
        st.caption("Its ranks are not taken over: ticked modules begin with the general rank.")
    if resolution.unmatched:
        st.error(f"{len(resolution.unmatched)} of {len(entries)} entries match nothing, so none is ticked.")
    with st.container(horizontal=True):
        st.button(
            f"Tick these {len(resolution.paths)} modules" if not resolution.unmatched else "Tick these modules",
            type="primary",
            disabled=bool(resolution.unmatched) or not resolution.paths,
            on_click=tick_pasted, args=(outline,),
        )  # fmt: skip
        if any(match.today for match in matches):
            st.button("Use today's names", on_click=use_todays_names, args=(outline,))


def matched(outline: Outline, text: str) -> tuple[list[str], Resolution]:
    """(its entries, what they mean here). Raises UserError for what is no list of names."""
    entries = grammar.entries(text)
    return entries, targets.resolve(outline, targets.expand_sets(outline, entries))


# Both work on the field as it is when they are clicked: its text can be newer than the button that was drawn.


def tick_pasted(outline: Outline) -> None:
    with suppress(UserError):  # the page says what is wrong with it
        _, resolution = matched(outline, st.session_state["pasted"])
        if resolution.paths and not resolution.unmatched:
            take(outline, resolution.paths, "lora" if any(map(outline.in_head, resolution.paths)) else None)


def use_todays_names(outline: Outline) -> None:
    with suppress(UserError):
        entries, resolution = matched(outline, st.session_state["pasted"])
        found = {match.entry: match for match in resolution.matches}
        names: list[str] = []
        for entry in entries:
            match = found.get(entry)
            if match is None or match.via != "old name":
                names.append(entry)
            if match is not None:
                names += match.today
        st.session_state["pasted"] = "peft_target_modules:\n" + "".join(f"- {name}\n" for name in dict.fromkeys(names))


def match_line(match: EntryMatch) -> str:
    """One entry and what it matches, for a list of them."""
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
    ranks = "".join(f"  {path}: {rank}\n" for path, rank in chosen.ranks.items())
    st.code(targets.to_yaml(outline, paths) + (f"rank_pattern:\n{ranks}" if ranks else ""), language="yaml")
    versions = ", ".join(f"{name} {number}" for name, number in outline.versions.items())
    st.caption(
        f"The shortest names that mean exactly these modules, in {versions}."
        + (" The head is in it." if fields.head == "lora" else "")
        + (f" All other modules have rank {fields.r}." if ranks else "")
    )


main()
