"""Fixtures for tests of the command line."""

import pytest
from click.testing import CliRunner

from sousa_engine.cli.main import main


@pytest.fixture
def sousa(workspace, ensured):
    """sousa("queue", "show"): what the command says; its exit code was the expected one."""

    def call(*words, code=0, **options):
        done = CliRunner().invoke(main, ["--workspace", str(workspace.root), *words], **options)
        assert done.exit_code == code, done.output + done.stderr
        return done.output + done.stderr

    return call
