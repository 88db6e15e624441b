"""A run that the user has opened already is joined, not doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.mlflow_reading import MlflowRun

ACTIVE = """
import json, mlflow, sys
import unified_tracker as ut
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("mine")
with mlflow.start_run(run_name="opened by hand") as active:
    mlflow.log_metric("before", 1.0)
    with ut.start_run("mlflow", project="ignored", name="ignored") as run:
        run.log_metrics({"ours": 2.0}, step=5)
    status = mlflow.MlflowClient().get_run(active.info.run_id).info.status
print(json.dumps({"run_id": run.id, "mlflow": active.info.run_id, "status": status}))
"""

VARIABLE = """
import json, sys
import unified_tracker as ut
with ut.start_run("mlflow") as run:
    run.log_metrics({"ours": 2.0}, step=5)
print(json.dumps({"run_id": run.id}))
"""


def run_script(script: str, folder: Path, *arguments: str, **environment: str) -> dict[str, str]:
    import os

    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def test_an_active_run_takes_our_records_and_stays_its_owners(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mine.db'}"
    said = run_script(ACTIVE, tmp_path, uri)
    run = MlflowRun(uri, said["run_id"])
    assert run.id == said["mlflow"]
    assert (run.history("before"), run.history("ours")) == ([(0, 1.0)], [(5, 2.0)])
    assert said["status"] == "RUNNING"
    assert run.status == "FINISHED"
    assert run.run.info.run_name == "opened by hand"
    assert not (tmp_path / "mlflow.db").exists()


def test_the_run_of_the_environment_variable_is_joined(tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mine.db'}"
    made = mlflow.MlflowClient(uri).create_run("0")
    said = run_script(VARIABLE, tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_RUN_ID=made.info.run_id)
    run = MlflowRun(uri, said["run_id"])
    assert run.id == made.info.run_id
    assert run.history("ours") == [(5, 2.0)]
    assert run.status == "FINISHED"
