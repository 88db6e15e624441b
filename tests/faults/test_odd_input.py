"""The table of odd names and values in docs/recording.md, row by row, on a real server of any supported version."""

from __future__ import annotations

import json
import math
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import numpy as np
import pytest

import unified_tracker as ut
from tests.faults.conftest import IMPATIENT, state, wait_until
from tests.faults.exactness import LARGEST, assert_exact, only_run

NAMES = [
    *("plain/name", "AR@100", "AR#100", "AR_100", "AR%100", "", " ", " leading", "trailing ", "line\n", "tab\t", "CON"),
    *(".", "..", "/", "//", "/absolute", "a//b", "a/../b", "a/./b", "a/", "a\\b", "a:b", "a b", "a*b?", "<b>", "[0]"),
    *("\u00e9", "e\u0301", "E\u0301", "\u017f", "\u200b", "\u202eabc", "\U0001f642", "\x00", "\ufeffx", "=", "'", '"'),
    *("x" * 220, "x" * 221, "x" * 250, "x" * 251, "x" * 4000, "_step", "_x", "trainer/step", "(a, b)", "$`", "ok-1.2"),
]
VALUES: dict[str, tuple[Any, float]] = {
    "minus zero": (-0.0, 0.0),
    "smallest": (5e-324, 5e-324),
    "largest": (1.7976931348623157e308, 1.7976931348623157e308),
    "sum": (0.1 + 0.2, 0.1 + 0.2),
    "int64": (2**63 - 1, 2.0**63),
    "beyond int64": (2**70, 2.0**70),
    "beyond float64": (10**400, LARGEST),
    "true": (True, 1.0),
    "decimal": (Decimal("0.25"), 0.25),
    "fraction": (Fraction(1, 3), 1 / 3),
    "float32": (np.float32(0.1), float(np.float32(0.1))),
    "array": (np.array([4.0]), 4.0),
    "infinity": (math.inf, LARGEST),
    "minus infinity": (-math.inf, -LARGEST),
    "nan": (math.nan, math.nan),
}
STEPS: list[tuple[Any, int]] = [
    *((5, 5), (5, 5), (3, 3), (-1, -1), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2.0, 2), (np.int32(7), 7)),
    *((2**63, 2**63 - 1), (-(2**70), -(2**63)), (2.5, 2), ("8", 8), (math.nan, 0), (True, 0), ("soon", 0)),
]


@pytest.fixture(scope="module")
def run_dir(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it, delivered."""
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IMPATIENT.items():
            patch.setenv(name, value)
        run = ut.start_run("mlflow", project=str(folder), dir=folder, options={"mlflow": {"tracking_uri": server}})
        run.log_metrics({name: float(number) for number, name in enumerate(NAMES)}, step=1)
        run.log_metrics({**{name: value for name, (value, _) in VALUES.items()}, "text": "1.0", "nothing": None}, 1)
        for number, (step, _) in enumerate(STEPS):
            run.log_metrics({"stepped": float(number)}, step)
        run.log_metrics({f"many/{number}": 1.0 for number in range(2500)}, step=1)
        run.log_params({"long": "y" * 6001, "none": None, "list": [1, "a"], "lr": 0.1, "nested": {"a": {"b": 1}}})
        run.log_params({"lr": 0.2, "nested": {"a": {"c": 2}}})
        run.set_tags({"long": "z" * 9000})
        run.finish(timeout_s=0)
    assert run.dir is not None
    wait_until(lambda: state(run.dir).done)
    return run.dir


def test_no_name_is_refused_and_every_original_can_be_found(server: str, run_dir: Path) -> None:
    assert state(run_dir).set_aside == 0
    run = only_run(server, run_dir)
    originals = {mapped: run.data.tags.get(f"unified_tracker.name.{mapped}", mapped) for mapped in run.data.metrics}
    found = {originals[mapped]: value for mapped, value in run.data.metrics.items()}
    assert {name: found.get(name) for name in NAMES} == {name: float(number) for number, name in enumerate(NAMES)}
    assert len(found) == len(run.data.metrics) == len(set(NAMES)) + len(VALUES) + 1 + 2500
    assert_exact(server, run_dir)


@pytest.mark.parametrize("name", VALUES)
def test_values_are_stored_as_the_table_says(name: str, server: str, run_dir: Path) -> None:
    run = only_run(server, run_dir)
    (row,) = mlflow.MlflowClient(server).get_metric_history(run.info.run_id, name)
    expected = VALUES[name][1]
    assert struct.pack("<d", row.value) == struct.pack("<d", expected) or math.isnan(row.value) == math.isnan(expected)


def test_what_is_no_finite_number_is_flagged_and_what_is_no_number_is_counted(server: str, run_dir: Path) -> None:
    tags = only_run(server, run_dir).data.tags
    flags = {name: tags[f"unified_tracker.nonfinite.{name}"] for name in ("nan", "infinity", "minus infinity")}
    assert flags == {"nan": "nan", "infinity": "inf", "minus infinity": "-inf"}
    bad_steps = sum(not isinstance(step, (int, float, np.int32)) or step != at for step, at in STEPS)
    assert tags["unified_tracker.refused"] == str(2 + bad_steps)
    assert tags["unified_tracker.delivery"] == "complete"


def test_steps_are_stored_as_the_table_says(server: str, run_dir: Path) -> None:
    run = only_run(server, run_dir)
    rows = mlflow.MlflowClient(server).get_metric_history(run.info.run_id, "stepped")
    assert {row.value: row.step for row in rows} == {float(number): step for number, (_, step) in enumerate(STEPS)}


def test_long_and_changed_parameters_are_there_in_full(server: str, run_dir: Path) -> None:
    run = only_run(server, run_dir)
    assert run.data.params["long"].startswith("yyyy")
    assert run.data.params["long"].endswith("... [6001 characters, all in params.json]")
    assert (run.data.params["lr"], run.data.params["none"], run.data.params["nested.a.b"]) == ("0.1", "None", "1")
    changed = {key: value for key, value in run.data.tags.items() if key.startswith("unified_tracker.param_changed.lr")}
    assert list(changed.values()) == ["0.2"]
    whole = mlflow.artifacts.download_artifacts(
        f"{run.info.artifact_uri}/params.json", tracking_uri=server, dst_path=str(run_dir)
    )
    params = json.loads(Path(whole).read_text())
    assert (params["long"], params["lr"], params["nested"]) == ("y" * 6001, 0.2, {"a": {"b": 1, "c": 2}})
    assert run.data.tags["long"].endswith("... [9000 characters]")
