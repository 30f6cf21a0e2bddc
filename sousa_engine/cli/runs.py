"""`runs` lists runs; `tag`, `note`, `archive` and `delete` organise them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from sousa_engine.analysis.significance import wilson
from sousa_engine.cli import complete
from sousa_engine.cli.types import Whole
from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, RunFilter, RunRow, RunStatus, Summary
from sousa_engine.maintenance import check
from sousa_engine.store import Store, trash
from sousa_engine.store.listing import SORTS, UP_FIRST
from sousa_engine.workspace import Workspace


@click.command()
@click.option("--status", type=click.Choice([s.value for s in RunStatus]), help="Only runs with this status.")
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag; repeat to require several.")
@click.option("--sweep", help="Only runs of this sweep: an id, a name, or `last`.")
@click.option(
    "--search", default="", metavar="WORDS", help="Words in title, backbone, data, targets, tags, note or id."
)
@click.option("--archived", is_flag=True, help="List the archived runs instead of the others.")
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="created",
    show_default=True,
    help="Highest first; titles from A to Z.",
)
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="Number of runs to list.")
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
        click.echo(f"None of {count} runs matches." + ("" if archived else " To search archived runs, add --archived."))
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


# A tag may begin with any letter: "-h" removes the tag h here, and only --help shows the help.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("run", shell_complete=complete.runs)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[+TAG | -TAG]...")
@click.pass_obj
def tag(workspace: Workspace, run: str, changes: tuple[str, ...]) -> None:
    """Add tags to a run and remove others: tag last +best -draft. Without changes, show its tags."""
    for change in changes:
        if change[:1] not in ("+", "-"):
            raise UserError(f"{change!r}: write +{change} to add this tag, or -{change} to remove it.")
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        store.marks.add_tags([found.id], [change[1:] for change in changes if change[0] == "+"])
        store.marks.remove_tags([found.id], [change[1:] for change in changes if change[0] == "-"])
        (row,) = store.runs.rows([found.id])
    click.echo(f"run {row.id}: {', '.join(row.tags) or 'no tags'}")


@click.command()
@click.argument("run", shell_complete=complete.runs)
@click.argument("text", required=False)
@click.pass_obj
def note(workspace: Workspace, run: str, text: str | None) -> None:
    """Write a note on a run; "" removes it. Without a text, show the note."""
    with Store.open(workspace) as store:
        found = store.runs.find(run)
        if text is not None:
            found = store.marks.set_note(found.id, text)
    click.echo(found.note or f"run {found.id}: no note")


@click.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete.runs)
@click.option("--undo", is_flag=True, help="Show the runs in the lists again.")
@click.pass_obj
def archive(workspace: Workspace, names: tuple[str, ...], undo: bool) -> None:
    """Hide runs from the lists without deleting them."""
    with Store.open(workspace) as store:
        ids = [store.runs.find(name).id for name in names]
        (store.marks.unarchive if undo else store.marks.archive)(ids)
    click.echo(f"{_count(ids)} {'restored to the lists' if undo else 'archived'}: {', '.join(ids)}")


@click.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete.runs)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def delete(workspace: Workspace, names: tuple[str, ...], yes: bool) -> None:
    """Delete runs permanently, with their metrics, checkpoints and adapters."""
    with Store.open(workspace) as store:
        rows = store.runs.rows(dict.fromkeys(store.runs.find(name).id for name in names))
        ids = [row.id for row in rows]
        if not yes:
            for row in rows:
                click.echo(f"{row.id:<20} {row.status.value:<9} {row.title}")
            size = trash.size_bytes(workspace, ids) / 1e6
            if not sys.stdin.isatty():
                raise UserError(f"{_count(ids)} ({size:,.1f} MB) would be deleted. No terminal to confirm: add --yes.")
            click.confirm(f"Permanently delete {_count(ids)} ({size:,.1f} MB)?", abort=True)
        store.marks.delete(ids)
    click.echo(f"{_count(ids)} deleted: {', '.join(ids)}")


def _count(ids: Sequence[str]) -> str:
    return "1 run" if len(ids) == 1 else f"{len(ids)} runs"


def progress_text(run: Run | RunRow) -> str:
    """How far a run has come: "160/380" steps, or the phase in which it ended before or after training."""
    if run.progress is None or run.status is RunStatus.FINISHED:
        return "-"
    if run.status.is_over and run.progress.phase != "training":
        return run.progress.phase
    return f"{run.progress.done}/{run.progress.total}"


def metric_text(summary: Summary) -> str:
    if summary.last is None:
        return f"NaN or infinite at step {summary.last_step}"
    is_accuracy = summary.metric.endswith("/accuracy")
    form = ".1%" if is_accuracy else ".4g"
    text = format(summary.last, form)
    if is_accuracy and summary.n and not summary.metric.startswith("train"):
        found = wilson(round(summary.last * summary.n), summary.n)
        text += f" (n={summary.n}, 95 % interval {found.low:.1%} to {found.high:.1%})"
    if summary.best is not None and summary.best != summary.last and not summary.metric.endswith("/lr"):
        text += f", best {summary.best:{form}} at step {summary.best_step}"
    return text


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _tested(row: RunRow) -> str:
    return "-" if row.test is None else f"{row.test:.1%} n={row.test_n}"
