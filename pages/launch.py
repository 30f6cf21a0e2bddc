"""Launch: choose the settings of a run, see what it will do, start it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import streamlit as st

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.config import HEAD_TITLES, RunConfig
from sousa_engine.core.errors import SousaError
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.data.splits import SPLITS
from sousa_engine.runs import orders, preflight, prepare
from sousa_engine.runs.executors import local
from sousa_engine.runs.problems import problems as problems_of
from sousa_engine.web import drafts, fields, handover, kept, parts, reading_view
from sousa_engine.web.guard import refuse
from sousa_engine.web.handover import Ticks
from sousa_engine.workspace import default_workspace

if __name__ == "launch":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

WEIGHTS = {"pretrained": "pretrained", "random": "random (a control)", "file": "from a file or folder"}
SAVED = "saved:"
FORM = (  # the fields that have a widget
    "name", "seed", "device", "model.variant", "model.weights", "data.dataset", "data.strict",
    *(f"data.{name}" for name in (*reading_view.FIELDS, "clip_s", "shortest_s")),
    *(f"data.{name}" for name in ("valid_fraction", "test_fraction", "split_seed")),
    *(f"lora.{name}" for name in ("method", "r", "alpha", "dropout", "plus_ratio", "head")),
    *(f"augment.{name}" for name in ("time_mask", "mel_mask", "shift", "gain_db")),
    *(f"training.{name}" for name in (
        "max_epochs", "batch_size", "lr", "head_lr", "weight_decay", "warmup", "label_smoothing", "grad_clip",
        "patience", "precision",
    )),
    "wandb.mode", "wandb.project",
)  # fmt: skip
workspace = default_workspace()
base = RunConfig()


def main() -> None:
    take_over()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Launch", width="content")
        st.button(
            "Reset", icon=":material/restart_alt:", on_click=take, args=({},), disabled=not draft(), key="launch.reset",
            help="Set all fields to their defaults.",
        )  # fmt: skip
    st.caption(
        "All fields have sensible defaults and are checked as you type; with the embedded backbone and data you can "
        "start at once. Training runs in a separate process; closing this page does not stop it."
    )
    drafts.say(held("said", ()))
    left, right = st.columns([3, 2], gap="large")
    with left:
        values, problems = form()
    drafts.keep("launch", draft())
    with right:
        summary(values, problems)


def take_over() -> None:
    """Fill the form from the address (dataset, data.strict, lora=probe; or a draft), or from what another page left."""
    if st.session_state.pop("launch.started", False):  # the draft is a run now
        drafts.end_visit("launch")
        take({})
    if found := drafts.asked("launch"):
        take(*found)
    dataset, lora = st.query_params.pop("dataset", None), st.query_params.pop("lora", None)
    strict = st.query_params.pop("data.strict", None)
    reading = {name: st.query_params.pop(f"data.{name}", "") for name in reading_view.FIELDS}
    if dataset:
        for name, text in reading.items():
            hold(f"data.{name}", text)
        hold("data", fields.dataset_choice(dataset))
        hold("data.dataset", dataset)
        hold("data.strict", strict == "true")
    if left := handover.take_draft():
        take_settings(left.settings)
        return
    if ticks := handover.new_ticks("launch"):
        hold("model.variant", ticks.variant)
        hold("set", "ticks")
        for name, value in (("head", ticks.head), ("r", ticks.r), ("method", ticks.method)):
            hold(f"lora.{name}", as_widget(f"lora.{name}", value))
    if lora == "probe":
        hold("lora.method", "lora")
        hold("lora.head", "train")
        hold("set", "none")


def take_settings(settings: RunConfig) -> None:
    """Fill the form with a run's settings; its targets become the ticks."""
    hold("said", ())
    for name, _ in config.fields():
        hold(name, as_widget(name, config.value_of(settings, name)))
    hold("weights_kind", weights_kind(settings.model.weights))
    hold("defaults_of", settings.model.variant)
    hold("data", fields.dataset_choice(settings.data.dataset))
    hold("set", "ticks")
    handover.leave_ticks(Ticks.of(settings), seen_by="launch")


def defaults(variant: str) -> dict[str, Any]:
    """What the widgets of FORM hold at first, with this backbone."""
    changed = backbones.default_changes(base.model.variant, variant)
    found = {name: changed[name][1] if name in changed else config.value_of(base, name) for name in FORM}
    return {name: as_widget(name, value) for name, value in found.items()} | {"model.variant": base.model.variant}


def draft() -> dict[str, Any]:
    """What the form holds and its defaults do not; with the ticked modules, if they are what is adapted."""
    variant = held("model.variant", base.model.variant)
    usual = defaults(variant)
    found = {name: held(name, usual[name]) for name in FORM if held(name, usual[name]) != usual[name]}
    ticks = handover.held_ticks(variant)
    if held("set") == "ticks" and ticks:
        found["ticks"] = {
            "paths": list(ticks.paths), "ranks": dict(ticks.ranks), "r": ticks.r, "head": ticks.head,
            "method": ticks.method, "name": ticks.name,
        }  # fmt: skip
    elif held("set") not in (None, usual_set(variant)):
        found["set"] = held("set")
    return found


def take(found: Mapping[str, Any], error: str = "") -> None:
    """Fill the form with a draft, as `draft` makes it; everything else gets its default. It comes from an address:
    values that do not fit are left out, and named on the page."""
    said = [error] if error else []
    variant = found.get("model.variant", base.model.variant)
    variant = variant if drafts.fits(variant, "", backbones.VARIANTS) else base.model.variant
    usual = defaults(variant)
    options: dict[str, Collection[str]] = {name: config.field_options(name) for name in FORM}
    options |= {"model.variant": backbones.VARIANTS, "device": ["auto", *local.devices()]}
    for name in FORM:
        value = found.get(name, usual[name])
        if not drafts.fits(value, usual[name], options[name] or None):
            said.append(drafts.left_out(config.field_label(name), value))
            value = usual[name]
        hold(name, type(usual[name])(value))
    hold("weights_kind", weights_kind(held("model.weights")))
    hold("defaults_of", variant)
    hold("data", fields.dataset_choice(held("data.dataset")))
    hold("set", usual_set(variant))
    if "ticks" in found:
        said += take_ticks(variant, found["ticks"])
    elif "set" in found:
        if drafts.fits(found["set"], "", choices_of(targets.load_outline(variant), METHODS[held("lora.method")])):
            hold("set", found["set"])
        else:
            said.append(drafts.left_out(config.field_label("lora.targets"), found["set"]))
    said += [drafts.left_out(name, found[name]) for name in found if name not in (*FORM, "ticks", "set")]
    hold("said", said)


def take_ticks(variant: str, found: Any) -> list[str]:
    """Tick the modules of a draft. Returns sentences about those that cannot be ticked."""
    outline = targets.load_outline(variant)
    match found:
        case {"paths": list(paths), "ranks": dict(ranks), "r": int(r), "head": str(head), "method": str(method)}:
            able = {node.path for node in outline.nodes if node.adaptable and not outline.in_head(node.path)}
            good = tuple(path for path in paths if isinstance(path, str) and path in able)
            name = found.get("name", "")
            if good and head in HEAD_TITLES and method in METHODS and 1 <= r <= 1024:
                ticks = Ticks(
                    variant=variant, paths=good, r=r, head=head, method=method,  # pyright: ignore[reportArgumentType]
                    ranks={path: ranks[path] for path in good if type(ranks.get(path)) is int},
                    name=name if drafts.is_text(name) and len(good) == len(paths) else "",
                )  # fmt: skip
                handover.leave_ticks(ticks, seen_by="launch")
                hold("set", "ticks")
                bad = [path for path in paths if path not in good]
                return [drafts.left_out("Ticked modules", ", ".join(map(str, bad)))] if bad else []
    return [drafts.left_out("Ticked modules", found)]


def usual_set(variant: str) -> str:
    return targets.default_set(targets.load_outline(variant))


def hold(name: str, value: Any) -> None:
    """Let the widget of this name, or of this field, hold a value."""
    st.session_state[f"launch.{name}"] = value


def held(name: str, default: Any = None) -> Any:
    return st.session_state.get(f"launch.{name}", default)


def as_widget(name: str, value: Any) -> Any:
    """A config value in the form in which its widget holds it: numbers are text, so that nothing typed is changed."""
    return inputs.number_text(value) if config.takes_number(name) else value


def form() -> tuple[dict[str, Any], dict[str, str]]:
    """Draw the fields. Returns the draft and, for each invalid field, a sentence (shown below that field too)."""
    slots: dict[str, Any] = {}
    values: dict[str, Any] = {}

    def field(name: str, widget, label: str = "", **more: Any) -> Any:
        """One widget with the label and help of its field, and a place for its error."""
        key, first = f"launch.{name}", as_widget(name, config.value_of(base, name))
        held = kept.index(key, first, more["options"]) if "options" in more else kept.value(key, first)
        value = widget(label=label or config.field_label(name), help=config.field_help(name), **held, **more)
        slots[name] = st.empty()
        grammar.set_field(values, name, value)
        return value

    st.subheader("Backbone")
    names = list(backbones.VARIANTS)
    a, b = st.columns(2)
    with a:
        variant = field("model.variant", st.selectbox, options=names, format_func=lambda n: backbones.VARIANTS[n].title)
    with b:
        weights_field(field, values)
    take_defaults_of(variant)
    outline = targets.load_outline(variant)

    st.subheader("What to train")
    values["lora"] = {"targets": [], **values.get("lora", {})}
    name = field("lora.method", st.selectbox, options=list(METHODS), format_func=lambda n: METHODS[n].title)
    method = METHODS[name]
    st.caption(method.sentence)
    if method.takes_targets:
        targets_field(outline, values, slots, method)
    shown = [setting for setting in ("r", "alpha", "dropout", "plus_ratio") if setting in method.settings]
    columns = st.columns(len(shown) + 1)
    for column, setting in zip(columns, shown, strict=False):
        with column:
            field(f"lora.{setting}", st.text_input)
    with columns[-1]:
        heads = [head for head in HEAD_TITLES if head != "lora" or method.takes_targets]
        if held("lora.head") not in heads:
            hold("lora.head", base.lora.head)
        field("lora.head", st.selectbox, options=heads, format_func=HEAD_TITLES.get)

    st.subheader("Data")
    data_field(field, values)

    st.subheader("Training")
    a, b, c, d = st.columns(4)
    for column, name in ((a, "max_epochs"), (b, "batch_size"), (c, "lr"), (d, "head_lr")):
        with column:
            field(f"training.{name}", st.text_input)
    a, b, c = st.columns([1, 1, 2])
    with a:
        field("seed", st.text_input)
    with b:
        present = ["auto", *local.devices()]
        if held("device", "auto") not in present:
            hold("device", "auto")
        field("device", st.selectbox, options=present)
    with c:
        field("name", st.text_input, placeholder="automatic: backbone · data · seed")

    with st.expander("More: regularisation, augmentation, clip length, split, early stopping, W&B"):
        a, b, c = st.columns(3)
        more = (
            "data.clip_s", "data.shortest_s", "data.valid_fraction", "data.test_fraction", "data.split_seed",
            "training.weight_decay", "training.warmup", "training.label_smoothing", "training.grad_clip",
            "augment.time_mask", "augment.mel_mask", "augment.shift", "augment.gain_db",
        )  # fmt: skip
        for i, name in enumerate(more):
            with (a, b, c)[i % 3]:
                field(name, st.text_input)
        with c:
            field("training.patience", st.text_input)
        for column, name in ((a, "training.precision"), (b, "wandb.mode")):
            with column:
                field(name, st.selectbox, options=config.field_options(name))
        with c:
            field("wandb.project", st.text_input)

    problems = problems_of(values)
    for name, text in problems.items():
        if name in slots:
            slots[name].error(parts.plain(config.with_label(name, text)))
    return values, problems


def take_defaults_of(variant: str) -> None:
    """When the backbone changes, the fields that still hold its defaults take those of the new one, as `model=...`
    does on the command line."""
    before = held("defaults_of", base.model.variant)
    hold("defaults_of", variant)
    if before == variant:
        return
    for name, (was, now) in backbones.default_changes(before, variant).items():
        old = as_widget(name, was)
        if name != "model.variant" and held(name, old) == old:
            hold(name, as_widget(name, now))


def weights_kind(weights: str) -> str:
    return weights if weights in WEIGHTS else "file"


def weights_field(field, values: dict[str, Any]) -> None:
    stored = st.session_state.setdefault("launch.model.weights", base.model.weights)
    kind = st.selectbox(
        config.field_label("model.weights"), list(WEIGHTS), format_func=WEIGHTS.get,
        **kept.index("launch.weights_kind", weights_kind(stored), list(WEIGHTS)),
        help=config.field_help("model.weights"),
    )  # fmt: skip
    if kind == "file":
        if held("model.weights") in WEIGHTS:
            hold("model.weights", "")
        field("model.weights", st.text_input, "Path of the weights")
    else:
        hold("model.weights", kind)
        grammar.set_field(values, "model.weights", kind)


def targets_field(outline: targets.Outline, values: dict[str, Any], slots: dict[str, Any], method: Method) -> None:
    """Which modules are adapted: the ticks of the tree, a recommended set, a saved set, or none."""
    ticks = handover.held_ticks(outline.variant)
    choices = choices_of(outline, method)
    usual = usual_set(outline.variant)
    if held("set") not in choices:
        hold("set", usual if usual in choices else next(iter(choices)))
    a, b = st.columns([3, 1], vertical_alignment="bottom")
    with a:
        chosen = st.selectbox(
            config.field_label("lora.targets"), list(choices), **kept.index("launch.set", usual, list(choices)),
            format_func=lambda key: choices[key][0] + (f" ({len(choices[key][1])})" if choices[key][1] else ""),
            help="The modules that are adapted. To choose single modules, tick them in the module tree.",
        )  # fmt: skip
    with b:
        st.page_link(
            parts.page_path("backbones"), label=":primary[Open the tree]", query_params={"variant": outline.variant}
        )
    slots["lora.targets"] = st.empty()
    wanted = [path for path in choices[chosen][1] if not outline.in_head(path)]
    values["lora"]["targets"] = wanted
    values["lora"]["target_set"] = chosen.removeprefix(SAVED) if chosen.startswith(SAVED) else ""
    if chosen == "ticks" and ticks:
        values["lora"]["target_set"] = ticks.name
        if method.takes_ranks:
            ranks = {path: rank for path, rank in ticks.ranks.items() if path in wanted}
            values["lora"]["rank_pattern"] = ranks
            if ranks:
                have = (
                    "1 module has a separate rank" if len(ranks) == 1 else f"{len(ranks)} modules have separate ranks"
                )
                st.caption(f"{have}, set in the tree.")


def choices_of(outline: targets.Outline, method: Method) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What the field Target modules offers: its key -> (what the list says, the modules)."""
    choices: dict[str, tuple[str, tuple[str, ...]]] = {}
    if ticks := handover.held_ticks(outline.variant):
        choices["ticks"] = (f"ticked: {ticks.name}" if ticks.name else "ticked in the module tree", ticks.paths)
    for name, paths in targets.recommended_sets(outline, method).items():
        choices[name] = (name, paths)
    with parts.open_store() as store:
        saved = store.target_sets.all(outline.variant)
    choices |= {f"{SAVED}{one.name}": (f"saved: {one.name}", one.paths) for one in saved}
    choices["none"] = ("none: linear probe, the head alone", ())
    return choices


def data_field(field, values: dict[str, Any]) -> None:
    a, b = st.columns(2, vertical_alignment="bottom")
    with a:
        chosen = st.selectbox(
            config.field_label("data.dataset"), fields.DATASET_CHOICES,
            **kept.index("launch.data", base.data.dataset, fields.DATASET_CHOICES),
            help=config.field_help("data.dataset"), format_func=fields.dataset_title,
        )  # fmt: skip
    with b:
        if chosen == fields.OWN_DATA:
            if fields.dataset_choice(held("data.dataset", "")) != fields.OWN_DATA:
                hold("data.dataset", "")
            field("data.dataset", st.text_input, fields.PATH_LABEL, placeholder=fields.PATH_EXAMPLE)
            field("data.strict", st.toggle)
        else:
            hold("data.dataset", chosen)
            grammar.set_field(values, "data.dataset", chosen)
            st.page_link(parts.page_path("data"), label=":primary[Preview data]", query_params={"dataset": chosen})
    if chosen == fields.OWN_DATA:
        with st.expander("How it is read", icon=":material/account_tree:"):
            st.caption("Empty fields mean: as it looks. The page Data shows how that is.")
            columns = st.columns(3)
            for i, name in enumerate(reading_view.FIELDS):
                with columns[i % 3]:
                    field(f"data.{name}", st.text_input)


@st.cache_data(ttl=20, max_entries=50, show_spinner="Checking ...")
def check(settings: str, workspace_root: str) -> preflight.Preflight:
    """The preflight of a config given as JSON; cached briefly, because each keystroke reruns the page."""
    return preflight.preflight(RunConfig.model_validate_json(settings), workspace)


def summary(values: dict[str, Any], problems: dict[str, str]) -> None:
    """What the run will do; the Start button says which fields to fix."""
    missing = list(problems)
    settings = found = None
    if not missing:
        try:
            settings = prepare.prepare(values).config
            found = check(settings.model_dump_json(), str(workspace.root))
            missing += [item.title.lower() for item in found.errors]
        except SousaError as error:
            st.error(parts.plain(str(error)), icon=":material/error:")
            missing.append(getattr(error, "field", None) or "data set")

    label = fields.start_label(missing, "Start training")
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
    c.metric("Steps", f"{found.total_steps:,}", help=f"{found.steps_per_epoch:,} per epoch")
    clips = found.clips
    majority = "" if found.majority is None else f" Majority-class baseline: {parts.percent(found.majority)}."
    sizes = ", ".join(f"{split} {clips[split]:,}" for split in SPLITS)
    st.caption(f"{found.classes} classes; clips: {sizes}.{majority}")
    with st.container(border=True, gap="small"):
        for item in found.checks:
            report(item)
        with parts.open_store() as store:
            earlier = orders.trained_before(store, settings)
        if earlier:
            detail = f"{earlier.title} ({earlier.id}) has trained this already, with the same settings and seed."
            report(preflight.Check(level="note", title="Trained before", detail=detail))
    st.markdown("**Run this from a terminal**")
    st.code(prepare.to_command(settings), language="bash", wrap_lines=True)
    with st.expander("Resolved config (YAML)"):
        st.code(prepare.to_yaml(settings), language="yaml", height=360)


def report(item: preflight.Check) -> None:
    """One line of the preflight: a mark, the title of the check, its finding (as plain text: it may contain paths)."""
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
    st.session_state["launch.started"] = True
    st.switch_page(parts.page_path("run"), query_params={"id": run.id})


main()
