"""What a server refuses: for now, for good, or because the run is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.faults.conftest import WAIT_S, finished, recorded, state, sync, wait_until
from tests.faults.exactness import Row, assert_exact, only_run
from tests.faults.exactness import row as stored_row
from tests.faults.proxy import FaultProxy, Request
from unified_tracker import RejectedError, TransientError
from unified_tracker._journal import Journal
from unified_tracker._ledger import Ledger
from unified_tracker.backends._mlflow import create
from unified_tracker.records import Metrics
from unified_tracker.testing import entry, run_info


def tracker(uri: str, folder: Path, run_id: str = "abcd1234"):
    options = {"tracking_uri": uri, "artifact_location": None, "run_id": None, "owned": True}
    return create(run_info("mlflow", run_id), folder, options)


def row(number: int, **values: float) -> Metrics:
    return Metrics(1_700_000_000_000 + number, number, values)


def holds_poison(request: Request) -> bool:
    return b'"metrics"' in request.body and b"poison" in request.body


@pytest.mark.parametrize(
    ("status", "headers", "kind", "asked", "suspect"),
    [
        (429, {"Retry-After": "3"}, TransientError, 3.0, False),
        (503, {"Retry-After": "7"}, TransientError, 7.0, False),
        (503, {}, TransientError, None, False),
        (500, {}, TransientError, None, True),
        (502, {}, TransientError, None, True),
        (401, {}, TransientError, None, False),
        (403, {}, TransientError, None, False),
        (413, {}, RejectedError, None, False),
    ],
)
def test_what_a_status_means(
    status: int,
    headers: dict[str, str],
    kind: type[Exception],
    asked: float | None,
    suspect: bool,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    subject = tracker(proxy.url, tmp_path)
    subject.open(run_info("mlflow"))
    proxy.fault("status", status=status, headers=headers, text="as the server puts it", times=1)
    with pytest.raises(kind, match="as the server puts it") as raised:
        subject.log_metrics([entry(1, row(1, x=1.0))])
    assert getattr(raised.value, "retry_after_s", None) == asked
    assert getattr(raised.value, "suspect", False) is suspect
    subject.log_metrics([entry(1, row(1, x=1.0))])


def test_an_answer_that_is_not_the_servers_refuses_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    """A captive portal, a proxy's page: HTTP 200, and no MLflow."""
    subject = tracker(proxy.url, tmp_path)
    subject.open(run_info("mlflow"))
    for text in ("<html>please log in</html>", "[]", '{"unexpected": {}}' * 2, '"'):
        proxy.fault("status", status=200, text=text, times=1)
        with pytest.raises(TransientError):
            subject.log_metrics([entry(1, row(1, x=1.0))])


def test_wrong_credentials_keep_everything_and_say_what_mends_it(
    proxy: FaultProxy, server: str, tmp_path: Path
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*(row(i, x=1.0) for i in range(20)), finished()])
    proxy.fault("status", status=401, text="You are not authenticated")
    assert sync(tmp_path, UNIFIED_TRACKER_LINGER_S="1").returncode == 2
    error = state(run_dir).error or ""
    assert "MLFLOW_TRACKING_USERNAME" in error
    assert state(run_dir).set_aside == 0
    proxy.calm()
    assert sync(tmp_path).returncode == 0
    assert_exact(server, run_dir)


def test_a_record_at_which_the_server_fails_for_ever_is_set_aside_and_its_neighbours_arrive(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    records = [row(i, a=float(i), b=1.0) for i in range(150)]
    records.insert(70, row(500, poison=1.0, innocent=2.0))
    run_dir = recorded(tmp_path, proxy.url, [*records, finished()])
    proxy.fault("status", status=500, matches=holds_poison)
    assert uploaders(run_dir).wait(2 * WAIT_S) == 0
    refused: Counter[Row] = Counter({stored_row("poison", 500, 1_700_000_000_500, 1.0): 1})
    assert_exact(server, run_dir, missing=refused)
    assert only_run(server, run_dir).data.tags["unified_tracker.set_aside"] == "1"
    ledger = Ledger(run_dir / "lanes" / "mlflow.db")
    ((_, detail, reason),) = ledger.all_set_aside()
    ledger.close()
    assert detail == "metrics poison"
    assert "made up by the proxy" in reason


def test_a_first_and_only_value_at_which_the_server_fails_for_ever_holds_nothing_up(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    """The run has no metric that could be written again as a proof of life."""
    run_dir = recorded(tmp_path, proxy.url, [row(1, poison=1.0), finished()])
    fault = proxy.fault("status", status=500, matches=lambda request: b'"metrics"' in request.body)
    uploader = uploaders(run_dir)
    wait_until(lambda: proxy.counts["status"] >= 9)  # of them canaries: as long as no metric is taken, it waits
    assert (state(run_dir).set_aside, state(run_dir).done) == (0, False)
    fault.matches = holds_poison
    assert uploader.wait(2 * WAIT_S) == 0
    run = only_run(server, run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.tags["unified_tracker.delivery"] == "partial"
    assert run.data.tags["unified_tracker.set_aside_why"].startswith("metrics poison: ")
    assert set(run.data.metrics) == {"unified_tracker.canary"}
    (only,) = mlflow.MlflowClient(server).get_metric_history(run.info.run_id, "unified_tracker.canary")
    assert (only.value, only.step) == (0.0, 0)


def test_a_server_that_fails_at_everything_loses_nothing(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    """However long: a server that does not take its canary either is broken, not the records."""
    run_dir = recorded(tmp_path, proxy.url, [*(row(i, a=float(i)) for i in range(10)), finished()])

    fault = proxy.fault("status", status=500, matches=lambda request: request.path.endswith("log-batch"))
    uploader = uploaders(run_dir)
    wait_until(lambda: proxy.counts["status"] >= 7)
    assert (state(run_dir).set_aside, state(run_dir).held) == (0, 0)
    fault.times = 0
    assert uploader.wait(WAIT_S) == 0
    assert_exact(server, run_dir)


def test_a_server_that_needs_longer_than_a_request_may_take_gets_everything(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    """What timed out may take longer next time; it would never be done otherwise."""
    run_dir = recorded(tmp_path, proxy.url, [*(row(i, a=float(i)) for i in range(10)), finished()])
    proxy.fault("delay", seconds=8.0, matches=lambda request: b'"metrics"' in request.body)
    assert uploaders(run_dir, MLFLOW_HTTP_REQUEST_TIMEOUT="4").wait(2 * WAIT_S) == 0
    assert_exact(server, run_dir)


def test_a_run_that_was_deleted_is_neither_replaced_nor_forgotten(
    proxy: FaultProxy, server: str, tmp_path: Path
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [row(i, x=1.0) for i in range(20)])
    assert sync(tmp_path).returncode == 0
    client = mlflow.MlflowClient(server)
    deleted = only_run(server, run_dir).info.run_id
    writer = Journal(run_dir / "journal")
    for number in range(20, 40):
        writer.append(row(number, x=2.0))
    writer.append(finished())
    writer.close()
    client.delete_run(deleted)
    assert sync(tmp_path, UNIFIED_TRACKER_LINGER_S="1").returncode == 2
    error = state(run_dir).error or ""
    assert f"mlflow runs restore --run-id {deleted}" in error
    assert state(run_dir).set_aside == 0
    client.restore_run(deleted)
    assert sync(tmp_path).returncode == 0
    assert only_run(server, run_dir).info.run_id == deleted
    assert_exact(server, run_dir)


def test_a_run_that_is_deleted_while_it_is_delivered_is_waited_for(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(
        tmp_path, proxy.url, [*(row(i, **{f"k{i}": 1.0 for i in range(50)}) for i in range(200)), finished()]
    )
    client = mlflow.MlflowClient(server)
    hold = proxy.fault("black_hole", matches=lambda request: b'"k7"' in request.body)
    uploader = uploaders(run_dir)
    wait_until(lambda: proxy.counts["black_hole"])
    mlflow_id = only_run(server, run_dir).info.run_id
    client.delete_run(mlflow_id)
    hold.times = 0
    wait_until(lambda: "deleted in MLflow" in (state(run_dir).error or ""))
    assert state(run_dir).set_aside == 0
    client.restore_run(mlflow_id)
    assert uploader.wait(WAIT_S) == 0
    assert_exact(server, run_dir)
