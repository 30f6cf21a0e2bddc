"""What the Tab key offers: runs, sweeps, backbones, and words such as `model=ast-mini`. click does the rest.

A shell asks by calling `sousa` at each Tab, so nothing here may load torch, and an unreadable workspace offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import CompletionItem

from sousa_engine import backbones as networks
from sousa_engine import targets
from sousa_engine.core import config, grammar
from sousa_engine.core.errors import SousaError
from sousa_engine.data import synth
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace, default_workspace

_MOST = 40  # newest runs


def runs(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    def found(store: Store) -> Iterator[tuple[str, str]]:
        for row in store.runs.listing(limit=_MOST).rows:
            yield row.id, row.title

    return _from_store(context, found, typed)


def sweeps(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _from_store(context, lambda store: ((found.id, found.name) for found in store.sweeps.all()), typed)


def backbones(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _starting(
        [(name, found.family) for found in networks.VARIANTS.values() for name in (found.name, *found.aliases)], typed
    )


def datasets(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _starting([(name, "an embedded data set") for name in synth.PRESETS], typed)


def sets(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _starting(dict.fromkeys([*targets.USUAL_SETS, *_recommended()], "").items(), typed)


def words(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """`group=name` and `field=value` (its choices, or its default). bash splits words at "=": then the value alone."""
    offered = list(_words())
    before = context.params.get(parameter.name or "") or ()
    keys = [word for word in before[-2:] if word != "="]
    if "=" not in typed and keys and any(word.startswith(f"{keys[-1]}=") for word, _ in offered):
        offered = [(word.partition("=")[2], text) for word, text in offered if word.startswith(f"{keys[-1]}=")]
    return _starting(offered, typed)


def _recommended() -> Iterator[str]:
    for name in networks.VARIANTS:
        yield from targets.recommended_sets(targets.load_outline(name))


def _words() -> Iterator[tuple[str, str]]:
    for group in grammar.PRESET_GROUPS:
        yield from ((f"{group}={name}", text) for name, text in grammar.presets(group).items())
    yield from ((f"data={name}", "an embedded data set") for name in synth.PRESETS)
    for dotted, info in config.fields():
        default = "" if info.is_required() else info.get_default(call_default_factory=True)
        simple = default if isinstance(default, str | int | float) and not isinstance(default, bool) else ""
        for value in config.field_options(dotted) or (simple,):
            yield f"{dotted}={value}", info.description or ""


def _from_store(
    context: click.Context, of: Callable[[Store], Iterable[tuple[str, str]]], typed: str
) -> list[CompletionItem]:
    root = context.find_root().params.get("root")
    workspace = Workspace(root=root.resolve()) if root else default_workspace()
    try:
        if not workspace.has_db:
            return []
        with Store.open_to_read(workspace) as store:
            return _starting([("last", "the newest"), *of(store)], typed)
    except (SousaError, OSError):  # a message in the middle of a command line would help nobody
        return []


def _starting(offered: Iterable[tuple[str, str]], typed: str) -> list[CompletionItem]:
    return [CompletionItem(word, help=text or None) for word, text in offered if word.startswith(typed)]
