"""The form "New sweep" of the page Sweeps: what to vary, the search strategy, shared settings; next to it, a preview.
The session holds everything that was typed, so that it is still there after a visit to another page."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sousa_engine import backbones, targets
from sousa_engine.backbones.shelf import size_text
from sousa_engine.core import config, grammar, inputs, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, SousaError, UnknownNameError, UserError
from sousa_engine.core.records import TargetSet
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.data import synth
from sousa_engine.runs import sweep_orders, sweep_plan, sweep_words, timing
from sousa_engine.runs.problems import NO_DATASET
from sousa_engine.targets import Outline
from sousa_engine.web import drafts, fields, handover, kept, parts
from sousa_engine.web.fields import OWN_DATA
from sousa_engine.workspace import Workspace, default_workspace, intake

HEAD_ALONE = "none: the head alone"
SHARED = ("data.dataset", "training.max_epochs", "training.batch_size", "training.lr")  # shared fields with a widget
NO_ROW = (  # they have a widget above the axes, or cannot be an axis
    "model",
    "model.variant",
    "lora.targets",
    "lora.target_set",
    "lora.rank_pattern",
)
USUAL_FIELDS = ("training.lr", "lora.r", "lora.method", "training.max_epochs", "augment")
EACH_DEFAULT = "default of each backbone"
REFRESH_S = 1
PLACES = {  # widgets of shared fields -> their fields
    "data": "data.dataset", "data.own": "data.dataset", "epochs": "training.max_epochs", "lr": "training.lr",
    "batch_size": "training.batch_size",
}  # fmt: skip
base = RunConfig()  # pyright: ignore[reportCallIssue]


@dataclass(kw_only=True)
class Asked:
    """The content of the form. values: as sweep_spec.build takes them. Places: names of widgets, for their errors."""

    values: dict[str, Any] = field(default_factory=dict)
    axes: list[str] = field(default_factory=list)  # the place of each axis, in the order of values["axes"]
    problems: dict[str, str] = field(default_factory=dict)  # place -> sentence
    slots: dict[str, Any] = field(default_factory=dict)  # place -> the space below its widget

    def add_axis(self, place: str, what: Mapping[str, Any]) -> None:
        self.values["axes"].append(dict(what))
        self.axes.append(place)


def first_values() -> dict[str, Any]:
    """What the form holds at first: name of a widget -> its value. sets and axes have no widget."""
    return {
        "name": "",
        "models": [name for name in backbones.VARIANTS if backbones.VARIANTS[name].embedded],
        "targets": ["default"],
        "sets": {},
        "sampler": "grid",
        "trials": "12",
        "sampler_seed": "0",
        "seeds": "0 1 2",
        "data": base.data.dataset,
        "data.own": "",
        "epochs": str(base.training.max_epochs),
        "batch_size": "",
        "lr": "",
        "lines": "",
        "axes": [],
    }


def new_sweep() -> None:
    """Draw the form and its preview; the Start button leads to the page of the new sweep."""
    if st.session_state.pop("sweep.started", False):  # the draft is a sweep now
        drafts.end_visit("sweeps")
        take({})
    if found := drafts.asked("sweeps"):
        take(*found)
    take_over_draft()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("New sweep", anchor=False, width="content")
        st.button(
            "Reset", icon=":material/restart_alt:", on_click=take, args=({},), disabled=not form_draft(),
            key="sweep.reset", help="Set all fields to their defaults.",
        )  # fmt: skip
    drafts.say(st.session_state.get("sweep.said", ()))
    left, right = st.columns([3, 2], gap="large")
    with left:
        asked = form()
    drafts.keep("sweeps", form_draft())
    spec = built(asked)
    for place, said in asked.problems.items():
        if place in asked.slots:
            asked.slots[place].error(parts.plain(said))
    with right:
        preview(asked, spec)


def form_draft() -> dict[str, Any]:
    """What the form holds and `first_values` does not, with the widgets of each axis."""
    state = st.session_state
    found = {
        name: state[f"sweep.{name}"]
        for name, usual in first_values().items()
        if f"sweep.{name}" in state and state[f"sweep.{name}"] != usual
    }
    for number in state.get("sweep.axes", ()):
        name = state.get(f"sweep.axis.{number}")
        rows = [f"axis.{number}", *(f"axis.{number}.{name}{end}" for end in ("", ".as", ".low", ".high", ".log"))]
        found |= {row: state[f"sweep.{row}"] for row in rows if f"sweep.{row}" in state}
    return found


def take(found: Mapping[str, Any], error: str = "") -> None:
    """Fill the form with a draft, as `form_draft` makes it; everything else gets its first value. It comes from an
    address: values that do not fit are left out, and named on the page."""
    said = [error] if error else []
    usual = first_values()

    checks = {
        "models": lambda value: drafts.is_texts(value) and all(map(is_backbone, value)),
        "targets": drafts.is_texts,
        "sets": lambda value: isinstance(value, dict) and all(map(drafts.is_texts, value.values())),
        "sampler": lambda value: drafts.fits(value, "", sweep_spec.SAMPLERS),
        "data": lambda value: drafts.fits(value, "", fields.DATASET_CHOICES),
        "axes": lambda value: isinstance(value, list) and len(value) <= len(offered_fields()),
    }
    state = {}
    for name, first in usual.items():
        state[name] = found.get(name, first)
        if not checks.get(name, drafts.is_text)(state[name]):
            said.append(drafts.left_out(title_of(PLACES.get(name, name)), state[name]))
            state[name] = first
    wanted, state["axes"], rows = state["axes"], [], {}
    for number in dict.fromkeys(number for number in wanted if type(number) is int and 0 <= number < 10_000):
        row, bad = axis_of_draft(number, found)
        said += bad
        if row:
            state["axes"].append(number)
            rows |= row
    st.session_state.update({f"sweep.{name}": value for name, value in (state | rows).items()})
    st.session_state["sweep.axis_count"] = max(state["axes"], default=-1)
    st.session_state["sweep.said"] = said


def axis_of_draft(number: int, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the widgets of one axis of a draft, sentences about what does not fit)."""
    name = found.get(f"axis.{number}")
    if not drafts.fits(name, "", offered_fields()):
        return {}, [drafts.left_out("Field", name)]
    at, offered = f"axis.{number}.{name}", choices(str(name))
    checks = {
        "": drafts.is_text if offered is None else lambda value: drafts.is_texts(value) and set(value) <= {*offered},
        ".as": lambda value: value in ("values", "range"),
        ".low": drafts.is_text,
        ".high": drafts.is_text,
        ".log": lambda value: isinstance(value, bool),
    }
    row, said = {f"axis.{number}": name}, []
    for end, is_good in checks.items():
        if at + end not in found:
            continue
        value = found[at + end]
        if is_good(value) or (name == "data.dataset" and not end and drafts.is_texts(value)):
            row[at + end] = value
        else:
            said.append(drafts.left_out(axis_title(str(name)), value))
    return row, said


def take_over_draft() -> None:
    """Fill the form from a sweep that another page left."""
    draft = handover.take_sweep_draft()
    if draft is None:
        return
    spec = draft.spec
    rest = copy.deepcopy(spec.base)
    own = {name: rest.get(part, {}).pop(leaf, None) for name in SHARED for part, _, leaf in [name.partition(".")]}
    dataset = own["data.dataset"] or base.data.dataset
    choice = fields.dataset_choice(dataset)
    state: dict[str, Any] = {
        "name": spec.name,
        "models": [],
        "targets": [],
        "sets": {name: list(entries) for name, entries in spec.sets.items()},
        "sampler": spec.sampler,
        "trials": str(spec.trials or 12),
        "sampler_seed": str(spec.sampler_seed),
        "seeds": " ".join(map(str, spec.seeds)),
        "data": choice,
        "data.own": dataset if choice == OWN_DATA else "",
        "epochs": inputs.number_text(own["training.max_epochs"] or base.training.max_epochs),
        "batch_size": inputs.number_text(own["training.batch_size"]),
        "lr": inputs.number_text(own["training.lr"]),
        "lines": "\n".join(grammar.words(rest)),
        "axes": [],
    }
    for axis in spec.axes:
        if axis.field == "model":
            state["models"] = [str(value) for value in axis.values]
        elif axis.field == "lora.targets":
            state["targets"] = [sweep_spec.show(value) if value else HEAD_ALONE for value in axis.values]
        else:
            state |= row_state(len(state["axes"]), axis)
            state["axes"].append(len(state["axes"]))
    st.session_state.update({f"sweep.{name}": value for name, value in state.items()})
    st.session_state["sweep.said"] = ()


def row_state(number: int, axis: sweep_spec.Axis) -> dict[str, Any]:
    """The widget values that describe `axis`."""
    key = f"axis.{number}.{axis.field}"
    found: dict[str, Any] = {f"axis.{number}": axis.field}
    if axis.is_range:
        low, high = map(inputs.number_text, axis.ends)
        return found | {f"{key}.as": "range", f"{key}.low": low, f"{key}.high": high, f"{key}.log": axis.log}
    if choices(axis.field) is not None:
        return found | {key: [str(value) for value in axis.values]}
    return found | {f"{key}.as": "values", key: ", ".join(sweep_spec.item_text(value) for value in axis.values)}


# The fields


def form() -> Asked:
    asked = Asked(values={"axes": []})
    st.subheader("What to vary", anchor=False)
    models = backbones_field(asked)
    targets_field(asked, models)
    sampler = st.session_state.get("sweep.sampler", "grid")  # its widget is below, and the axes depend on it
    for number in st.session_state.setdefault("sweep.axes", []):
        axis_row(asked, number, sampled=sampler != "grid")
    st.button("Add an axis", icon=":material/add:", on_click=add_axis, key="sweep.add_axis")

    st.subheader("Search strategy", anchor=False)
    sampler_fields(asked)

    st.subheader("Shared settings", anchor=False)
    base_fields(asked)
    st.text_input(
        config.field_label("name"),
        **kept.value("sweep.name", ""),
        max_chars=120,
        placeholder="automatic: the axes",
        help="Shown in lists.",
    )
    asked.values["name"] = st.session_state["sweep.name"]
    return asked


def backbones_field(asked: Asked) -> list[str]:
    minis_first = sorted(backbones.VARIANTS, key=lambda name: not backbones.VARIANTS[name].embedded)
    held = kept.default("sweep.models", [name for name in minis_first if backbones.VARIANTS[name].embedded])
    models = st.multiselect(
        "Backbones", [*minis_first, *(name for name in held["default"] if name not in minis_first)], **held,
        placeholder="one for all runs: model.variant, below",
        help="Each backbone is trained with every target set. The mini backbones include their weights; the preview "
        "says if the weights of others are missing.",
    )  # fmt: skip
    asked.slots["models"] = st.empty()
    if models:
        asked.add_axis("models", {"field": "model", "values": models})
    return models


def targets_field(asked: Asked, models: Sequence[str]) -> None:
    with parts.open_store() as store:
        saved = store.target_sets.all()
    outlines = [targets.load_outline(backbones.variant(name).name) for name in models if is_backbone(name)]
    outlines = outlines or [targets.load_outline(base.model.variant)]
    sets: dict[str, list[str]] = st.session_state.setdefault("sweep.sets", {})
    offered = {**{name: name for name in sets}, **target_options(outlines, saved)}
    held = kept.default("sweep.targets", ["default"])
    chosen = st.multiselect(
        "Target sets", [*offered, *(text for text in held["default"] if text not in offered)], **held,
        accept_new_options=True, placeholder=EACH_DEFAULT,
        help="The modules that are adapted. core: attention, or squeeze-excitation if the backbone has no attention; "
        "default: the set that a run uses if none is given. You can also type names, such as q_proj,v_proj. Tick and "
        "save your own sets on the page Backbones.",
    )  # fmt: skip
    asked.slots["targets"] = st.empty()
    with st.popover(
        "Target-set ablation", icon=":material/content_cut:", help="Find out which parts of a target set matter."
    ):
        ablation_fields(models[0] if models else base.model.variant, saved)
    if not chosen:
        return
    asked.values["sets"] = {text: sets[text] for text in chosen if text in sets}
    named = {label_of(one): list(one.paths) for one in saved} | offered
    try:
        values = [named[text] if text in named else grammar.entry_or_list(text) for text in chosen]
    except ConfigError as error:
        asked.problems["targets"] = str(error)
        return
    asked.add_axis("targets", {"field": "targets", "values": values})


def ablation_fields(model: str, saved: Sequence[TargetSet]) -> None:
    """A backbone, one of its sets, the variants an ablation trains, and a button that fills the form with them."""
    st.caption(
        "Trains one target set of one backbone in several variants: complete, without each role, each role alone, and "
        "half of the layers, with three seeds each. Filling in replaces backbones, target sets, seeds and other axes; "
        "nothing starts yet."
    )
    names = list(backbones.VARIANTS)
    first = backbones.variant(model).name if is_backbone(model) else base.model.variant
    variant = st.selectbox(
        config.field_label("model.variant"), names, index=names.index(first), key=f"sweep.ablate.of.{first}"
    )
    outline = targets.load_outline(variant)
    own = {label_of(one): list(one.paths) for one in saved if one.variant == variant}
    sets = {**{name: [name] for name in targets.named_sets(outline)}, **own}
    name = st.selectbox(config.field_label("lora.target_set"), list(sets), key=f"sweep.ablate.set.{variant}")
    try:
        made = sweep_plan.ablation(variant, sets[name])
    except UserError as error:
        st.caption(parts.plain(str(error)))
        return
    st.caption(parts.plain(f"{len(made)} sets: {', '.join(made)}."))
    st.button(
        f"Fill in {len(made)} target sets", key="sweep.ablate", type="primary", on_click=fill_in_ablation,
        args=(variant, name, made),
    )  # fmt: skip


def fill_in_ablation(variant: str, name: str, sets: Mapping[str, Sequence[str]]) -> None:
    """Fill the form with an ablation; shared settings keep their values."""
    state: dict[str, Any] = {
        "name": f"ablation of {name}, {variant}"[:120],
        "models": [variant],
        "targets": list(sets),
        "sets": {label: list(entries) for label, entries in sets.items()},
        "sampler": "grid",
        "seeds": "0 1 2",
        "axes": [],
    }
    st.session_state.update({f"sweep.{key}": value for key, value in state.items()})


def is_backbone(name: str) -> bool:
    try:
        return bool(backbones.variant(name))
    except UnknownNameError:
        return False


def target_options(outlines: Sequence[Outline], saved: Sequence[TargetSet]) -> dict[str, str | list[str]]:
    """Label -> value of the axis: the usual sets, recommended sets of any backbone, saved sets that fit all of them."""
    names = dict.fromkeys([*targets.USUAL_SETS, *(name for one in outlines for name in targets.recommended_sets(one))])
    found: dict[str, str | list[str]] = {name: name for name in names}
    found[HEAD_ALONE] = []
    for one in saved:
        if all(targets.has_all(outline, one.paths) for outline in outlines):
            found[label_of(one)] = targets.shared_names(outlines, one.paths)
    return found


def label_of(saved: TargetSet) -> str:
    return f"saved: {saved.name} ({saved.variant})"


def axis_row(asked: Asked, number: int, *, sampled: bool) -> None:
    """One more axis: its field, then its values or (if settings are sampled) its range."""
    place = f"axis {number}"
    with st.container(border=True, gap="small"):
        a, b, c = st.columns([4, 3, 2], vertical_alignment="bottom")
        with a:
            name = st.selectbox(
                "Field", offered_fields(), format_func=axis_title,
                **kept.index(f"sweep.axis.{number}", unused_field(), offered_fields()),
            )  # fmt: skip
        is_range = False
        if sampled and sweep_spec.Axis(field=name, values=(0,)).is_number:
            with b:
                held = kept.default(f"sweep.axis.{number}.{name}.as", "range")
                is_range = st.segmented_control("Sampled from", ["values", "range"], **held, required=True) == "range"
        with c:
            st.button(
                "Remove", icon=":material/delete:", key=f"sweep.remove.{number}", type="tertiary",
                help="Remove this axis", on_click=remove_axis, args=(number,),
            )  # fmt: skip
        typed = range_widgets(number, name) if is_range else value_widgets(number, name)
        if name in grammar.PRESET_GROUPS:
            st.caption(f"Presets of {name}: each name sets several fields.")
        else:
            st.caption(config.field_help(name))
        asked.slots[place] = st.empty()
    try:
        asked.add_axis(place, {"field": name, **axis_of(name, typed)})
    except ConfigError as error:
        asked.problems[place] = str(error)


def offered_fields() -> list[str]:
    return [name for name in sweep_spec.axis_fields() if name not in NO_ROW]


def axis_title(name: str) -> str:
    """`Learning rate · training.lr`; a group of presets is its name."""
    label = fields.title_of(name)
    return name if label == name else f"{label} · {name}"


def unused_field() -> str:
    """The field that a new row starts with."""
    held = {st.session_state.get(f"sweep.axis.{number}") for number in st.session_state["sweep.axes"]}
    return next(name for name in (*USUAL_FIELDS, *offered_fields()) if name not in held)


def value_widgets(number: int, name: str) -> list[str] | str:
    """The chosen values, or the typed text."""
    key, offered = f"sweep.axis.{number}.{name}", choices(name)
    if offered is None:
        return st.text_input("Values", **kept.value(key, ""), placeholder="1e-3, 5e-3")
    held = kept.default(key, [])
    return st.multiselect(
        "Values", [*offered, *(value for value in held["default"] if value not in offered)], **held,
        accept_new_options=name == "data.dataset",
    )  # fmt: skip


def range_widgets(number: int, name: str) -> dict[str, Any]:
    """Both ends as text, and whether the scale is logarithmic."""
    key = f"sweep.axis.{number}.{name}"
    a, b, c = st.columns([2, 2, 2], vertical_alignment="bottom")
    low = a.text_input("Low", **kept.value(f"{key}.low", ""), placeholder="1e-4")
    high = b.text_input("High", **kept.value(f"{key}.high", ""), placeholder="1e-2")
    log = c.checkbox(
        "Log scale",
        **kept.value(f"{key}.log", name.endswith("lr")),
        help="Every power of ten is equally likely.",
    )
    return {"low": low, "high": high, "log": log}


def axis_of(name: str, typed: Any) -> dict[str, Any]:
    """The content of an axis's widgets, as sweep_spec.Axis takes it. Raises ConfigError."""
    if isinstance(typed, Mapping):
        if not (typed["low"].strip() and typed["high"].strip()):
            raise ConfigError(f"Enter both ends of the range for {fields.title_of(name)}, such as 1e-4 and 1e-2.")
        low, high = (inputs.number(typed[end], end.capitalize()) for end in ("low", "high"))
        return {"low": low, "high": high, "log": typed["log"]}
    if not typed or (isinstance(typed, str) and not typed.strip()):
        how = ", separated by commas" if isinstance(typed, str) else ""
        raise ConfigError(f"Enter values for {fields.title_of(name)}{how}.")
    if isinstance(typed, str):
        try:
            _, found = sweep_spec.parse_axis(f"{name}={typed}")
        except ConfigError as error:
            is_field = name not in grammar.PRESET_GROUPS
            raise ConfigError(config.with_label(name, str(error)) if is_field else str(error)) from None
        return found if isinstance(found, dict) else {"values": found}
    return {"values": list(typed)}


def choices(name: str) -> list[str] | None:
    """The values of a field that is chosen from a list; None where they are typed."""
    if name in grammar.PRESET_GROUPS:
        return list(grammar.presets(name))
    if name == "data.dataset":
        return list(synth.PRESETS)
    return list(config.field_options(name)) or None


def add_axis() -> None:
    numbers = st.session_state.get("sweep.axes", [])
    new = st.session_state["sweep.axis_count"] = max([*numbers, st.session_state.get("sweep.axis_count", -1)]) + 1
    st.session_state["sweep.axes"] = [*numbers, new]


def remove_axis(number: int) -> None:
    st.session_state["sweep.axes"] = [other for other in st.session_state["sweep.axes"] if other != number]


def sampler_fields(asked: Asked) -> None:
    a, b, c = st.columns([5, 2, 2], vertical_alignment="bottom")
    with a:
        sampler = st.segmented_control(
            "Sampler", list(sweep_spec.SAMPLERS), **kept.default("sweep.sampler", "grid"), required=True
        )
    asked.values["sampler"] = sampler
    if sampler != "grid":
        with b:
            trials = st.text_input("Trials", **kept.value("sweep.trials", "12"), help="How many settings are sampled.")
        with c:
            seed = st.text_input(
                "Sampler seed", **kept.value("sweep.sampler_seed", "0"),
                help="The same seed samples the same settings.",
            )  # fmt: skip
        asked.slots["trials"], asked.slots["sampler_seed"] = st.empty(), st.empty()
        for place, label, text, low, high in (
            ("trials", "Trials", trials, 1, sweep_spec.MOST_RUNS),
            ("sampler_seed", "Sampler seed", seed, 0, None),
        ):
            try:
                asked.values[place] = inputs.number(text, label, whole=True, low=low, high=high)
            except ConfigError as error:
                asked.problems[place] = str(error)
    st.caption(f"{sampler}: {sweep_spec.SAMPLERS[sampler]}.")
    typed = st.text_input(
        "Seeds", **kept.value("sweep.seeds", "0 1 2"), help="Each setting is trained once per seed.",
    )  # fmt: skip
    asked.slots["seeds"] = st.empty()
    try:
        asked.values["seeds"] = sweep_spec.parse_seeds(typed)
    except ConfigError as error:
        asked.problems["seeds"] = str(error)


def base_fields(asked: Asked) -> None:
    """The fields that all runs share; those that are an axis are disabled."""
    axes = {axis["field"] for axis in asked.values["axes"]}
    made: dict[str, Any] = {}
    a, b = st.columns(2, vertical_alignment="bottom")
    with a:
        chosen = st.selectbox(
            config.field_label("data.dataset"), fields.DATASET_CHOICES,
            **kept.index("sweep.data", base.data.dataset, fields.DATASET_CHOICES),
            help=help_of("data.dataset", axes), disabled="data.dataset" in axes,
            format_func=fields.dataset_title,
        )  # fmt: skip
    with b:
        if chosen == OWN_DATA:
            chosen = st.text_input(
                fields.PATH_LABEL, **kept.value("sweep.data.own", ""), placeholder=fields.PATH_EXAMPLE,
                disabled="data.dataset" in axes,
            ).strip()  # fmt: skip
    asked.slots["data.dataset"] = st.empty()
    if not chosen and "data.dataset" not in axes:
        asked.problems["data.dataset"] = NO_DATASET
    a, b, c = st.columns(3)
    if "data.dataset" not in axes:
        grammar.set_field(made, "data.dataset", chosen)
    with a:
        epochs = str(base.training.max_epochs)
        shared_number(asked, made, axes, "training.max_epochs", kept.value("sweep.epochs", epochs))
    with b:
        held = kept.value("sweep.batch_size", "")
        shared_number(asked, made, axes, "training.batch_size", held, default=EACH_DEFAULT)
    with c:
        shared_number(asked, made, axes, "training.lr", kept.value("sweep.lr", ""), default=EACH_DEFAULT)
    typed = st.text_area(
        "More fields, one per line", **kept.value("sweep.lines", ""), placeholder="lora.r=4\naugment=none", height=90,
        help="As on the command line: field=value or group=preset.",
    )  # fmt: skip
    asked.slots["lines"] = st.empty()
    try:
        grammar.merge(made, more_fields(typed))
    except UserError as error:
        asked.problems["lines"] = str(error)
    asked.values["base"] = made


def shared_number(
    asked: Asked,
    made: grammar.Draft,
    axes: Collection[str],
    name: str,
    held: Mapping[str, Any],
    *,
    default: str = "",
) -> None:
    """A number that all runs share, put into `made`; left empty, it is `default` (in words) if there is one."""
    text = st.text_input(
        config.field_label(name), **held, placeholder=default, help=help_of(name, axes), disabled=name in axes,
    )  # fmt: skip
    asked.slots[name] = st.empty()
    if name in axes or (default and not text.strip()):
        return
    try:
        grammar.set_field(made, name, config.read(name, text))
    except ConfigError as error:
        asked.problems[name] = str(error)


def help_of(name: str, axes: Collection[str]) -> str:
    return "This field is an axis now." if name in axes else config.field_help(name)


def more_fields(text: str) -> grammar.Draft:
    """Lines of field=value as a draft. Raises UserError, also for a field that has a separate widget."""
    found = grammar.parse(line.strip() for line in text.splitlines() if line.strip())
    for name in SHARED:
        part, _, leaf = name.partition(".")
        if leaf in found.get(part, {}):
            raise ConfigError(f"{name} has a separate field above: {config.field_label(name)}. Set it there.")
    return found


# The preview


def built(asked: Asked) -> SweepSpec | None:
    """The sweep; or None, with at least one problem recorded at the place where it comes from."""
    if asked.problems:
        return None
    if not asked.axes:
        asked.problems["models"] = "A sweep needs something to vary: choose backbones or target sets, or add an axis."
        return None
    try:
        return sweep_spec.build(asked.values)
    except ConfigError as error:
        parts_of_field = (error.field or "").split(".")
        place = parts_of_field[0]
        if place == "axes" and len(parts_of_field) > 1:
            place = asked.axes[int(parts_of_field[1])]
        asked.problems[place] = str(error)
        return None


@st.cache_data(ttl=60, max_entries=50, show_spinner="Checking every setting ...")
def look(spec: str, workspace_root: str, paces: int) -> sweep_plan.Plan:
    """The plan of a sweep given as JSON, without its runs; cached briefly, because each keystroke reruns the page.

    paces: how many kinds of run have been timed so far. One more may make the total time known.
    """
    found = sweep_plan.plan(SweepSpec.model_validate_json(spec), Workspace(root=Path(workspace_root)))
    return replace(found, runs=())


def preview(asked: Asked, spec: SweepSpec | None) -> None:
    """A preview of the sweep. The Start button names the fields to fix."""
    top = st.container()
    if spec is None:
        for place, said in asked.problems.items():
            if place not in asked.slots:
                st.error(parts.plain(said), icon=":material/error:")
        with top:
            start_button(fields.start_label([title_of(place) for place in asked.problems], ""))
        return
    try:
        found = look(spec.model_dump_json(), str(default_workspace().root), len(timing.known(default_workspace())))
    except UserError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        with top:
            start_button("Fix to start: the settings")
        return
    numbers(spec, found)
    leave_out = problems(spec, found)
    with top:
        ready = not found.problems or leave_out
        label = f"Start {found.run_count:,} {'run' if found.run_count == 1 else 'runs'}"
        pressed = start_button(label if ready else "Fix to start: the invalid combinations", ready=ready)
        token = parts.form_token("sweep", pressed)
        if pressed:
            begin(spec, leave_out, token)
    for note in found.notes:
        st.caption(parts.plain(note))
    the_same(spec, leave_out)


def start_button(label: str, *, ready: bool = False) -> bool:
    return st.button(
        label, type="primary", disabled=not ready, icon=":material/play_arrow:", width="stretch", key="sweep.start"
    )


def title_of(place: str) -> str:
    titles = {
        "models": "Backbones", "targets": "Target sets", "seeds": "Seeds", "lines": "More fields", "trials": "Trials",
        "sampler_seed": "Sampler seed",
    }  # fmt: skip
    if place.startswith("axis "):
        return fields.title_of(st.session_state.get(f"sweep.axis.{place.removeprefix('axis ')}", "an axis"))
    return titles.get(place, fields.title_of(place) or "the axes or the seeds")


def numbers(spec: SweepSpec, found: sweep_plan.Plan) -> None:
    """The number of runs, the time and the disk space."""
    a, b, c = st.columns(3)
    a.metric("Runs", f"{found.run_count:,}", help="Without invalid combinations.")
    b.metric("Time", parts.duration(found.seconds), help="All runs one after another, estimated from earlier runs.")
    c.metric("Disk", size_text(found.disk_bytes), help="Checkpoints, adapters and logs; approximate.")
    seeds = len(spec.seeds)
    most = "up to " if spec.learns else ""
    st.caption(
        f"{most}{spec.trial_count:,} {'setting' if spec.trial_count == 1 else 'settings'} × {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}; at most {sweep_spec.MOST_RUNS:,} runs per sweep."
    )
    if found.untimed:
        doing = intake.look(timing.folder(default_workspace()))
        running = doing is not None and doing.is_running
        st.fragment(time_unknown, run_every=REFRESH_S if running else None)(found.untimed, running)
    free = shutil.disk_usage(default_workspace().root).free
    if found.disk_bytes > free:
        st.warning(f"Only {size_text(free)} of disk space is free.", icon=":material/hard_drive:")


def time_unknown(untimed: Sequence[RunConfig], was_running: bool) -> None:
    """The settings not timed on this machine and a button to time them; when that starts or ends, the page reruns."""
    workspace = default_workspace()
    doing = intake.look(timing.folder(workspace))
    if (doing is not None and doing.is_running) != was_running:
        st.rerun()
    variants = list(dict.fromkeys(config.model.variant for config in untimed))
    st.caption(
        f"Time unknown: these settings of {', '.join(variants)} have not been timed on this machine (same data, batch "
        "size and number of targets)."
    )
    if doing and doing.is_running:
        done, total = doing.done, doing.total or len(untimed)
        what = f" {doing.doing}, {done + 1} of {total}" if doing.total else ""
        st.progress(min(1.0, done / total), text=parts.plain(f"Timing{what} ..."))
        st.button(
            "Stop timing", icon=":material/stop_circle:", key="sweep.measure.stop", on_click=intake.ask_to_stop,
            args=(timing.folder(workspace),), help="Stops after the current test. Finished tests are kept.",
        )  # fmt: skip
        return
    count = len(untimed)
    st.button(
        f"Estimate time ({count} short {'test' if count == 1 else 'tests'})", icon=":material/timer:",
        key="sweep.measure", on_click=measure, args=(untimed,),
        help=f"Times {timing.STEPS} training steps of each setting on noise, in a separate process that takes some "
        "seconds to start; needs neither data nor weights. Continues if you close this page. The estimate is too long "
        "if other runs are training at the same time.",
    )  # fmt: skip
    if doing:
        stopped = doing.error == intake.STOPPED
        said = "Timing was stopped. Finished tests are kept." if stopped else doing.error
        show, icon = (st.info, "stop_circle") if stopped else (st.error, "error")
        show(parts.plain(f"{parts.when(doing.at_ms)}: {said}"), icon=f":material/{icon}:")
    if refused := st.session_state.pop("sweep.measure.refused", ""):
        st.error(parts.plain(refused), icon=":material/error:")


def measure(untimed: Sequence[RunConfig]) -> None:
    try:
        timing.start(default_workspace(), untimed)  # False: already started by another process
    except SousaError as error:
        st.session_state["sweep.measure.refused"] = str(error)


def problems(spec: SweepSpec, found: sweep_plan.Plan) -> bool:
    """Show the invalid combinations, grouped by cause; returns whether to start without them."""
    if not found.problems:
        return False
    hit = sum(len(problem.settings) for problem in found.problems)
    with st.container(border=True, gap="small"):
        for problem in found.problems:
            count = len(problem.settings)
            st.markdown(f":red[:material/close:] **{count} invalid {'combination' if count == 1 else 'combinations'}**")
            st.text(problem.message)
            labels = [sweep_spec.label(setting) for setting in problem.settings]
            more = f" and {count - 4} more" if count > 4 else ""
            st.caption(parts.plain("; ".join(labels[:4]) + more))
        if spec.learns:
            st.caption(
                f"{spec.sampler} chooses settings while the sweep runs: remove the invalid combinations from the axes."
            )
            return False
        if not found.run_count:
            return False
        # The number is part of the key: a tick is for these settings, not for others that turn out invalid later.
        return st.checkbox(f"Start without these {hit}", key=f"sweep.leave_out.{hit}")


def begin(spec: SweepSpec, leave_out: bool, form_token: str) -> None:
    try:
        made = sweep_orders.start(
            default_workspace(), spec, created_by="page", leave_out_invalid=leave_out, form_token=form_token
        )
    except SousaError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    st.session_state["sweep.started"] = True
    st.query_params.from_dict({"id": made.id})
    st.rerun()


def the_same(spec: SweepSpec, leave_out: bool = False) -> None:
    """The sweep as a command and as YAML."""
    st.markdown("**Run this from a terminal**")
    try:
        st.code(sweep_words.to_command(spec, skip_invalid=leave_out), language="bash", wrap_lines=True)
    except ConfigError as error:
        st.caption(parts.plain(str(error)))
    written = sweep_spec.to_yaml(spec)
    with st.expander("Definition as YAML"):
        st.code(written, language="yaml")
    st.download_button(
        "Download YAML", written, file_name="sweep.yaml", mime="application/yaml", icon=":material/download:",
        help="python -m sousa_engine sweep --file sweep.yaml", on_click="ignore",
    )  # fmt: skip
