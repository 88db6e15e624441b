"""Answers that never arrive: what the server has taken is not taken a second time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow

from tests.faults.conftest import WAIT_S, finished, recorded, wait_until
from tests.faults.exactness import assert_exact, only_run
from tests.faults.proxy import FaultProxy, Request
from unified_tracker._journal import Journal
from unified_tracker.records import Metrics, Params, Tags

CREATE = "/api/2.0/mlflow/runs/create"
SEARCH = "/api/2.0/mlflow/runs/search"


def creates(request: Request) -> bool:
    return request.path == CREATE


def test_a_lost_answer_does_not_make_a_second_run(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [Metrics(1000 + i, i, {"x": i / 7}) for i in range(50)] + [finished()])
    proxy.fault("drop_answer", matches=creates, times=3)
    assert uploaders(run_dir).wait(WAIT_S) == 0
    assert proxy.counts["drop_answer"] >= 1
    assert_exact(server, run_dir)


def test_runs_that_late_requests_have_made_are_ended_and_point_to_the_one_in_use(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    """A request that is slow on its way: the client gives up, looks, finds nothing, and asks again, three times."""
    run_dir = recorded(tmp_path, proxy.url, [Metrics(1000 + i, i, {"x": i / 7}) for i in range(50)])
    proxy.fault("delay", matches=creates, times=3, seconds=5.0)
    uploader = uploaders(run_dir, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
    wait_until(lambda: sum(creates(request) for request in proxy.requests) >= 3)
    client = mlflow.MlflowClient(server)

    def all_runs() -> list[mlflow.entities.Run]:
        experiment = client.get_experiment_by_name(f"{tmp_path.parent.name}-{tmp_path.name}")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    assert uploader.wait(WAIT_S) == 0
    wait_until(lambda: len(all_runs()) >= 3)
    # The lane may have been through before the last of them was made: whoever delivers next finds it.
    writer = Journal(run_dir / "journal")
    writer.append(Tags(5000, {"again": "yes"}))
    writer.append(finished())
    writer.close()
    assert uploaders(run_dir).wait(WAIT_S) == 0
    used = only_run(server, run_dir)
    strays = [run for run in all_runs() if run.info.run_id != used.info.run_id]
    assert len(strays) >= 2
    for stray in strays:
        assert stray.data.tags["unified_tracker.duplicate_of"] == used.info.run_id
        assert stray.info.status == "KILLED"
    assert used.info.status == "FINISHED"
    assert used.data.tags["again"] == "yes"
    assert_exact(server, run_dir)


def test_every_first_answer_is_lost(proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable) -> None:
    """Every request that changes something is repeated: nothing may stand twice."""
    records = [
        Params(1000, {"lr": 0.02, "steps": [1, 2]}),
        *(Metrics(1000 + i, i, {"a": i / 3, "nan": float("nan"), "inf": float("-inf")}) for i in range(30)),
        Params(2000, {"lr": 0.01}),
        Tags(3000, {"k": "v"}),
        finished(),
    ]
    run_dir = recorded(tmp_path, proxy.url, records)
    seen: set[tuple[str, bytes]] = set()

    def first_time(request: Request) -> bool:
        key = (request.path, request.body)
        new = request.method != "GET" and not request.path.endswith("search") and key not in seen
        seen.add(key)
        return new

    proxy.fault("drop_answer", matches=first_time)
    assert uploaders(run_dir).wait(WAIT_S) == 0
    assert proxy.counts["drop_answer"] > 5
    assert_exact(server, run_dir)
    run = only_run(server, run_dir)
    assert run.data.params == {"lr": "0.02", "steps": "[1, 2]"}
    changed = [value for tag, value in run.data.tags.items() if tag.startswith("unified_tracker.param_changed.lr.")]
    assert changed == ["0.01"]
    assert run.data.tags["unified_tracker.delivery"] == "complete"
