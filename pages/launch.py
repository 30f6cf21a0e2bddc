"""Launch: choose everything a training needs, see what it will do, start it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import SousaError
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.data import synth
from sousa_engine.data.splits import SPLITS
from sousa_engine.runs import orders
from sousa_engine.runs.executors import local
from sousa_engine.web import parts
from sousa_engine.workspace import default_workspace

OWN_DATA = "my own: a folder or a CSV file"
LABELS = {  # of the fields: on their widgets, and where something is wrong with them
    "model.variant": "Backbone", "model.weights": "Weights", "lora.targets": "Target modules", "lora.r": "Rank r",
    "lora.method": "Method", "lora.rank_pattern": "Ranks", "lora.plus_ratio": "B's rate / A's",
    "lora.alpha": "Alpha", "lora.dropout": "Dropout", "lora.head": "Head", "data.dataset": "Data set",
    "data.strict": "Strict",
    "training.max_epochs": "Epochs", "training.batch_size": "Batch size", "training.lr": "Learning rate",
    "training.head_lr": "Head's rate", "training.weight_decay": "Weight decay", "training.warmup": "Warm-up",
    "training.label_smoothing": "Label smoothing", "training.grad_clip": "Gradient clip",
    "training.patience": "Patience (epochs)", "training.precision": "Precision", "augment.time_mask": "Time mask",
    "augment.mel_mask": "Mel mask", "augment.shift": "Shift", "augment.gain_db": "Gain (dB)",
    "wandb.mode": "Weights & Biases", "wandb.project": "W&B project", "seed": "Seed", "device": "Device",
    "name": "Name",
}  # fmt: skip
HEADS = {"train": "train fully", "lora": "LoRA", "freeze": "freeze"}
workspace = default_workspace()
base = RunConfig()


def main() -> None:
    st.title("Launch")
    st.caption(
        "Every field has a sound default: with the embedded backbone and data you can press Start at once. "
        "The run belongs to a worker of its own; closing this page does not touch it."
    )
    take_over_draft()
    left, right = st.columns([3, 2], gap="large")
    with left:
        values, problems = form()
    with right:
        summary(values, problems)


def take_over_draft() -> None:
    """Fill the form from what another page left: a run's settings ("draft"), ticks of the module tree ("ticks"), or a
    data set, with data.strict=true and lora=probe or without, in the address."""
    dataset, lora = st.query_params.pop("dataset", None), st.query_params.pop("lora", None)
    strict = st.query_params.pop("data.strict", None)
    if dataset:
        st.session_state["launch.data"] = dataset if dataset in synth.PRESETS else OWN_DATA
        st.session_state["launch.data.dataset"] = dataset
        st.session_state["launch.data.strict"] = strict == "true"
    draft = st.session_state.pop("draft", None)
    if draft is not None:
        settings = RunConfig.model_validate(draft)
        for name, _ in config.fields():
            st.session_state[f"launch.{name}"] = as_widget(name, config.value_of(settings, name))
        st.session_state["launch.defaults_of"] = settings.model.variant
        known = settings.data.dataset in synth.PRESETS
        st.session_state["launch.data"] = settings.data.dataset if known else OWN_DATA
        st.session_state["ticks"] = {
            "variant": settings.model.variant,
            "paths": [target.path for target in settings.lora.targets],
            "ranks": settings.lora.ranks,
            "name": settings.lora.target_set,
        }
        st.session_state["launch.set"] = "ticks"
        return
    ticks = st.session_state.get("ticks")
    if ticks and ticks is not st.session_state.get("launch.seen_ticks"):
        st.session_state["launch.seen_ticks"] = ticks
        st.session_state["launch.model.variant"] = ticks["variant"]
        st.session_state["launch.set"] = "ticks"
        for field in ("head", "r", "method"):
            if field in ticks:
                st.session_state[f"launch.lora.{field}"] = ticks[field]
    if lora == "probe":
        st.session_state.update({"launch.lora.method": "lora", "launch.lora.head": "train", "launch.set": "none"})


def as_widget(name: str, value: Any) -> Any:
    """A config value in the form its widget keeps it: rates are text, so that 5e-4 can be typed."""
    if name in ("training.lr", "training.head_lr"):
        return f"{value:g}"
    return value


def form() -> tuple[dict[str, Any], dict[str, str]]:
    """Draw the fields. Returns the draft and, for each field at fault, a sentence (shown below that field too)."""
    slots: dict[str, Any] = {}
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}

    def field(name: str, draw, label: str = "") -> Any:
        """One widget with its label, its help from the config, and a place for its error."""
        key = f"launch.{name}"
        parts.say_again(key, as_widget(name, config.value_of(base, name)))
        help = config.field_help(name).capitalize() + "."
        value = draw(label=label or LABELS[name], key=key, help=help, persist_state="session")
        slots[name] = st.empty()
        grammar.set_field(values, name, value)
        return value

    st.subheader("Backbone")
    names = list(backbones.VARIANTS)
    a, b = st.columns(2)
    with a:
        variant = field(
            "model.variant",
            lambda **k: st.selectbox(options=names, format_func=lambda n: backbones.VARIANTS[n].title, **k),
        )
    with b:
        weights_field(field, values)
    take_defaults_of(variant)
    outline = targets.load_outline(variant)

    st.subheader("What trains")
    values["lora"] = {"targets": [], **values.get("lora", {})}
    name = field(
        "lora.method", lambda **k: st.selectbox(options=list(METHODS), format_func=lambda n: METHODS[n].title, **k)
    )
    method = METHODS[name]
    st.caption(f"{method.title}: {method.help}.")
    if method.takes_targets:
        targets_field(outline, values, slots, method)
    numbers = {"r": (1, "%d"), "alpha": (1.0, "%g"), "dropout": (0.05, "%g"), "plus_ratio": (1.0, "%g")}
    shown = [setting for setting in numbers if setting in method.settings]
    columns = st.columns(len(shown) + 1)
    for column, setting in zip(columns, shown, strict=False):
        step, form_of = numbers[setting]
        with column:
            field(f"lora.{setting}", lambda s=step, f=form_of, **k: st.number_input(step=s, format=f, **k))
    with columns[-1]:
        heads = [head for head in HEADS if head != "lora" or method.takes_targets]
        if st.session_state.get("launch.lora.head") not in heads:
            st.session_state["launch.lora.head"] = base.lora.head
        field("lora.head", lambda **k: st.selectbox(options=heads, format_func=HEADS.get, **k))

    st.subheader("Data")
    data_field(field, values)

    st.subheader("Training")
    a, b, c, d = st.columns(4)
    with a:
        field("training.max_epochs", lambda **k: st.number_input(step=1, **k))
    with b:
        field("training.batch_size", lambda **k: st.number_input(step=1, **k))
    with c:
        rate(field, values, problems, "training.lr")
    with d:
        rate(field, values, problems, "training.head_lr")
    a, b, c = st.columns([1, 1, 2])
    with a:
        field("seed", lambda **k: st.number_input(step=1, **k))
    with b:
        present = ["auto", *local.devices()]
        if st.session_state.get("launch.device", "auto") not in present:
            st.session_state["launch.device"] = "auto"
        field("device", lambda **k: st.selectbox(options=present, **k))
    with c:
        field("name", lambda **k: st.text_input(placeholder="made from backbone, data and seed", **k))

    with st.expander("More: regularisation, augmentation, early stop, W&B"):
        a, b, c = st.columns(3)
        more = (
            "training.weight_decay", "training.warmup", "training.label_smoothing", "training.grad_clip",
            "augment.time_mask", "augment.mel_mask", "augment.shift", "augment.gain_db",
        )  # fmt: skip
        for i, name in enumerate(more):
            with (a, b, c)[i % 3]:
                field(name, lambda **k: st.number_input(step=0.01, format="%g", **k))
        with c:
            field("training.patience", lambda **k: st.number_input(step=1, **k))
        with a:
            field("training.precision", lambda **k: st.selectbox(options=["float32", "bf16"], **k))
        with b:
            modes = ["disabled", "offline", "online"]
            field("wandb.mode", lambda **k: st.selectbox(options=modes, **k))
        with c:
            field("wandb.project", st.text_input)

    problems |= {name: text for name, text in problems_of(values).items() if name not in problems}
    for name, text in problems.items():
        if name in slots:
            slots[name].error(parts.plain(text.replace(f"{name} = ", f"{LABELS[name]} = ")))
    return values, problems


def take_defaults_of(variant: str) -> None:
    """On a change of the backbone, the fields that still hold its default take the next one's: what
    `model=...` does on the command line."""
    before = st.session_state.get("launch.defaults_of", base.model.variant)
    st.session_state["launch.defaults_of"] = variant
    if before == variant:
        return
    old, new = (config.build(grammar.preset("model", name)) for name in (before, variant))
    for name, (was, now) in config.differences([old, new]).items():
        key = f"launch.{name}"
        held = as_widget(name, was)
        if name != "model.variant" and st.session_state.get(key, held) == held:
            st.session_state[key] = as_widget(name, now)


def rate(field, values: dict[str, Any], problems: dict[str, str], name: str) -> None:
    text = field(name, st.text_input)
    number = grammar.value(text) if text.strip() else None
    if isinstance(number, int | float) and not isinstance(number, bool):
        grammar.set_field(values, name, float(number))
    else:
        problems[name] = f"{name} = {text!r} is not a number. Write it like 0.002 or 2e-3."


def weights_field(field, values: dict[str, Any]) -> None:
    kinds = {"pretrained": "pretrained", "random": "random (a control)", "file": "from a file or folder"}
    stored = st.session_state.setdefault("launch.model.weights", base.model.weights)
    parts.say_again("launch.weights_kind", stored if stored in kinds else "file")
    kind = st.selectbox(
        LABELS["model.weights"], list(kinds), format_func=kinds.get, key="launch.weights_kind",
        help=config.field_help("model.weights").capitalize() + ".", persist_state="session",
    )  # fmt: skip
    if kind == "file":
        if st.session_state["launch.model.weights"] in kinds:
            st.session_state["launch.model.weights"] = ""
        field("model.weights", st.text_input, "Path of the weights")
    else:
        st.session_state["launch.model.weights"] = kind
        grammar.set_field(values, "model.weights", kind)


def targets_field(outline: targets.Outline, values: dict[str, Any], slots: dict[str, Any], method: Method) -> None:
    """Which modules are adapted: the ticks of the tree, a recommended set, a saved set, or none."""
    ticks = st.session_state.get("ticks") or {}
    choices: dict[str, tuple[str, tuple[str, ...]]] = {}
    if ticks.get("variant") == outline.variant:
        label = f"ticked: {ticks['name']}" if ticks.get("name") else "ticked in the module tree"
        choices["ticks"] = (label, tuple(ticks["paths"]))
    for name, paths in targets.recommended_sets(outline, method).items():
        choices[name] = (name, paths)
    with parts.open_store() as store:
        for saved in store.target_sets(outline.variant):
            choices[f"saved:{saved.name}"] = (f"saved: {saved.name}", saved.paths)
    choices["none"] = ("none: linear probe, the head alone", ())
    held = st.session_state.get("launch.set")
    usual = targets.default_set(outline)
    st.session_state["launch.set"] = held if held in choices else usual if usual in choices else next(iter(choices))
    a, b = st.columns([3, 1], vertical_alignment="bottom")
    with a:
        chosen = st.selectbox(
            LABELS["lora.targets"], list(choices), key="launch.set",
            format_func=lambda key: choices[key][0] + (f" ({len(choices[key][1])})" if choices[key][1] else ""),
            help="The modules that are adapted. Tick your own set in the module tree.", persist_state="session",
        )  # fmt: skip
    with b:
        st.page_link(
            parts.page_path("backbones"), label=":primary[Open the tree]", query_params={"variant": outline.variant}
        )
    label, paths = choices[chosen]
    slots["lora.targets"] = st.empty()
    values["lora"]["targets"] = [path for path in paths if not outline.in_head(path)]
    if chosen == "ticks" and method.takes_ranks:
        own = {path: rank for path, rank in ticks.get("ranks", {}).items() if path in values["lora"]["targets"]}
        values["lora"]["rank_pattern"] = own
        if own:
            st.caption(f"{len(own)} of them with a rank of their own, as set in the tree.")
    named = chosen.startswith("saved:") or (chosen == "ticks" and ticks.get("name"))
    values["lora"]["target_set"] = label.removeprefix("saved: ").removeprefix("ticked: ") if named else ""


def data_field(field, values: dict[str, Any]) -> None:
    names = [*synth.PRESETS, OWN_DATA]
    parts.say_again("launch.data", base.data.dataset)
    a, b = st.columns(2, vertical_alignment="bottom")
    with a:
        chosen = st.selectbox(
            LABELS["data.dataset"], names, key="launch.data", help=config.field_help("data.dataset").capitalize() + ".",
            format_func=lambda n: n if n == OWN_DATA else f"{n}: 40 x {synth.PRESETS[n].clips_per_class} clips",
            persist_state="session",
        )  # fmt: skip
    with b:
        if chosen == OWN_DATA:
            if st.session_state.get("launch.data.dataset") in synth.PRESETS:
                st.session_state["launch.data.dataset"] = ""
            field(
                "data.dataset",
                lambda **k: st.text_input(placeholder="/path/to/folder or clips.csv", **k),
                "Folder or CSV file",
            )
            field("data.strict", st.toggle)
        else:
            st.session_state["launch.data.dataset"] = chosen
            grammar.set_field(values, "data.dataset", chosen)
            st.page_link(parts.page_path("data"), label=":primary[Look and listen]", query_params={"dataset": chosen})


def problems_of(values: dict[str, Any]) -> dict[str, str]:
    """The config's own checks, field by field, with the ticked modules as the rank's bounds."""
    if not values["data"]["dataset"]:
        return {"data.dataset": "Which folder, or which CSV file?"}
    if not values["model"]["weights"]:
        return {"model.weights": "Which weights file, or which folder?"}
    outline = targets.load_outline(values["model"]["variant"])
    lora = {**values["lora"], "targets": [t.model_dump() for t in outline.targets(values["lora"]["targets"])]}
    return config.problems({**values, "lora": lora})


@st.cache_data(ttl=20, max_entries=50, show_spinner="Checking ...")
def check(settings: str, workspace_root: str) -> orders.Preflight:
    """The preflight of a config given as JSON; remembered briefly, since each keystroke reruns the page."""
    return orders.preflight(RunConfig.model_validate_json(settings), workspace)


def summary(values: dict[str, Any], problems: dict[str, str]) -> None:
    """What this run will be; the Start button says what is missing."""
    missing = list(problems)
    settings = found = None
    if not missing:
        try:
            settings = orders.prepare(values).config
            found = check(settings.model_dump_json(), str(workspace.root))
            missing += [item.title.lower() for item in found.errors]
        except SousaError as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            missing.append(getattr(error, "field", None) or "data set")

    label = "Start training"
    if missing:
        label = "To start, mend: " + ", ".join(LABELS.get(name, name) for name in missing[:3])
    pressed = st.button(label, type="primary", disabled=bool(missing), icon=":material/play_arrow:", width="stretch")
    token = parts.form_token("launch", pressed)
    if pressed:
        assert settings is not None
        begin(settings, token)
    if settings is None or found is None:
        return

    a, b, c = st.columns(3)
    a.metric("Trainable", f"{found.counts.trainable:,}", help=f"of {found.counts.total:,} parameters")
    b.metric("Share", f"{found.counts.percent:.2f} %")
    c.metric("Steps", f"{found.total_steps:,}", help=f"{found.steps_per_epoch} an epoch")
    clips = found.clips
    majority = (
        "" if found.majority is None else f" Always naming the most frequent class: {parts.percent(found.majority)}."
    )
    sizes = ", ".join(f"{split} {clips[split]:,}" for split in SPLITS)
    st.caption(f"{found.classes} classes; clips: {sizes}.{majority}")
    with st.container(border=True, gap="small"):
        for item in found.checks:
            report(item)
    st.markdown("**The same from a terminal**")
    st.code(orders.to_command(settings), language="bash", wrap_lines=True)
    with st.expander("Resolved config (YAML)"):
        st.code(orders.to_yaml(settings), language="yaml", height=360)


def report(item: orders.Check) -> None:
    """One line of the preflight: a mark, what was looked at, what was found (as plain text: it may hold paths)."""
    marks = {
        "ok": ":green[:material/check:]",
        "note": ":gray[:material/info:]",
        "warning": ":orange[:material/warning:]",
        "error": ":red[:material/close:]",
    }
    left, right = st.columns([1, 3], gap="small")
    left.markdown(f"{marks[item.level]} **{item.title}**")
    right.text(item.detail)


def begin(settings: RunConfig, form_token: str) -> None:
    try:
        run = orders.start(workspace, settings, created_by="page", form_token=form_token)
    except SousaError as error:
        st.error(parts.plain(str(error)), icon=":material/error:")
        return
    st.switch_page(parts.page_path("run"), query_params={"id": run.id})


main()
