"""The conformance suite: every promise of `Tracker`, tested on a backend.

A backend's tests inherit `TrackerConformance` and override one fixture::

    class TestMyBackend(TrackerConformance):
        @pytest.fixture
        def subject(self, tmp_path):
            return MySubject(tmp_path)

Needs pytest; nothing else of the library imports this module.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from unified_tracker._errors import RejectedError
from unified_tracker._tracker import RunInfo, Tracker
from unified_tracker.records import Artifact, Entry, Metrics, Params, Position, Record, StagedFile, Status, Tags

__all__ = ["Stored", "StoredVersion", "Subject", "TrackerConformance", "entry", "run_info"]

ODD_NAMES = (
    "AR@100",
    "AR#100",
    "AR_100",
    "min(IoU, B-IoU)",
    "käse/größe",
    "a//b",
    "a/b",
    "/lead",
    " space ",
    "x" * 300,
)


@dataclass(frozen=True)
class StoredVersion:
    """One version of an artifact in the backend: content (name to SHA-256), aliases, metrics bound to it."""

    files: Mapping[str, str]
    aliases: frozenset[str]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """What a backend holds of one run, read through its own API, under the names that were logged.

    Attributes:
        metrics: Name to rows of (step, value), in the order of steps.
        params: Dotted name to value as text.
        tags: Key to value; what the backend adds by itself may be there too.
        versions: Artifact name to its versions, oldest first.
        files: Names of the plain files of the run.
        status: As recorded.
    """

    metrics: Mapping[str, list[tuple[int, float]]]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    versions: Mapping[str, list[StoredVersion]]
    files: frozenset[str]
    status: Status


class Subject(Protocol):
    """A backend under test, around one run."""

    def tracker(self) -> Tracker:
        """A new tracker for the same run, not opened; called more than once stands for a restart."""

    def stored(self) -> Stored:
        """Read the run back. Called after `close`."""


def run_info(backend: str, run_id: str = "abcd1234") -> RunInfo:
    """A run as `start_run` would describe it."""
    return RunInfo(
        id=run_id,
        project="conformance",
        name="#0 first",
        description="a run of the conformance suite",
        tags={"stage": "test"},
        created_ms=1_700_000_000_000,
        cwd=str(Path.cwd()),
        command=["python", "train.py"],
        backends={backend: {}},
    )


def entry(number: int, record: Record) -> Entry:
    """A record as the journal's reader hands it out."""
    return Entry((1 << 40) + number, record, Position("000001-000001.utj", 32 + number))


class TrackerConformance:
    """Inherit, override `subject`, and every promise of `Tracker` is tested on your backend."""

    keeps_non_finite: ClassVar[bool] = True
    """False if infinities become the largest float."""

    RUN: ClassVar[str] = "abcd1234"

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        """The backend under test, empty."""
        raise NotImplementedError("return a Subject around your backend")

    def test_metrics_arrive_with_name_step_and_value(self, subject: Subject) -> None:
        rows = [Metrics(1000 + i, i, {"train/loss": 1.0 / i, "lr": 0.1 + 0.2}) for i in range(1, 60)]
        stored = _deliver(subject, rows)
        assert stored.metrics["train/loss"] == [(i, 1.0 / i) for i in range(1, 60)]
        assert stored.metrics["lr"] == [(i, 0.1 + 0.2) for i in range(1, 60)]

    def test_repeated_and_decreasing_steps_keep_every_value(self, subject: Subject) -> None:
        stored = _deliver(subject, [Metrics(1000 + i, s, {"x": float(i)}) for i, s in enumerate((3, 3, 1, 2, 1))])
        assert sorted(stored.metrics["x"]) == [(1, 2.0), (1, 4.0), (2, 3.0), (3, 0.0), (3, 1.0)]

    def test_non_finite_values_arrive_beside_finite_ones(self, subject: Subject) -> None:
        values = {"nan": math.nan, "inf": math.inf, "ninf": -math.inf, "one": 1.0}
        stored = _deliver(subject, [Metrics(1000, 1, values)])
        assert math.isnan(stored.metrics["nan"][0][1])
        assert stored.metrics["one"] == [(1, 1.0)]
        largest = math.inf if self.keeps_non_finite else 1.7976931348623157e308
        assert stored.metrics["inf"] == [(1, largest)]
        assert stored.metrics["ninf"] == [(1, -largest)]

    def test_any_name_arrives_and_no_two_become_one(self, subject: Subject) -> None:
        values = {name: float(i) for i, name in enumerate(ODD_NAMES)}
        stored = _deliver(subject, [Metrics(1000, 1, values)])
        assert {name: rows for name, rows in stored.metrics.items() if name in values} == {
            name: [(1, value)] for name, value in values.items()
        }

    def test_a_replay_after_a_crash_stores_nothing_twice(self, subject: Subject, tmp_path: Path) -> None:
        entries = _everything(tmp_path)
        crashed = subject.tracker()
        crashed.open(run_info("", self.RUN))
        _feed(crashed, entries[: len(entries) * 2 // 3], tmp_path)
        del crashed
        again = subject.tracker()
        again.open(run_info("", self.RUN))
        _feed(again, entries, tmp_path)
        again.close("FINISHED", 1_700_000_100_000)
        stored = subject.stored()
        assert stored.metrics["train/loss"] == [(i, 1.0 / i) for i in range(1, 30)]
        assert len(stored.versions["run-abcd1234-model"]) == 2
        assert stored.params["model.depth"] == "18"
        assert stored.status == "FINISHED"

    def test_params_are_flattened_and_a_changed_value_is_no_error(self, subject: Subject) -> None:
        first = Params(1000, {"solver": {"lr": 0.1, "steps": [1, 2]}, "amp": True, "none": None})
        stored = _deliver(subject, [first, Params(1001, {"solver": {"lr": 0.2}, "new": "x"})])
        assert stored.params["solver.steps"] == "[1, 2]"
        assert stored.params["solver.lr"] in {"0.1", "0.2"}
        assert stored.params["new"] == "x"

    def test_long_params_lose_no_neighbour(self, subject: Subject) -> None:
        stored = _deliver(
            subject, [Params(1000, {"long": "y" * 100_000, "short": 1, **{f"k{i}": i for i in range(250)}})]
        )
        assert stored.params["short"] == "1"
        assert stored.params["long"].startswith("y" * 5000)
        assert stored.params["k249"] == "249"

    def test_last_tag_wins(self, subject: Subject) -> None:
        stored = _deliver(subject, [Tags(1000, {"stage": "dev", "who": "me"}), Tags(1001, {"stage": "prod"})])
        assert stored.tags["stage"] == "prod"
        assert stored.tags["who"] == "me"

    def test_a_version_holds_the_bytes_that_were_logged(self, subject: Subject, tmp_path: Path) -> None:
        record = _version(tmp_path, "weights", b"\x00\x01" * 4096, aliases=("best",), metrics={"val/bbox/mAP": 0.5})
        stored = _deliver(subject, [record], tmp_path)
        (version,) = stored.versions["run-abcd1234-model"]
        assert version.files == {"weights": hashlib.sha256(b"\x00\x01" * 4096).hexdigest()}
        assert {"best", "latest"} <= version.aliases
        assert version.metrics["val/bbox/mAP"] == 0.5

    def test_identical_bytes_are_one_version(self, subject: Subject, tmp_path: Path) -> None:
        first = _version(tmp_path, "weights", b"same", aliases=("epoch_1",))
        second = _version(tmp_path, "weights", b"same", aliases=("best",))
        (version,) = _deliver(subject, [first, second], tmp_path).versions["run-abcd1234-model"]
        assert {"epoch_1", "best", "latest"} <= version.aliases

    def test_an_alias_stands_on_one_version_only(self, subject: Subject, tmp_path: Path) -> None:
        records = [_version(tmp_path, "weights", content, aliases=("best",)) for content in (b"1", b"2", b"3")]
        versions = _deliver(subject, records, tmp_path).versions["run-abcd1234-model"]
        assert [("best" in v.aliases, "latest" in v.aliases) for v in versions] == [
            (False, False),
            (False, False),
            (True, True),
        ]

    def test_plain_files_keep_their_names(self, subject: Subject, tmp_path: Path) -> None:
        files = tuple(_staged(tmp_path, name, name.encode()) for name in ("log.txt", "sub/config.yaml"))
        stored = _deliver(subject, [Artifact(1000, None, "file", files)], tmp_path)
        assert {"log.txt", "sub/config.yaml"} <= stored.files

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
    def test_status_is_the_truth(self, subject: Subject, status: Status) -> None:
        assert _deliver(subject, [Metrics(1000, 1, {"x": 1.0})], status=status).status == status


def _deliver(
    subject: Subject, records: Sequence[Record], folder: Path | None = None, status: Status = "FINISHED"
) -> Stored:
    tracker = subject.tracker()
    tracker.open(run_info("", TrackerConformance.RUN))
    _feed(tracker, [entry(number, record) for number, record in enumerate(records, 1)], folder)
    tracker.close(status, 1_700_000_100_000)
    return subject.stored()


def _feed(tracker: Tracker, entries: Sequence[Entry], folder: Path | None) -> None:
    for each in entries:
        record = each.record
        if isinstance(record, Metrics):
            tracker.log_metrics([each])
        elif isinstance(record, Params):
            tracker.log_params([each])
        elif isinstance(record, Tags):
            tracker.set_tags([each])
        elif isinstance(record, Artifact):
            assert folder is not None
            tracker.log_artifact(each, {file.path: folder / file.staged for file in record.files})
        else:
            raise RejectedError(f"not part of the suite: {record!r}")


def _everything(folder: Path) -> list[Entry]:
    records: list[Record] = [Params(1000, {"model": {"depth": 18}})]
    records += [Metrics(1000 + i, i, {"train/loss": 1.0 / i, "nan": math.nan}) for i in range(1, 30)]
    records += [_version(folder, "weights", b"one", aliases=("best",)), Tags(2000, {"stage": "dev"})]
    records += [_version(folder, "weights", b"two")]
    return [entry(number, record) for number, record in enumerate(records, 1)]


def _version(
    folder: Path, name: str, content: bytes, aliases: tuple[str, ...] = (), metrics: dict[str, Any] | None = None
) -> Artifact:
    file = _staged(folder, name, content)
    return Artifact(
        1500, "run-abcd1234-model", "model", (file,), aliases, {"framework": "none"}, metrics or {}, 10, 1.0
    )


def _staged(folder: Path, name: str, content: bytes) -> StagedFile:
    path = folder / f"{hashlib.sha256(content).hexdigest()[:12]}-{name.replace('/', '_')}"
    path.write_bytes(content)
    stat = path.stat()
    return StagedFile(name, path.name, stat.st_size, stat.st_mtime_ns)
