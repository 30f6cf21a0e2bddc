"""The Runs page as a visitor uses it, without a browser."""

import pytest
from seeding import Training, config
from visiting import chart, checked, click, components, ids, table, words

from sousa_engine.core.records import RunStatus, SweepRun
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT

PAGES = PROJECT_ROOT / "pages"


def tell(app, **state):
    """What the browser would: ticks=[ids], view={...}; the page then ran."""
    return checked(leave(app, **state).run())


def leave(app, **state):
    """As `tell`, but the page did not run yet: what it shows is older than the ticks."""
    given = chart(app)
    sent = dict(app.session_state.get("runs_table", {}))
    if "ticks" in state:
        sent["ticks"] = {"rev": given["seed_rev"], "ids": state["ticks"]}
    if "view" in state:
        unmoved = {"sort": "created", "descending": True, "page": 0, "of": given["of"], "request": 1}
        sent["view"] = unmoved | state["view"]
    app.session_state["runs_table"] = sent
    return app


def test_empty_workspace_invites_to_launch(visit):
    app = visit("runs")
    assert "Nothing trained yet" in words(app)
    assert not components(app)


def test_every_run_is_listed_newest_first_with_its_n(visit_week, week):
    app = visit_week("runs")
    found = {row["id"]: row for row in table(app)}
    assert chart(app)["total"] == len(found) == len(week[1]) == 11
    assert [row["status"] for row in found.values()][:3] == ["queued", "running", "finished"]
    finished = found[week[1]["finished"].id]
    assert finished["test_n"] == 200 and 0.5 < finished["test"] < 0.7 and finished["progress"] == 1
    assert len(finished["sparkline"]) == 10 and finished["sparkline"][-1] > finished["sparkline"][0]
    assert finished["targets"] == "attention+mlp · 24 modules" and finished["trainable"] == 118_696
    stopped = found[week[1]["stopped"].id]
    assert round(stopped["progress"], 2) == 0.42 and stopped["test"] is None and stopped["test_n"] is None
    running = found[week[1]["running"].id]
    assert running["progress"] == 0.5 and running["valid_n"] == 200 and running["took_s"] is None


def test_random_weights_are_labelled_in_the_list(visit_week, week):
    labels = {row["id"]: (row["weights"], row["random"]) for row in table(visit_week("runs"))}
    assert labels[week[1]["random"].id] == ("random weights", True)
    assert labels[week[1]["finished"].id] == ("pretrained", False)


def test_list_is_filtered_by_text_and_status(visit_week, week):
    app = visit_week("runs")
    app.text_input(key="q").set_value("ATTENTION only")
    assert ids(checked(app.run())) == [week[1]["attention"].id]
    app.text_input(key="q").set_value("")
    app.session_state["status"] = ["failed", "lost"]
    assert set(ids(checked(app.run()))) == {week[1]["failed"].id, week[1]["lost"].id}
    app.text_input(key="q").set_value("no such run")
    assert "No run matches" in words(checked(app.run()))


def test_headings_sort_the_whole_list_and_what_is_missing_comes_last(visit_week, week):
    app = tell(visit_week("runs"), view={"sort": "test"})
    measured = [row["test"] for row in table(app) if row["test"] is not None]
    assert len(measured) == 6 and measured == sorted(measured, reverse=True)
    assert [row["test"] for row in table(app)][6:] == [None] * 5
    app = tell(app, view={"sort": "test", "descending": False})
    assert [row["test"] for row in table(app)] == measured[::-1] + [None] * 5
    app = tell(app, view={"sort": "title", "descending": False})
    assert [row["title"] for row in table(app)][:2] == ["ast-mini · tiny · seed 1", "ast-mini · tiny · seed 2"]
    given = chart(tell(app, view={"sort": "1; DROP TABLE runs"}))
    assert given["sort"] == "title", "an unknown sort order is ignored"


def test_a_run_queued_elsewhere_is_noticed(visit, workspace):
    Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    app = visit("runs")
    with Store.open(workspace) as store:
        store.runs.enqueue(config(seed=2))
    assert [row["status"] for row in table(checked(app.run()))] == ["queued", "finished"]


def test_ticked_runs_open_compare_with_exactly_these_runs(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["rank 16"].id]
    app = visit_week("runs")
    assert app.button(key="compare_runs").disabled and app.button(key="open_run").disabled
    app = tell(app, ticks=chosen)
    assert app.button(key="open_run").disabled
    app = click(app, "compare_runs")
    assert app.query_params["run"] == chosen
    assert app.title[0].value == "Compare"


def test_one_ticked_run_opens_its_page(visit_week, week):
    app = tell(visit_week("runs"), ticks=[week[1]["attention"].id])
    app = click(app, "open_run")
    assert app.query_params["id"] == week[1]["attention"].id
    assert app.title[0].value == "attention only"


def test_ticks_stay_with_their_runs_when_runs_arrive_and_the_order_and_the_filter_change(visit, workspace):
    chosen = [Training.begin(workspace, config(seed=seed, max_epochs=1)).finish().id for seed in (1, 2)]
    app = tell(visit("runs"), ticks=chosen)
    sent = chart(app)["seed"], chart(app)["seed_rev"]
    with Store.open(workspace) as store:
        newest = store.runs.enqueue(config(seed=3, name="zebra"))
    app = checked(app.run())
    assert ids(app) == [newest.id, *chosen[::-1]]
    app = tell(app, view={"sort": "title", "descending": False})
    assert ids(app) == [*chosen, newest.id]
    app.text_input(key="q").set_value("zebra")
    app = checked(app.run())
    assert ids(app) == [newest.id] and "2 runs ticked, 2 of them not shown here" in words(app)
    assert (chart(app)["seed"], chart(app)["seed_rev"]) == sent, "the ticks were sent back to the browser"
    app = click(app, "compare_runs")
    assert app.query_params["run"] == chosen


def test_ticks_come_back_with_the_page_and_unknown_ids_are_dropped(visit, workspace):
    run = Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    app = tell(visit("runs"), ticks=[run.id, "nonsense", "../../etc"])
    assert "1 run ticked" in words(app) and not app.button(key="open_run").disabled
    assert chart(app)["seed"] == [run.id] and chart(app)["seed_rev"] > 0
    app = checked(app.switch_page(str(PAGES / "home.py")).run())
    app = checked(app.switch_page(str(PAGES / "runs.py")).run())
    assert "1 run ticked" in words(app) and chart(app)["seed"] == [run.id]
    assert "ticked" not in words(click(app, "untick_runs"))


def test_a_list_is_paged_and_another_list_begins_at_its_top(visit, workspace):
    with Store.open(workspace) as store:
        for seed in range(130):
            store.runs.enqueue(config(seed=seed, name=f"n{seed}"))
    app = visit("runs")
    assert (chart(app)["total"], chart(app)["first"], len(table(app))) == (130, 0, 100)
    app = tell(app, view={"page": 1})
    assert (chart(app)["first"], len(table(app))) == (100, 30) and table(app)[-1]["seed"] == 0
    assert chart(tell(app, view={"page": 7}))["first"] == 100, "the last page there is"
    app.text_input(key="q").set_value("n12")
    app = checked(app.run())
    assert (chart(app)["first"], chart(app)["total"]) == (0, 11)


# What is done with what is ticked


@pytest.fixture
def two(workspace):
    """Two finished runs, newest last."""
    return [Training.begin(workspace, config(seed=seed, max_epochs=1)).finish() for seed in (1, 2)]


def test_ticked_runs_are_tagged_in_a_dialog_and_found_by_their_tag(visit, workspace, two):
    app = tell(visit("runs"), ticks=[run.id for run in two])
    app = click(app, "tag_runs")
    assert app.button(key="tags_save").disabled
    app.session_state["tags_added"] = ["best", "paper"]
    app = click(checked(app.run()), "tags_save")
    with Store.open(workspace) as store:
        assert store.marks.tags() == {"best": 2, "paper": 2}
        store.marks.remove_tags([two[0].id], ["best"])
    assert "2 runs tagged." in [toast.value for toast in app.toast]
    assert not [button for button in app.button if button.key == "tags_save"], "the dialog is closed"
    app.multiselect(key="tag").set_value(["best"])
    app = checked(app.run())
    assert ids(app) == [two[1].id] and table(app)[0]["tags"] == ["best", "paper"]


def test_what_cannot_be_a_tag_is_refused_in_a_sentence(visit, workspace, two):
    app = click(tell(visit("runs"), ticks=[two[0].id]), "tag_runs")
    app.session_state["tags_added"] = ["x" * 41]
    app = click(checked(app.run()), "tags_save")
    assert "one line of 1 to 40 characters" in app.toast[0].value
    assert app.button(key="tags_save"), "the dialog stays"


def test_archived_runs_leave_the_list_and_have_one_of_their_own(visit, workspace, two):
    app = tell(visit("runs"), ticks=[two[0].id])
    app = click(app, "archive_runs")
    assert ids(app) == [two[1].id] and "archived" in app.toast[0].value
    app.toggle(key="archived").set_value(True)
    app = checked(app.run())
    assert ids(app) == [two[0].id]
    app = click(app, "unarchive_runs")
    assert "No run matches" in words(app)
    app.toggle(key="archived").set_value(False)
    assert set(ids(checked(app.run()))) == {run.id for run in two}


def test_one_run_is_deleted_after_a_question_and_the_tick_goes_with_it(visit, workspace, two):
    app = tell(visit("runs"), ticks=[two[0].id])
    app = click(app, "delete_runs")
    assert two[0].title in words(app) and " MB" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.get(two[0].id), "asking deletes nothing"
    app = click(app, "delete_now")
    assert ids(app) == [two[1].id] and "ticked" not in words(app)
    assert not workspace.run_dir(two[0].id).exists() and workspace.run_dir(two[1].id).is_dir()
    assert "1 run deleted." in [toast.value for toast in app.toast]


def test_several_runs_are_deleted_only_once_their_number_is_typed(visit, workspace, two):
    app = tell(visit("runs"), ticks=[run.id for run in two])
    app = click(app, "delete_runs")
    assert two[0].id in words(app) and two[1].id in words(app)
    assert app.button(key="delete_now").disabled
    app.text_input(key="delete_word").set_value("delete 3")
    assert checked(app.run()).button(key="delete_now").disabled
    app.text_input(key="delete_word").set_value("delete 2")
    app = click(checked(app.run()), "delete_now")
    assert "Nothing trained yet" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.all() == ()


def test_runs_that_are_not_over_can_be_stopped_and_nothing_else(visit, workspace, ensured, two):
    with Store.open(workspace) as store:
        queued = store.runs.enqueue(config(seed=3))
    app = tell(visit("runs"), ticks=[two[0].id, queued.id])
    assert app.button(key="archive_runs").disabled and app.button(key="delete_runs").disabled
    assert "1 of these is still queued or running" in app.button(key="delete_runs").help
    app = click(app, "stop_runs")
    assert ensured == [workspace]
    with Store.open(workspace) as store:
        run = store.runs.get(queued.id)
    assert run is not None and run.status is RunStatus.STOPPED
    assert not app.button(key="delete_runs").disabled
    assert app.button(key="stop_runs").disabled and app.button(key="kill_runs").disabled


def test_a_button_acts_on_what_is_ticked_when_it_is_clicked_not_when_it_was_drawn(visit, workspace, ensured, two):
    """A tick and a click on a button can reach the server together."""
    both = [run.id for run in two]
    with Store.open(workspace) as store:
        queued = [store.runs.enqueue(config(seed=seed)).id for seed in (3, 4)]
    app = tell(visit("runs"), ticks=queued[:1])
    click(leave(app, ticks=queued), "stop_runs")
    with Store.open(workspace) as store:
        assert [store.runs.get(run_id).status for run_id in queued] == [RunStatus.STOPPED] * 2
        store.marks.delete(queued)
    app = click(leave(tell(app, ticks=both[:1]), ticks=both), "delete_runs")
    assert all(f"`{run_id}`" in words(app) for run_id in both)
    app = click(leave(tell(visit("runs"), ticks=both), ticks=both[:1]), "archive_runs")
    assert ids(app) == both[1:], "the one that was unticked stays"
    before = words(app := tell(app, ticks=both[1:]))
    app = click(leave(app, ticks=[]), "delete_runs")
    assert "1 run ticked" in before and not [button for button in app.button if button.key == "delete_now"]


def test_the_list_of_a_sweep_is_the_runs_of_that_sweep(visit, workspace):
    with Store.open(workspace) as store:
        store.runs.enqueue(config(seed=9))
        runs = [SweepRun(config(seed=seed), 0, {}) for seed in (1, 2)]
        sweep = store.sweeps.add("ranks", {}, runs, created_by="page")
    app = visit("runs", of_sweep=f"ranks · {sweep.id}")
    assert sorted(row["seed"] for row in table(app)) == [1, 2]


def test_runs_that_are_ticked_are_cloned(visit, workspace, ensured):
    with Store.open(workspace) as store:
        ids = [store.runs.request_stop(store.runs.enqueue(config(seed=seed)).id).id for seed in (1, 2, 3)]
    app = tell(visit("runs"), ticks=ids[:2])
    click(app, "clone_runs")
    with Store.open(workspace) as store:
        assert [row.seed for row in store.queue.waiting()] == [1, 2]
        assert app.button(key="clone_runs").disabled  # cloned runs are no longer ticked, so an extra click does nothing
