"""Routes that need no rerun of a page: JSON for live curves, and the chart library itself. GET only.

    GET api/runs/{id}/live?m=train/loss&m=valid/loss              one run: status, progress, complete curves
    GET api/live?run=A&run=B&m=train/loss                         several runs at once
        &since=A/train/loss@4:1233     what the client has: buckets of 4 steps, the newest of which starts at step 1233
        &first=200&last=300            a range in finer buckets, for a zoomed chart
        &points=500                    the approximate maximum number of buckets per curve

A curve is sent in buckets of `width` steps: from the client's newest bucket on (which may have grown), or completely
with `reset` when the width has changed. NaN and infinite values are null. The app's middleware checks the Host.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from sousa_engine.core.errors import SousaError, UnknownNameError
from sousa_engine.core.records import Curve, Run, Summary
from sousa_engine.store import Store
from sousa_engine.web import titles
from sousa_engine.web.components.live_chart import ASSETS
from sousa_engine.workspace import default_workspace

DEFAULT_METRICS = ("train/loss", "valid/loss", "train/accuracy", "valid/accuracy")
MOST_RUNS, MOST_METRICS, MOST_POINTS = 8, 12, 4000
_RUN_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_METRIC = re.compile(r"[0-9A-Za-z_.-]+(/[0-9A-Za-z_.-]+)*")
_SINCE = re.compile(rf"({_RUN_ID.pattern})/(.+)@(\d{{1,9}}):(\d{{1,12}})")


def routes() -> list[BaseRoute]:
    packed = [Middleware(GZipMiddleware, minimum_size=1000)]
    return [
        Route("/api/runs/{run_id}/live", _answering(one_live), methods=["GET"], middleware=packed),
        Route("/api/live", _answering(several_live), methods=["GET"], middleware=packed),
        Mount("/assets/live_chart", StaticFiles(directory=ASSETS)),
    ]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A validated request for curves. since: (run id, metric) -> (width, first step of the client's newest bucket)."""

    metrics: tuple[str, ...]
    since: Mapping[tuple[str, str], tuple[int, int]]
    first: int | None
    last: int | None
    points: int


class BadRequest(ValueError):
    """The URL is invalid; str(error) says why."""


def one_live(request: Request) -> dict[str, Any]:
    run_id, asked = request.path_params["run_id"], _asked(request)
    if not _RUN_ID.fullmatch(run_id):
        raise UnknownNameError(f"{run_id[:64]!r} is not a run id.")
    with Store.open(default_workspace()) as store:
        run = store.runs.get(run_id)
        if run is None:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return {"now_ms": _now_ms(), **_live(store, run, asked, store.metrics.summaries([run_id])[run_id])}


def several_live(request: Request) -> dict[str, Any]:
    ids, asked = tuple(dict.fromkeys(request.query_params.getlist("run"))), _asked(request)
    if not 1 <= len(ids) <= MOST_RUNS or not all(_RUN_ID.fullmatch(run_id) for run_id in ids):
        raise BadRequest(f"Give 1 to {MOST_RUNS} run ids: run=ID.")
    with Store.open(default_workspace()) as store:
        found = {run_id: store.runs.get(run_id) for run_id in ids}
        measured = store.metrics.summaries(ids)
        return {
            "now_ms": _now_ms(),
            "runs": [_live(store, run, asked, measured[run.id]) for run in found.values() if run],
            "missing": [run_id for run_id, run in found.items() if run is None],
        }


def _live(store: Store, run: Run, asked: Asked, measured: Mapping[str, Summary]) -> dict[str, Any]:
    series = {}
    for metric in asked.metrics:
        curve = store.metrics.curve(run.id, metric, first=asked.first, last=asked.last, max_points=asked.points)
        if curve.steps:
            series[metric] = _news(curve, asked.since.get((run.id, metric)))
            if last := measured.get(metric):
                series[metric]["last"] = [last.last_step, last.last]  # the measured value, as a bucket is a mean
    return {
        "id": run.id,
        "tab": titles.of_run(run),
        "status": run.status.value,
        "over": run.status.is_over,
        "reason": run.reason,
        "device": run.device,
        "progress": _progress(run),
        "queued_ms": None if run.started_at_ms else store.queue.queued_at_ms(run.id),
        # Shifted by the time it ran before it was resumed, so that subtracting it gives the total time.
        "started_ms": run.started_at_ms and run.started_at_ms - sum(end - start for start, end in run.earlier_ms),
        "ended_ms": run.ended_at_ms,
        "series": series,
    }


def _news(curve: Curve, since: tuple[int, int] | None) -> dict[str, Any]:
    reset = since is None or since[0] != curve.width or since[1] not in curve.steps
    start = 0 if reset else curve.steps.index(since[1])  # pyright: ignore[reportOptionalSubscript]
    return {
        "width": curve.width,
        "reset": reset,
        "steps": curve.steps[start:],
        "mean": [_short(value) for value in curve.mean[start:]],
        "low": [_short(value) for value in curve.low[start:]],
        "high": [_short(value) for value in curve.high[start:]],
    }


def _progress(run: Run) -> dict[str, Any] | None:
    if run.progress is None:
        return None
    values = asdict(run.progress)
    eta = values["eta_s"]
    return values | {"eta_s": round(eta, 1) if eta is not None and math.isfinite(eta) else None}


def _asked(request: Request) -> Asked:
    query = request.query_params
    metrics = tuple(dict.fromkeys(query.getlist("m"))) or DEFAULT_METRICS
    if len(metrics) > MOST_METRICS or not all(len(m) <= 80 and _METRIC.fullmatch(m) for m in metrics):
        raise BadRequest(f"Give up to {MOST_METRICS} metrics, such as m=train/loss.")
    since = {}
    for item in query.getlist("since"):
        match = _SINCE.fullmatch(item)
        if match is None:
            raise BadRequest("since must have the form RUN/METRIC@WIDTH:STEP.")
        since[match[1], match[2]] = (int(match[3]), int(match[4]))
    points = _number(query.get("points"), "points") or 500
    if not 16 <= points <= MOST_POINTS:
        raise BadRequest(f"points must be between 16 and {MOST_POINTS}.")
    first, last = _number(query.get("first"), "first"), _number(query.get("last"), "last")
    return Asked(metrics=metrics, since=since, first=first, last=last, points=points)


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,12}", text):
        raise BadRequest(f"{name} = {text[:40]!r} is not a whole number.")
    return int(text)


def _answering(read: Callable[[Request], dict[str, Any]]) -> Callable[[Request], JSONResponse]:
    """The endpoint around `read`. Not async: Starlette runs it in a thread, so SQLite never blocks the event loop."""

    @wraps(read)
    def endpoint(request: Request) -> JSONResponse:
        try:
            body, code = read(request), 200
        except BadRequest as error:
            body, code = {"error": str(error)}, 400
        except UnknownNameError as error:
            body, code = {"error": str(error)}, 404
        except SousaError as error:
            body, code = {"error": str(error)}, 503
        return JSONResponse(body, status_code=code, headers={"Cache-Control": "no-store"})

    return endpoint


def _short(value: float | None) -> float | None:
    """Six digits, rounded as float64: float32 would print its rounding noise."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
