"""The titles of browser tabs."""

from dataclasses import replace

from seeding import config

from sousa_engine.core.records import Progress, Run, RunStatus
from sousa_engine.web import titles

RUN = Run(id="261201-054627-k7vd", config=config(name="mine"), status=RunStatus.FINISHED, created_at_ms=0)


def title(status, **progress):
    return titles.of_run(replace(RUN, status=status, progress=Progress(**progress) if progress else None))


def test_the_tab_of_a_run_begins_with_its_state_and_names_it():
    assert title(RunStatus.FINISHED, phase="testing", done=1, total=1) == "mine · k7vd · SOUSA"
    assert title(RunStatus.QUEUED) == "queued · mine · k7vd · SOUSA"
    assert title(RunStatus.FAILED, phase="training", done=3, total=9) == "failed · mine · k7vd · SOUSA"
    assert title(RunStatus.RUNNING, phase="preparing", done=3, total=9) == "running · mine · k7vd · SOUSA"
    assert title(RunStatus.RUNNING, phase="training", done=199, total=200) == "99 % · mine · k7vd · SOUSA"
    assert title(RunStatus.RUNNING, phase="testing", done=0, total=9) == "100 % · mine · k7vd · SOUSA"


def test_two_runs_of_one_title_have_two_tabs():
    assert titles.of_run(RUN) != titles.of_run(replace(RUN, id="261201-054627-bpyd"))


def test_the_tab_of_a_comparison_names_its_first_runs():
    assert titles.of_comparison([]) == "Compare · SOUSA"
    assert titles.of_comparison([RUN] * 2) == "Compare mine, mine · SOUSA"
    assert titles.of_comparison([RUN] * 5) == "Compare mine, mine, mine and 2 more · SOUSA"
