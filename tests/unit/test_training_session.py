"""The training session: which checkpoint is recorded when, and under which aliases."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import msgspec
import pytest

import unified_tracker as ut
from unified_tracker._class_lists import ClassList
from unified_tracker._journal import JournalReader
from unified_tracker._origins import dataset_input, weights_input
from unified_tracker._staging import changed, locate
from unified_tracker.predictions import SampleEvaluation, SampleImage, ValidationSample
from unified_tracker.records import Artifact, Input, Metrics, Predictions, Tags
from unified_tracker.training import CLASSES_TAG, CheckpointFile, Detector, Evaluation, TrainingSession


def evaluation(step: int, ap: float) -> Evaluation:
    return Evaluation(
        step, step / 10, {"bbox/AP": ap * 100}, {"val/bbox/mAP": ap}, {"bbox.AP": ap * 100, "bbox.mAP": ap}
    )


def checkpoint(folder: Path, step: int, name: str = "", *, best_only: bool = False) -> CheckpointFile:
    path = folder / (name or f"model_{step}.pth")
    path.write_bytes(f"weights {path.name} at {step}".encode())
    return CheckpointFile(path, step, None, f"iter_{step}", best_only)


def versions(run: ut.Run) -> list[tuple[str, set[str]]]:
    """File name and aliases of every checkpoint that was recorded."""
    assert run.dir is not None
    records = [entry.record for entry in JournalReader(run.dir / "journal").read(1 << 24, final=True)]
    return [(r.files[0].path, set(r.aliases)) for r in records if isinstance(r, Artifact) and r.type == "model"]


def predictions(dataset: str, split: str = "val") -> SampleEvaluation:
    return SampleEvaluation(ValidationSample(dataset, ["a"], [SampleImage(1, 4, 4)]), {}, split=split)


def recorded(run: ut.Run) -> list[Predictions]:
    assert run.dir is not None
    records = [entry.record for entry in JournalReader(run.dir / "journal").read(1 << 24, final=True)]
    return [record for record in records if isinstance(record, Predictions)]


def test_best_follows_the_metric_and_stays_where_it_is_not_beaten(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    for step, ap in ((10, 0.2), (20, 0.4), (30, 0.3)):
        session.checkpoint_saved(checkpoint(recording, step))
        session.evaluation_ended(evaluation(step, ap))
        session.settle()
    session.training_ended(None)
    best = {"best", "best-bbox.AP", "best-bbox.mAP"}
    assert versions(session.run) == [
        ("model_10.pth", {"iter_10", *best}),
        ("model_20.pth", {"iter_20", *best}),
        ("model_30.pth", {"iter_30"}),
    ]


def test_what_checkpoints_need_goes_along_with_each_and_is_written_once(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    detector = Detector(framework="detectron2", config="config.yaml", text="MODEL: {}\n", classes=("cat",))
    session.training_started({}, {"framework": "detectron2"}, ("model-config.yaml", "MODEL: {}"), detector)
    session.checkpoint_metadata["dataset_digest"] = "0" * 16
    for step in (10, 20):
        session.checkpoint_saved(checkpoint(recording, step))
        session.settle()
    (recording / "sharded").mkdir()
    for name in ("0.pth", "config.yaml"):
        (recording / "sharded" / name).write_bytes(b"its own")
    session.checkpoint_saved(CheckpointFile(recording / "sharded", 30, None, "iter_30"))
    session.training_ended(None)
    run_dir = session.run.dir
    assert run_dir is not None
    records = [entry.record for entry in JournalReader(run_dir / "journal").read(1 << 24, final=True)]
    first, second, third = [r for r in records if isinstance(r, Artifact) and r.type == "model"]
    assert [file.path for file in first.files] == ["model_10.pth", "config.yaml", "detector.json"]
    assert first.files[1] == second.files[1]
    assert [file.path for file in third.files] == ["0.pth", "config.yaml", "detector.json"]
    assert locate(run_dir, first.files[1]).read_text() == "MODEL: {}\n"
    assert locate(run_dir, third.files[1]).read_bytes() == b"its own"
    cards = [msgspec.json.decode(locate(run_dir, r.files[2]).read_bytes()) for r in (first, second, third)]
    assert [card["weights"] for card in cards] == ["model_10.pth", "model_20.pth", None]
    assert {key: cards[0][key] for key in ("framework", "config", "classes", "category_ids")} == {
        "framework": "detectron2",
        "config": "config.yaml",
        "classes": ["cat"],
        "category_ids": None,
    }
    expected = {"framework": "detectron2", "config_digest": "fc57fc44e7e3f928", "dataset_digest": "0" * 16}
    assert [r.metadata for r in (first, second, third)] == [expected] * 3


def test_without_a_configuration_checkpoints_are_recorded_alone(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    session.training_started({"lr": 1}, {"world_size": 1})
    session.checkpoint_saved(checkpoint(recording, 10))
    session.training_ended(None)
    assert versions(session.run) == [("model_10.pth", {"iter_10"})]
    assert session.checkpoint_metadata == {}


def test_checkpoints_are_recorded_where_nothing_more_fits_beside_them(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    session = TrainingSession(ut.start_run("mlflow"))
    session.training_started({}, {}, None, Detector(framework="detectron2", config="config.yaml", text=""))
    session.checkpoint_saved(checkpoint(recording, 10))
    monkeypatch.setattr(session.run._staging, "keep", full)
    session.training_ended(None)
    assert versions(session.run) == [("model_10.pth", {"iter_10"})]
    assert "config.yaml cannot be recorded beside the checkpoint" in capsys.readouterr().err


def test_a_regular_checkpoint_goes_before_the_best_file_of_the_same_step(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    session.checkpoint_saved(checkpoint(recording, 10, "best_10.pth", best_only=True))
    session.checkpoint_saved(checkpoint(recording, 10))
    session.checkpoint_saved(checkpoint(recording, 20, "best_20.pth", best_only=True))
    session.settle()
    session.checkpoint_saved(checkpoint(recording, 20, "model_final.pth"))
    session.training_ended(None)
    assert [name for name, _ in versions(session.run)] == ["model_10.pth", "best_20.pth"]


def test_only_settled_checkpoints_are_recorded(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    session.checkpoint_saved(checkpoint(recording, 10))
    session.settle(before_step=10)
    assert versions(session.run) == []
    session.settle(before_step=11)
    assert [name for name, _ in versions(session.run)] == ["model_10.pth"]
    assert not session.unsettled
    session.training_ended(None)


def test_a_checkpoint_that_the_framework_saves_again_is_made_private_first(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    for content in (b"first", b"second"):
        session.checkpoint_begins(recording / "epoch_1.pth")
        (recording / "epoch_1.pth").write_bytes(content)
        session.run.log_checkpoint(recording / "epoch_1.pth", step=1)
    assert session.run.dir is not None
    records = [entry.record for entry in JournalReader(session.run.dir / "journal").read(1 << 24, final=True)]
    files = [record.files[0] for record in records if isinstance(record, Artifact)]
    assert [changed(session.run.dir, file) for file in files] == [None, None]
    assert [locate(session.run.dir, file).read_bytes() for file in files] == [b"first", b"second"]
    session.training_ended(None)


def test_a_resumed_session_knows_the_best_of_before(recording: Path) -> None:
    first = TrainingSession(ut.start_run("mlflow"))
    stale = first.state()  # what a checkpoint carries that was written before its own evaluation
    first.checkpoint_saved(checkpoint(recording, 10))
    first.evaluation_ended(evaluation(10, 0.5))
    first.settle()
    first.run.finish()
    second = TrainingSession(ut.start_run("mlflow", id=first.run.id))
    second.restore(stale)
    second.checkpoint_saved(checkpoint(recording, 20))
    second.evaluation_ended(evaluation(20, 0.4))
    second.training_ended(None)
    assert second.state()["best"] == {"bbox.AP": 50.0, "bbox.mAP": 0.5}


def test_a_metric_that_should_be_small_is_best_when_smallest(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"), best_metric="val/total_loss")
    for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5)):
        session.checkpoint_saved(checkpoint(recording, step))
        session.evaluation_ended(Evaluation(step, None, {"val/total_loss": loss}, {}))
        session.settle()
    session.training_ended(None)
    assert [name for name, aliases in versions(session.run) if "best" in aliases] == ["model_10.pth", "model_20.pth"]


def test_predictions_are_best_where_their_evaluation_is(recording: Path) -> None:
    """Judged by evaluations, of which there may be more than checkpoints, and once for all data sets of one."""
    session = TrainingSession(ut.start_run("mlflow"), log_checkpoint=False)
    for step, ap in ((10, 0.2), (20, 0.4), (30, 0.3)):
        session.evaluation_ended(evaluation(step, ap))
        for dataset in ("a", "b"):
            session.predictions_ready(predictions(dataset), step, step / 10, f"iter_{step}")
    session.predictions_ready(predictions("a", "test"), 30, None, "iter_30")
    again = TrainingSession(session.run, log_checkpoint=False)
    again.restore({})
    again.evaluation_ended(evaluation(40, 0.35))
    again.predictions_ready(predictions("a"), 40, 4.0, "iter_40")
    again.training_ended(None)
    best = ("best", "best-bbox.AP", "best-bbox.mAP")
    assert [(record.step, record.dataset, record.aliases) for record in recorded(session.run)] == [
        (10, "a", ("iter_10", *best)),
        (10, "b", ("iter_10", *best)),
        (20, "a", ("iter_20", *best)),
        (20, "b", ("iter_20", *best)),
        (30, "a", ("iter_30",)),
        (30, "b", ("iter_30",)),
        (30, "a", ("test_iter_30",)),
        (40, "a", ("iter_40",)),
    ]


def test_logs_are_masked_and_status_follows_the_error(recording: Path) -> None:
    log = recording / "train.log"
    log.write_text("lr: 0.1\napi_key: 'hunter2hunter2'\n")
    session = TrainingSession(ut.start_run("mlflow"))
    session.step_ended(1, 0.5, {"total_loss": 1.0}, {"train/loss": 1.0})
    session.training_ended(KeyboardInterrupt(), [log])
    assert session.run.dir is not None
    (staged,) = (session.run.dir / "files").glob("*train.log")
    assert "hunter2" not in staged.read_text()
    assert "lr: 0.1" in staged.read_text()
    records = [entry.record for entry in JournalReader(session.run.dir / "journal").read(1 << 24, final=True)]
    assert [r.values for r in records if isinstance(r, Metrics)] == [
        {"total_loss": 1.0, "train/loss": 1.0, "epoch": 0.5}
    ]
    assert getattr(records[-1], "status", None) == "KILLED"


def test_each_input_is_recorded_once_and_the_evaluated_checkpoint_again_with_its_results(recording: Path) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    data = dataset_input("test", "shapes", "shapes", annotations=checkpoint(recording, 1, "val.json").path)
    weights = weights_input("https://user:secret@host/zoo/R-50.pkl?x=1", "checkpoint")
    for _ in range(2):
        session.inputs_used([data, weights])
    session.checkpoint_evaluated({"test/bbox/mAP": 0.5, "test/bbox/AR": math.nan}, 20)
    session.training_ended(None)
    assert session.run.dir is not None
    records = [entry.record for entry in JournalReader(session.run.dir / "journal").read(1 << 24, final=True)]
    inputs = [record for record in records if isinstance(record, Input)]
    assert [(each.role, each.name) for each in inputs] == [
        ("test", "shapes"),
        ("checkpoint", "R-50.pkl"),
        ("checkpoint", "R-50.pkl"),
    ]
    assert inputs[0].file is not None
    assert inputs[0].file.staged == str(recording / "val.json")
    assert "secret" not in inputs[1].reference
    assert (inputs[2].metrics, inputs[2].step) == ({"test/bbox/mAP": 0.5}, 20)


def test_classes_that_differ_are_said_once_and_kept_as_a_tag(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = TrainingSession(ut.start_run("mlflow"))
    for _ in range(2):
        session.classes_compared(ClassList("the model", count=80), ClassList("the training set 'a'", ("x",)))
        session.classes_compared(ClassList("the model", count=80), ClassList("the validation set 'b'", ("x",)))
    session.training_ended(None)
    assert session.run.dir is not None
    records = [entry.record for entry in JournalReader(session.run.dir / "journal").read(1 << 24, final=True)]
    tags = [each.values for each in records if isinstance(each, Tags) and CLASSES_TAG in each.values]
    assert len(tags) == 2
    assert tags[1][CLASSES_TAG].count("the model has 80 classes") == 2
    assert capsys.readouterr().err.count("the training set 'a' has 1 class (") == 1
