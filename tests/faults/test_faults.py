"""A short cut of `make faults`: some rounds of every kind, with a seed of the day's choosing, printed on a failure."""

from __future__ import annotations

import json
import os
import secrets

import pytest

from sousa_engine.workspace import PROJECT_ROOT
from tests.faults.__main__ import RESULTS, table
from tests.faults.kinds import KINDS, NoDisk, play

pytestmark = pytest.mark.process
SEED = os.environ.get("FAULTS_SEED") or str(secrets.randbelow(10**6))


@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_loses_doubles_or_leaves_anything(kind):
    try:
        tally = play(kind, 2, SEED, beside=2)
    except NoDisk as why:
        pytest.skip(f"A small disk cannot be made here: {why}")
    assert tally.rounds == 2 and (tally.acknowledged or not KINDS[kind].rows)
    assert not any(tally.faults.values()), f"FAULTS_SEED={SEED}: {tally.faults}\n" + "\n".join(tally.notes)


def test_readme_shows_what_was_counted():
    kinds = json.loads(RESULTS.read_text())["kinds"]
    assert list(kinds) == [kind.title for kind in KINDS.values()] and all(k["rounds"] >= 50 for k in kinds.values())
    assert table(kinds) in (PROJECT_ROOT / "README.md").read_text()
