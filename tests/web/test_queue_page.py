"""The Queue page as a visitor uses it, without a browser."""

from seeding import Training, config
from visiting import checked, click, words

from sousa_engine.core.records import RunStatus
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger


def test_the_queue_is_ordered_on_its_page(visit, workspace, ensured):
    training = Training.begin(workspace)
    training.steps(5)
    with Store.open(workspace) as store:
        a, b, c = (store.runs.enqueue(config(seed=seed, name=f"run {seed}")).id for seed in (1, 2, 3))

    def order():
        with Store.open(workspace) as store:
            return [row.id for row in store.queue.waiting()]

    app = visit("queue")
    assert app.title[0].value == "Queue"
    assert "Waiting: 3" in words(app)
    assert app.button(key=f"front-{a}").disabled and app.button(key=f"down-{c}").disabled
    click(app, f"front-{c}")
    assert order() == [c, a, b]
    click(app, f"down-{c}")
    assert order() == [a, c, b]
    click(app, f"up-{b}")
    assert order() == [a, b, c]
    app = click(app, f"out-{b}")
    assert order() == [a, c] and "Waiting: 2" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.get(b).status is RunStatus.STOPPED
        training.end(RunStatus.STOPPED, "x")
        assert Ledger(store).claim("cpu", "n").id == a
    app = click(app, f"front-{c}")  # meanwhile the other one left the queue
    assert "place 1" in app.toast[0].value


def test_a_paused_queue_is_told_on_every_page_until_it_goes_on(visit, workspace, ensured):
    with Store.open(workspace) as store:
        store.runs.enqueue(config())
    app = visit("queue")
    assert not app.warning
    app = click(app, "pause")
    assert "The queue has been paused since" in app.warning[0].value
    assert "The queue has been paused since" in visit("launch").warning[0].value
    with Store.open(workspace) as store:
        assert store.queue.settings().is_paused
    app = click(app, "resume")
    assert not app.warning and ensured == [workspace]
    with Store.open(workspace) as store:
        assert not store.queue.settings().is_paused


def test_cpu_slots_are_set_on_the_page_of_the_queue(visit, workspace, ensured):
    app = visit("queue")
    checked(app.text_input(key="cpu_slots-1").set_value("3").run())
    with Store.open(workspace) as store:
        assert store.queue.settings().cpu_slots == 3
    assert [badge.value for badge in app.markdown if "cpu:2" in str(badge.value)]
