"""A row that cannot be read is shown as such, and holds up nothing else."""

from __future__ import annotations

import pytest

from sousa_engine.core.config import RunConfig, build, with_values
from sousa_engine.core.errors import ConfigError, UnreadableError
from sousa_engine.core.records import RunStatus

DAMAGE = {
    "a field of a newer version": "config_json = json_set(config_json, '$.training.of_next_year', 1)",
    "a seed out of range": "config_json = json_set(config_json, '$.seed', 3000000000)",
    "a number of 400 digits": "config_json = json_set(config_json, '$.training.lr', json(printf('1%.400c', '0')))",
    "a method of a newer version": "config_json = json_set(config_json, '$.lora.method', 'next')",
    "a name that turns text": "name = 'gnp' || char(0x202E)",
    "half a character": "config_json = json_set(config_json, '$.device', CAST(x'EDA080' AS TEXT))",
    "attempts that are none": "facts_json = json_set(facts_json, '$.earlier', 5)",
    "facts that are a list": "facts_json = '[1]'",
    "tags that are a number": "tags_json = '7'",
    "a setting that is text": "setting_json = '\"seed\"'",
    "the progress of something else": 'progress_json = \'{"phase": 1, "done": "x", "total": []}\'',
}


@pytest.fixture
def odd(store, request):
    """A run that cannot be read, between two that can."""
    ids = [store.runs.enqueue(build({"seed": seed})).id for seed in range(3)]
    with store.connection.writing() as db:
        db.execute(f"UPDATE runs SET {DAMAGE[request.param]} WHERE id = ?", [ids[1]])
    return ids[1]


every_damage = pytest.mark.parametrize("odd", DAMAGE, indirect=True)


@every_damage
def test_it_says_why_and_the_others_are_listed(store, odd):
    run = store.runs.get(odd)
    assert run is not None and "cannot be read" in run.unreadable and "delete it" in run.unreadable
    assert [one.id for one in store.runs.unreadable()] == [odd]
    assert len(store.runs.all()) == 2 and all(not one.unreadable for one in store.runs.all())
    assert len(store.runs.listing(sort="took").rows) == 3 and [row.trains for row in store.runs.listing().rows]
    assert run.title and run.seconds is None and run.earlier_ms == ()


@every_damage
def test_it_can_be_stopped_and_deleted(store, odd):
    assert store.runs.request_stop(odd).status is RunStatus.STOPPED
    store.marks.delete([odd])
    assert len(store.runs.listing().rows) == 2


@pytest.mark.parametrize("odd", ["a field of a newer version"], indirect=True)
def test_who_asks_for_a_setting_of_it_learns_why_there_is_none(store, odd):
    with pytest.raises(UnreadableError, match="of_next_year"):
        _ = store.runs.get(odd).config.seed


def test_no_value_comes_into_a_config_without_a_check():
    assert with_values(RunConfig(), seed=7) == build({"seed": 7})
    for wrong in ({"seed": 3_000_000_000}, {"name": "gnp\u202e"}, {"of_next_year": 1}):
        with pytest.raises(ConfigError):
            with_values(RunConfig(), **wrong)


def test_a_clock_that_was_set_back_makes_no_negative_time(store):
    run = store.runs.enqueue(RunConfig())
    with store.connection.writing() as db:
        db.execute(
            "UPDATE runs SET status = 'stopped', slot = 'cpu', started_at_ms = 9000, ended_at_ms = 5 WHERE id = ?",
            [run.id],
        )
    assert store.runs.get(run.id).seconds is None
    assert store.runs.listing(sort="took").rows[0].seconds is None
    store.runs.resume(run.id, "Again.")
    with store.connection.writing() as db:
        db.execute("UPDATE runs SET status = 'stopped', started_at_ms = 5, ended_at_ms = 9000 WHERE id = ?", [run.id])
    assert store.runs.get(run.id).seconds is None
    assert store.runs.listing(sort="took").rows[0].seconds is None
