"""A server that is away for long while a training logs at a steady rate."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import unified_tracker as ut
from tests.faults.conftest import IMPATIENT
from tests.faults.exactness import assert_exact, only_run
from tests.faults.proxy import FaultProxy

OUTAGE_S = float(os.environ.get("FAULTS_OUTAGE_S", "4"))
CALLS_A_SECOND, VALUES_A_CALL = 100, 20


@pytest.mark.timeout(max(300, 6 * OUTAGE_S))
def test_what_is_logged_while_the_server_is_away_arrives_once_when_it_is_back(
    tmp_path: Path, server: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    proxy.refuse()
    options = {"mlflow": {"tracking_uri": proxy.url}}
    run = ut.start_run("mlflow", project=f"outage-{tmp_path.name}", dir=tmp_path, options=options)
    begun = time.monotonic()
    for step in range(int(OUTAGE_S * CALLS_A_SECOND)):
        run.log_metrics({f"m{number}": step + number / 100 for number in range(VALUES_A_CALL)}, step)
        time.sleep(max(0.0, begun + step / CALLS_A_SECOND - time.monotonic()))
    proxy.accept()
    assert run.finish(timeout_s=60 + 5 * OUTAGE_S)
    assert run.refused == 0
    assert run.dir is not None
    assert_exact(server, run.dir)
    assert only_run(server, run.dir).info.status == "FINISHED"
