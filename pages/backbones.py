"""Backbones: look into a network, tick the modules that get LoRA, name the set, launch with it."""

from __future__ import annotations

import re

import streamlit as st

from sousa_engine import backbones, config, grammar, launch, module_tree
from sousa_engine.config import RunConfig
from sousa_engine.errors import ConfigError, TargetError
from sousa_engine.module_tree import Outline, Resolution
from sousa_engine.store import Store
from sousa_engine.web.components.module_tree import choose
from sousa_engine.web.components.module_tree import module_tree as draw_tree
from sousa_engine.workspace import PROJECT_ROOT, default_workspace

HEADS = {"train": "Train fully", "lora": "LoRA", "freeze": "Freeze"}
READY = {  # recommended set -> its button, and the head's policy it comes with (None: as it is)
    "attention": ("Attention", None),
    "attention+mlp": ("Attention + MLP", None),
    "all-linear": ("All linear, head too", "lora"),
}
EXAMPLE = "peft_target_modules:\n- query\n- value"
workspace = default_workspace()
base = RunConfig()


def main() -> None:
    st.title("Backbones")
    variant = pick_variant()
    about(variant)
    bench(variant.name)


def pick_variant() -> backbones.Variant:
    asked = st.query_params.get("variant")
    names = list(backbones.VARIANTS)
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        name = st.selectbox(
            "Backbone", names, index=names.index(base.model.variant), key="variant", bind="query-params"
        )  # fmt: skip
    with right:
        st.caption("Tick the modules that get LoRA. What you tick is a real module of the real network, by full path.")
    if asked and asked not in names:
        st.warning(f"No backbone named {asked!r}; this is {name}. Known: {', '.join(names)}.")
    return backbones.variant(name)


def about(variant: backbones.Variant) -> None:
    """The variant's card: what it is, under which licence, and which weights it would get here."""
    front, state = variant.front_end, backbones.weights_state(variant.name, workspace)
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.subheader(variant.title, anchor=False, width="content")
            if state.available:
                st.badge(f"weights: {state.label}", icon=":material/check:", color="green")
            else:
                st.badge("no pretrained weights here", icon=":material/warning:", color="orange")
        st.markdown(variant.description)
        if not state.available:
            st.caption(state.message)
        longest_s = variant.max_frames * front.hop_ms / 1000
        st.caption(
            f"{variant.parameters:,} parameters with 40 classes  ·  {front.sample_rate_hz / 1000:g} kHz, "
            f"{front.mel_bins} mel bins, clips up to {longest_s:.3g} s  ·  licence {variant.licence}  ·  "
            f"source: {linked(variant.source)}"
        )


def linked(source: str) -> str:
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


@st.fragment
def bench(name: str) -> None:
    """The tree and everything that follows its ticks: one fragment, so that a tick redraws nothing else."""
    outline = module_tree.load_outline(name)
    left, right = st.columns([7, 3], gap="medium")
    with right:
        r, head, classes = adapter_fields(outline)
    with left:
        ticked = draw_tree(outline, start=first_ticks(outline), r=r, head=head, num_classes=classes, height=720)
    with right:
        launch_button(outline, ticked, r=r, head=head, classes=classes)
        sets, paste, yaml = st.tabs(["Saved sets", "Paste a list", "Copy as YAML"])
        with sets:
            saved_sets(outline, ticked, head)
        with paste:
            pasted_list(outline)
        with yaml:
            copy_yaml(outline, ticked, head)


def first_ticks(outline: Outline) -> tuple[str, ...]:
    """What a visitor finds ticked: what Launch holds for this backbone, else the recommended set."""
    held = st.session_state.get("ticks") or {}
    if held.get("variant") == outline.variant:
        return tuple(held["paths"])
    return launch.recommended_sets(outline)[launch.DEFAULT_SET]


def adapter_fields(outline: Outline) -> tuple[int, str, int]:
    """Rank, head's policy and number of classes, with the ready sets below."""
    a, b = st.columns(2)
    with a:
        r = st.number_input(
            "Rank r", min_value=1, max_value=1024, value=base.lora.r, key="bench.r", persist_state="session",
            help=config.field_help("lora.r").capitalize() + ". Adapters grow in proportion.",
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
    st.caption("Ready sets")
    with st.container(horizontal=True, gap="small"):
        for name, paths in launch.recommended_sets(outline).items():
            label, policy = READY.get(name, (name, None))
            st.button(label, key=f"ready {name}", on_click=take, args=(outline, paths, policy))
    return int(r), head or base.lora.head, int(classes)


def take(outline: Outline, paths: tuple[str, ...], head: str | None) -> None:
    choose(outline, paths)
    if head:
        st.session_state["bench.head"] = head


def launch_button(outline: Outline, ticked: tuple[str, ...], *, r: int, head: str, classes: int) -> None:
    counts = module_tree.count(outline, ticked, r=r, head=head, num_classes=classes)
    lora = {"targets": [target.model_dump() for target in outline.targets(ticked)], "r": r, "head": head}
    problems = list(config.problems({"lora": lora}).values())
    if not counts.trainable:
        problems.append("Nothing would train: no module is ticked and the head is frozen.")
    for problem in problems:
        st.error(problem)
    if st.button(
        "Launch with these targets", type="primary", icon=":material/rocket_launch:", width="stretch",
        disabled=bool(problems),
    ):  # fmt: skip
        st.session_state["ticks"] = {
            "variant": outline.variant,
            "paths": list(ticked),
            "head": head,
            "r": r,
            "name": name_of(outline, ticked, head),
        }
        st.switch_page(PROJECT_ROOT / "pages" / "launch.py")
    st.caption(
        f"{counts.layers} modules with LoRA, {counts.trainable:,} trainable of {counts.total:,} parameters "
        f"({counts.percent:.3g} %)."
    )


def name_of(outline: Outline, ticked: tuple[str, ...], head: str) -> str:
    """The name of the saved or recommended set that is exactly this, or ""."""
    with Store.open(workspace) as store:
        saved = store.target_sets(outline.variant)
    for one in saved:
        if set(one.paths) == set(ticked) and one.head == head:
            return one.name
    ready = launch.recommended_sets(outline)
    return next((name for name, paths in ready.items() if set(paths) == set(ticked)), "")


def saved_sets(outline: Outline, ticked: tuple[str, ...], head: str) -> None:
    with Store.open(workspace) as store:
        saved = {one.name: one for one in store.target_sets(outline.variant)}
    with st.form("save set", border=False, clear_on_submit=True, enter_to_submit=True):
        a, b = st.columns([3, 1], vertical_alignment="bottom")
        with a:
            name = st.text_input(
                "Name for what is ticked now", max_chars=80, placeholder="e.g. attention, top 4 layers"
            )
        with b:
            pressed = st.form_submit_button("Save", width="stretch")
    if pressed:
        name = " ".join(name.split())
        if not name:
            st.error("A set needs a name to be found again.")
        else:
            with Store.open(workspace) as store:
                store.save_target_set(name, outline.variant, ticked, head)
            st.toast(f"{'Replaced' if name in saved else 'Saved'} {name!r}: {len(ticked)} modules.")
            st.rerun(scope="fragment")
    if not saved:
        st.caption(f"No set saved for {outline.variant} yet.")
        return
    chosen = st.selectbox(
        "Saved sets", list(saved), key=f"saved set of {outline.variant}",
        format_func=lambda n: f"{n}  ({len(saved[n].paths)} modules, head: {HEADS[saved[n].head].lower()})",
    )  # fmt: skip
    with st.container(horizontal=True):
        one = saved[chosen]
        st.button("Load", icon=":material/download:", on_click=take, args=(outline, one.paths, one.head))
        with st.popover("Delete", icon=":material/delete:"):
            st.write(f"Delete {chosen!r}? Runs that used it keep their own copy.")
            st.button("Delete it", type="primary", on_click=forget, args=(chosen, outline.variant))
    gone = [path for path in one.paths if path not in {node.path for node in outline.nodes}]
    if gone:
        st.warning(f"{len(gone)} of its modules are not in this network any more, e.g. {gone[0]!r}.")


def forget(name: str, variant: str) -> None:
    with Store.open(workspace) as store:
        store.delete_target_set(name, variant)


def pasted_list(outline: Outline) -> None:
    """A list from a config file or a paper, matched entry by entry before anything is ticked."""
    text = st.text_area(
        "Target names: YAML, commas, or a whole `peft_target_modules:` block", key="pasted", height=150,
        placeholder=EXAMPLE, persist_state="session",
    )  # fmt: skip
    if not text.strip():
        st.caption("For example `query, key, value`, `attention.o_proj`, `/layers\\.(10|11)/` or `all-linear`.")
        return
    try:
        resolution = module_tree.resolve(outline, launch.expand_sets(outline, grammar.entries(text)))
    except (ConfigError, TargetError) as error:
        st.error(str(error))
        return
    for match in resolution.matches:
        st.markdown(match_line(outline, match))
    in_head = [path for path in resolution.paths if outline.in_head(path)]
    if in_head:
        st.caption(f"It names the head (`{in_head[0]}`): ticking sets the head's policy to LoRA.")
    old = any(match.via == "old name" for match in resolution.matches)
    with st.container(horizontal=True):
        st.button(
            f"Tick these {len(resolution.paths)} modules", type="primary",
            disabled=bool(resolution.unmatched) or not resolution.paths,
            on_click=take, args=(outline, resolution.paths, "lora" if in_head else None),
        )  # fmt: skip
        if old:
            st.button("Use today's names", on_click=rename, args=(resolution,))
    if resolution.unmatched:
        st.error(f"{len(resolution.unmatched)} of {len(resolution.matches)} entries match nothing: nothing is ticked.")


def match_line(outline: Outline, match: module_tree.EntryMatch) -> str:
    if match.via == "none":
        near = ", ".join(f"`{name}`" for name in match.nearest)
        return f":red[:material/close:] `{match.entry}` matches nothing. {match.note} " + (
            f"Nearest: {near}." if near else ""
        )
    color, icon = ("orange", "history") if match.via == "old name" else ("green", "check")
    what = f"{len(match.paths)} modules" if len(match.paths) > 1 else f"`{match.paths[0]}`"
    return f":{color}[:material/{icon}:] `{match.entry}`: {what}, by {match.via}. {match.note}"


def rename(resolution: Resolution) -> None:
    names: list[str] = []
    for match in resolution.matches:
        names += match.today if match.via == "old name" else (match.entry,)
    st.session_state["pasted"] = "peft_target_modules:\n" + "".join(f"- {name}\n" for name in dict.fromkeys(names))


def copy_yaml(outline: Outline, ticked: tuple[str, ...], head: str) -> None:
    paths = [*ticked, *([outline.head_layer.path] if head == "lora" else [])]
    if not paths:
        st.caption("Nothing is ticked.")
        return
    st.code(module_tree.to_yaml(outline, paths), language="yaml")
    versions = ", ".join(f"{name} {number}" for name, number in outline.versions.items())
    st.caption(
        f"The shortest names that mean exactly these modules, in {versions}."
        + (" The head is in it." if head == "lora" else "")
    )


main()
