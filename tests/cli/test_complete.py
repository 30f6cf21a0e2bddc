"""The Tab key offers what the next word can be, in each shell's way of splitting words."""

import pytest
from click.shell_completion import ShellComplete

from sousa_engine.cli.main import main
from sousa_engine.core.config import RunConfig
from sousa_engine.store import Store


@pytest.fixture
def offered(workspace):
    """What is offered after these words for the last one, which is typed so far."""

    def ask(*typed: str):
        *before, last = typed
        shell = ShellComplete(main, {}, "sousa", "_SOUSA_COMPLETE")
        return [item.value for item in shell.get_completions(["--workspace", str(workspace.root), *before], last)]

    return ask


def test_commands_and_options_are_offered(offered):
    assert "train" in offered("tr") and "--dry-run" in offered("train", "--dry")


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (("train", "model=ast-m"), "model=ast-mini"),
        (("train", "data=ti"), "data=tiny"),
        (("train", "lora.method=d"), "lora.method=dora"),
        (("train", "training.max_ep"), "training.max_epochs="),
        (("train", "seed=1", "model", "=", "ast-m"), "ast-mini"),  # bash makes three words of model=ast-m
        (("train", "model", ""), "ast-mini"),  # bash's model=, as click hands it on
        (("modules", "bea"), "beats"),
        (("weights", "fetch", "mn1"), "mn10_as"),
        (("sweep", "--models", "be"), "beats-mini"),
        (("sweep", "--targets", "attention+"), "attention+mlp"),
        (("sweep", "--data", "ti"), "tiny"),
    ],
)
def test_words_and_backbones_are_offered(offered, typed, wanted):
    assert any(word.startswith(wanted) for word in offered(*typed))


@pytest.mark.parametrize("command", ["show", "stop", "resume", "tag", "note", "archive", "delete", "clone"])
def test_runs_are_offered(offered, workspace, command):
    assert offered(command, "") == []  # no database yet, and none is made
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig())
    assert offered(command, run.id[:4]) == [run.id] and "last" in offered(command, "")


def test_an_unreadable_workspace_offers_nothing_and_prints_nothing(offered, workspace, capfd):
    workspace.db.write_bytes(b"not a database" * 100)
    assert offered("show", "") == [] and offered("analyze", "") == []
    assert capfd.readouterr() == ("", "")
