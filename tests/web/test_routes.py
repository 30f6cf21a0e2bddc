"""The JSON that live curves are drawn from, asked as a browser asks."""

import json
import math

import pytest
from seeding import Training, config
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sousa_engine.core.records import RunStatus
from sousa_engine.store.ledger import Ledger
from sousa_engine.web.routes import routes


@pytest.fixture
def client(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    with TestClient(Starlette(routes=routes())) as client:
        yield client


@pytest.fixture
def training(workspace):
    return Training.begin(workspace, config(max_epochs=100))


def live(client, run_id, **query):
    answer = client.get(f"/api/runs/{run_id}/live", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_live_answers_status_progress_and_whole_curves(client, training):
    training.steps(50)
    found = live(client, training.run.id)
    assert (found["status"], found["over"], found["device"]) == ("running", False, "cpu")
    assert found["progress"]["done"] == 50 and found["progress"]["eta_s"] > 0
    loss = found["series"]["train/loss"]
    assert loss["reset"] and loss["width"] == 1 and loss["steps"] == list(range(1, 51))
    assert found["series"]["valid/accuracy"]["steps"] == [38]
    assert loss["last"][0] == loss["steps"][-1] and loss["last"][1] == pytest.approx(loss["mean"][-1], abs=1e-4)


def test_queued_run_answers_before_its_first_point(client, workspace):
    from sousa_engine.store import Store

    with Store.open(workspace) as store:
        run = store.runs.enqueue(config())
    found = live(client, run.id)
    assert (found["status"], found["progress"], found["series"]) == ("queued", None, {})


def test_the_time_in_the_queue_counts_from_the_resume_if_there_was_one(client, workspace):
    from sousa_engine.store import Store

    at = [1_000]
    with Store.open(workspace, clock_ms=lambda: at[0]) as store:
        run = store.runs.enqueue(config())
        assert live(client, run.id)["queued_ms"] == 1_000
        for at[0] in (50_000, 90_000):
            assert Ledger(store).claim("cpu", "n") and Ledger(store).mark_running(
                run.id, "n", started_at_ms=at[0] - 9_000
            )
            assert live(client, run.id)["queued_ms"] is None
            Ledger(store).finish(run.id, RunStatus.STOPPED, "Stopped.", nonce="n")
            store.runs.resume(run.id, "Resumed.")
            assert live(client, run.id)["queued_ms"] == at[0]


def test_preparing_run_tells_how_far_its_features_are(client, workspace):
    training = Training.begin(workspace, prepared=False)
    assert live(client, training.run.id)["progress"] | {"eta_s": None} == {
        "phase": "preparing", "done": 0, "total": 1, "epoch": None, "max_epochs": None, "eta_s": None,
    }  # fmt: skip


def test_with_a_cursor_only_what_is_new_travels(client, training):
    training.steps(40)
    known = live(client, training.run.id, m="train/loss")["series"]["train/loss"]
    training.steps(5)
    since = f"{training.run.id}/train/loss@{known['width']}:{known['steps'][-1]}"
    news = live(client, training.run.id, m="train/loss", since=since)["series"]["train/loss"]
    assert not news["reset"] and news["steps"] == [40, 41, 42, 43, 44, 45]


@pytest.mark.parametrize("stops", [(300, 700, 1300, 2600), (499, 501, 1001, 1003)])
def test_joining_answers_over_time_equals_one_whole_answer(client, training, stops):
    held = None
    for stop in stops:
        training.steps(stop - training.step)
        since = f"{training.run.id}/train/loss@{held['width']}:{held['steps'][-1]}" if held else None
        query = {"m": "train/loss"} | ({"since": since} if since else {})
        news = live(client, training.run.id, **query)["series"]["train/loss"]
        if news["reset"]:
            held = news
        else:
            cut = held["steps"].index(news["steps"][0])
            held = {**news, **{c: held[c][:cut] + news[c] for c in ("steps", "mean", "low", "high")}}
    whole = live(client, training.run.id, m="train/loss")["series"]["train/loss"]
    assert {**held, "reset": True} == whole
    assert len(whole["steps"]) <= 501


def test_client_with_another_width_gets_the_whole_curve_again(client, training):
    training.steps(1200)
    since = f"{training.run.id}/train/loss@1:400"
    news = live(client, training.run.id, m="train/loss", since=since)["series"]["train/loss"]
    assert news["reset"] and news["width"] == 4 and news["steps"][0] == 1


def test_a_range_comes_in_finer_buckets(client, training):
    training.steps(2400)
    assert live(client, training.run.id, m="train/loss")["series"]["train/loss"]["width"] == 8
    detail = live(client, training.run.id, m="train/loss", first=1000, last=1200)["series"]["train/loss"]
    assert detail["width"] == 1 and detail["steps"][0] == 1000 and detail["steps"][-1] == 1200


def test_value_that_was_no_number_is_null(client, training):
    training.steps(10, diverge_at=8)
    answer = client.get(f"/api/runs/{training.run.id}/live", params={"m": "train/loss"})
    assert answer.json()["series"]["train/loss"]["mean"][-3:] == [None, None, None]
    assert all(math.isfinite(v) for v in answer.json()["series"]["train/loss"]["mean"][:7])
    assert "NaN" not in answer.text


def test_several_runs_are_answered_at_once_and_unknown_ones_named(client, training, workspace):
    training.steps(20)
    training.end(RunStatus.STOPPED, "enough")
    second = Training.begin(workspace, config(seed=1))
    second.steps(10)
    ids = [training.run.id, second.run.id, "250101-000000-none"]
    found = client.get("/api/live", params={"run": ids, "m": "train/loss"}).json()
    assert [(run["id"], run["over"]) for run in found["runs"]] == [(ids[0], True), (ids[1], False)]
    assert found["missing"] == ids[2:]
    since = f"{second.run.id}/train/loss@1:10"
    again = client.get("/api/live", params={"run": ids, "m": "train/loss", "since": since}).json()
    assert [run["series"]["train/loss"]["reset"] for run in again["runs"]] == [True, False]


@pytest.mark.parametrize("run_id", ["250101-000000-none", "a b", "x" * 65, "run;drop", "%00"])
def test_unknown_run_is_404_with_a_sentence(client, workspace, run_id):
    answer = client.get(f"/api/runs/{run_id}/live")
    assert answer.status_code == 404 and "run" in answer.json()["error"]


def test_address_that_climbs_out_is_404(client, workspace):
    assert client.get("/api/runs/%2e%2e%2f%2e%2e%2fetc/live").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        {"first": "x"},
        {"last": "-3"},
        {"points": "1"},
        {"points": "999999"},
        {"m": "../runs.db;"},
        {"m": [f"a/{i}" for i in range(13)]},
        {"since": "nonsense"},
    ],
)
def test_nonsense_in_the_address_is_400_with_a_sentence(client, training, query):
    answer = client.get(f"/api/runs/{training.run.id}/live", params=query)
    assert answer.status_code == 400 and len(answer.json()["error"]) > 10


def test_too_many_runs_or_none_is_400(client, training):
    assert client.get("/api/live").status_code == 400
    assert client.get("/api/live", params={"run": [f"r{i}" for i in range(9)]}).status_code == 400


def test_unreadable_database_is_503_with_a_sentence(client, workspace):
    workspace.db.write_bytes(b"not a database" * 100)
    answer = client.get("/api/live", params={"run": "a"})
    assert answer.status_code == 503 and "runs.db" in answer.json()["error"]


def test_nothing_can_be_written_here(client, training):
    assert client.post(f"/api/runs/{training.run.id}/live").status_code == 405
    assert client.put("/api/live").status_code == 405


def test_chart_library_is_served_with_its_licence_and_nothing_beside_it(client):
    assert "uPlot" in client.get("/assets/live_chart/uPlot.iife.min.js").text
    assert "MIT" in client.get("/assets/live_chart/uPlot.LICENSE").text
    assert client.get("/assets/live_chart/../chart.js").status_code == 404
    assert client.get("/assets/live_chart/%2e%2e/chart.js").status_code == 404


def test_long_answers_are_gzipped_and_never_cached(client, training):
    training.steps(400)
    answer = client.get(f"/api/runs/{training.run.id}/live", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip" and answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) < len(json.dumps(answer.json())) / 2
