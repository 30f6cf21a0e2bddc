"""What the terminal of a real studio shows while its workspace is broken and pages are open."""

from __future__ import annotations

import pytest
from seeding import no_supervisor, seed

pytestmark = pytest.mark.browser


def test_a_database_of_garbage_is_one_line_in_the_terminal_however_often_pages_look(studio, page, settled):
    with no_supervisor(studio.workspace):
        seed(studio.workspace)
        with page.expect_websocket() as stream:
            page.goto("/queue")  # a run trains: it looks every 2 s
        settled(page)
        before = studio.log.read_text()
        for path in studio.workspace.root.glob("runs.db*"):
            path.unlink()
        studio.workspace.db.write_bytes(b"garbage " * 1000)
        page.get_by_text("is not a readable SQLite database").first.wait_for()
        for _ in range(3):
            with stream.value.expect_event("framesent"):  # it looks again
                pass
    said = studio.log.read_text()[len(before) :]
    assert said.count("is not a readable SQLite database") == 1 and said.count("\n") == 1, said
