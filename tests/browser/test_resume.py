"""A run resumed on its page continues there: its curves move again without a reload."""

from __future__ import annotations

import re
import time

import pytest
from seeding import Training, config, no_supervisor

from sousa_engine.core.records import RunStatus
from sousa_engine.data import manifest
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.training import checkpoint

pytestmark = pytest.mark.browser


def test_curves_move_again_after_resume_is_pressed(studio, page, settled):
    from playwright.sync_api import expect

    with no_supervisor(studio.workspace):
        an_hour_ago = time.time_ns() // 1_000_000 - 3_600_000
        training = Training.begin(studio.workspace, config(max_epochs=3), at_ms=an_hour_ago)
        training.steps(50)
        data = manifest.contents(manifest.open_dataset(training.run.config.data))
        checkpoint.save(training.folder / "checkpoints", 50, {}, {"epoch": 2, "best": None, "run": {"contents": data}})
        run = training.end(RunStatus.STOPPED, "Stopped at step 50.")
        page.goto(f"/run?id={run.id}")
        settled(page)
        expect(page.get_by_text("step 50", exact=True).first).to_be_visible()
        page.get_by_role("button", name="Resume", exact=True).click()
        expect(page.get_by_role("button", name="Remove from queue")).to_be_visible()
        expect(page.get_by_text(re.compile(r"^queued for \d+ s$"))).to_be_visible()  # since the resume
        with Store.open(studio.workspace) as store:
            assert Ledger(store).claim("cpu", training.nonce).id == run.id
            Ledger(store).mark_running(run.id, training.nonce, started_at_ms=training.clock[0])
        training.steps(10)
        expect(page.get_by_text("step 60", exact=True).first).to_be_visible()
        training.end(RunStatus.STOPPED, "Stopped at step 60.")
