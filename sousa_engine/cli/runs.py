"""`runs` lists runs; `tag`, `note`, `archive` and `delete` keep order among them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, RunFilter, RunRow, RunStatus
from sousa_engine.maintenance import check
from sousa_engine.store import Store, trash
from sousa_engine.store.listing import SORTS, UP_FIRST
from sousa_engine.workspace import Workspace

_RUN = "an id, the unique start or end of one, a name, or `last`"


@click.command()
@click.option("--status", type=click.Choice([s.value for s in RunStatus]), help="Only runs of this status.")
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag; several: with all of them.")
@click.option("--sweep", help="Only runs of this sweep: an id, a name, or `last`.")
@click.option("--search", default="", metavar="WORDS", help="Words in title, backbone, data, targets, tags, note, id.")
@click.option("--archived", is_flag=True, help="The archived runs, instead of the others.")
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="created",
    show_default=True,
    help="The highest first; a title from A.",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.pass_obj
def runs(
    workspace: Workspace,
    status: str | None,
    tags: tuple[str, ...],
    sweep: str | None,
    search: str,
    archived: bool,
    sort: str,
    reverse: bool,
    limit: int,
) -> None:
    """List the runs of this workspace."""
    with Store.open_to_read(workspace) as store:
        wanted = RunFilter(
            words=search,
            statuses=[RunStatus(status)] if status else (),
            tags=tags,
            sweep_id=store.sweeps.find(sweep).id if sweep else None,
            archived=archived,
        )
        found = store.runs.listing(wanted, sort=sort, descending=(sort in UP_FIRST) is reverse, limit=limit)
        count = store.runs.count()
    if not count:
        forgotten = check.forgotten(workspace)
        click.echo(forgotten or "No runs yet. Try: python -m sousa_engine train model=ast-mini data=tiny")
        return
    if not found.rows:
        click.echo(f"None of {count} runs matches." + ("" if archived else " Archived ones: --archived."))
        return
    click.echo(f"{'RUN':<20} {'STATUS':<9} {'PROGRESS':<9} {'VALID':<7} {'TEST':<14} TITLE")
    for row in found.rows:
        random = "  [random weights]" if row.is_random else ""
        worn = "".join(f"  +{tag}" for tag in row.tags)
        click.echo(
            f"{row.id:<20} {row.status.value:<9} {progress_text(row):<9} {_percent(row.valid):<7} {_tested(row):<14} "
            f"{row.title}{random}{worn}"
        )
    if found.total > len(found.rows):
        click.echo(f"{len(found.rows)} of {found.total:,}; --limit {found.total} shows all.")


# A tag may begin with any letter: "-h" takes the tag h off here, and --help is help.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("run")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[+TAG | -TAG]...")
@click.pass_obj
def tag(workspace: Workspace, run: str, changes: tuple[str, ...]) -> None:
    """Give a run tags and take some off: tag last +best -draft. Without changes: show them."""
    for change in changes:
        if change[:1] not in ("+", "-"):
            raise UserError(f"{change!r}: write +{change} to give the run that tag, or -{change} to take it off.")
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        store.marks.add_tags([found.id], [change[1:] for change in changes if change[0] == "+"])
        store.marks.remove_tags([found.id], [change[1:] for change in changes if change[0] == "-"])
        (row,) = store.runs.rows([found.id])
    click.echo(f"run {row.id}: {', '.join(row.tags) or 'no tags'}")


@click.command()
@click.argument("run")
@click.argument("text", required=False)
@click.pass_obj
def note(workspace: Workspace, run: str, text: str | None) -> None:
    """Write a note on a run; "" takes it away. Without a text: show it."""
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        if text is not None:
            found = store.marks.set_note(found.id, text)
    click.echo(found.note or f"run {found.id}: no note")


@click.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--undo", is_flag=True, help="Back into the lists.")
@click.pass_obj
def archive(workspace: Workspace, names: tuple[str, ...], undo: bool) -> None:
    """Take runs out of the lists, and keep them."""
    with Store.open(workspace) as store:
        ids = [store.runs.find(name).id for name in names]
        (store.marks.unarchive if undo else store.marks.archive)(ids)
    click.echo(f"{_count(ids)} {'back in the lists' if undo else 'archived'}: {', '.join(ids)}")


@click.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(workspace: Workspace, names: tuple[str, ...], yes: bool) -> None:
    """Delete runs for good, with all that was measured, their checkpoints and adapters."""
    with Store.open(workspace) as store:
        rows = store.runs.rows(dict.fromkeys(store.runs.find(name).id for name in names))
        ids = [row.id for row in rows]
        if not yes:
            for row in rows:
                click.echo(f"{row.id:<20} {row.status.value:<9} {row.title}")
            size = trash.size_bytes(workspace, ids) / 1e6
            if not sys.stdin.isatty():
                raise UserError(f"{_count(ids)}, {size:,.1f} MB would go. Nobody is here to be asked: add --yes.")
            click.confirm(f"Delete {_count(ids)}, {size:,.1f} MB, for good?", abort=True)
        store.marks.delete(ids)
    click.echo(f"{_count(ids)} deleted: {', '.join(ids)}")


def _count(ids: Sequence[str]) -> str:
    return "1 run" if len(ids) == 1 else f"{len(ids)} runs"


def progress_text(run: Run | RunRow) -> str:
    """How far it is, or came before it ended: "160/380" steps, or the phase if it ended outside the training."""
    if run.progress is None or run.status is RunStatus.FINISHED:
        return "-"
    if run.status.is_over and run.progress.phase != "training":
        return run.progress.phase
    return f"{run.progress.done}/{run.progress.total}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _tested(row: RunRow) -> str:
    return "-" if row.test is None else f"{row.test:.1%} n={row.test_n}"
