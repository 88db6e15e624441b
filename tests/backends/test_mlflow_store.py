"""Artifacts of MLflow by reference: found by name and alias, fetched, recorded as inputs, traced, and pruned."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

import unified_tracker as ut
from tests.mlflow_reading import MlflowRun
from unified_tracker import TrackerError
from unified_tracker._reference import parse
from unified_tracker._store import open_store
from unified_tracker.backends._mlflow_store import MlflowStore
from unified_tracker.cli import app


class Recorded:
    """A data set in two versions, a training on it, two stages of fine-tuning, all in one database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
        self.data = folder / "data"
        (self.data / "images").mkdir(parents=True)
        for number, name in enumerate(("a.jpg", "ä #%20 b.jpg")):
            (self.data / "images" / name).write_bytes(bytes([number]) * 100)
        for text in ("{}", '{"images": []}'):
            (self.data / "annotations.json").write_text(text)
            with self.start("data", id="dataset-shapes") as run:
                run.log_artifact(self.data, name="shapes", type="dataset", metadata={"images": 2})
        with self.start("base") as self.first:
            self.first.use_artifact("mlflow-artifact://data/shapes:latest", role="train")
            self.first.use_artifact("mlflow-artifact://data/shapes:v0", role="val")
            for step in (1, 2, 3):
                aliases = [f"iter_{step}", *(["best", "best-bbox.AP"] if step == 2 else [])]
                metrics = {"val/bbox/mAP": 0.1 * step, "bbox/AP": 10.0 * step}
                self.first.log_checkpoint(self.weights(step), step, step / 3, metrics, aliases)
        with self.start("fine") as self.second:
            self.second.use_artifact(f"mlflow-artifact://run-{self.first.id}-model:best", role="weights")
            self.second.log_checkpoint(self.weights(11), 11)
        with self.start("fine") as self.third:
            self.third.use_artifact(f"mlflow-artifact://fine/run-{self.second.id}-model:latest", role="weights")
            self.third.log_checkpoint(self.weights(21), 21, metrics={"val/bbox/mAP": 0.9})

    def start(self, project: str, id: str | None = None) -> ut.Run:  # noqa: A002 -- as in `start_run`
        options = {"mlflow": {"tracking_uri": self.uri, "artifact_location": str(self.folder / "store" / project)}}
        return ut.start_run(
            "mlflow", project=project, name=f"{project} run", id=id, dir=self.folder / "runs", options=options, rank=0
        )

    def weights(self, step: int) -> Path:
        path = self.folder / f"model_{step:07}.pth"
        path.write_bytes(f"{step}".encode() * 50)
        return path

    def store(self) -> MlflowStore:
        found = open_store("mlflow", {"tracking_uri": self.uri})
        assert isinstance(found, MlflowStore)
        return found

    def find(self, text: str) -> tuple[str, int | None]:
        reference = parse(text)
        assert reference is not None
        version = self.store().find(reference)
        return version.version, version.step


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def command_line(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.uri)
    return CliRunner()


@pytest.mark.parametrize(
    ("alias", "found"),
    [("latest", ("v2", 3)), ("best", ("v1", 2)), ("best-bbox.AP", ("v1", 2)), ("iter_1", ("v0", 1)), ("v0", ("v0", 1))],
)
def test_a_checkpoint_is_found_by_every_name_that_it_has(
    recorded: Recorded, alias: str, found: tuple[str, int]
) -> None:
    assert recorded.find(f"mlflow-artifact://run-{recorded.first.id}-model:{alias}") == found
    assert recorded.find(f"mlflow-artifact://base/run-{recorded.first.id}-model:{alias}") == found


def test_mlflows_own_references_mean_the_same_version(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.uri)  # without a server MLflow looks the model up there
    run = MlflowRun(recorded.uri, recorded.first.id)
    best = next(model for model in run.models() if "unified_tracker.alias.best" in model.tags)
    assert recorded.find(f"models:/{best.model_id}") == ("v1", 2)
    client = mlflow.MlflowClient(recorded.uri)
    client.create_registered_model("detector")
    made = client.create_model_version("detector", f"models:/{best.model_id}", run.id, model_id=best.model_id)
    client.set_registered_model_alias("detector", "best", made.version)
    for uri in ("models:/detector@best", f"models:/detector/{made.version}", "models:/detector/latest"):
        assert recorded.find(uri) == ("v1", 2)


def test_a_folder_or_file_of_a_run_is_fetched(recorded: Recorded, command_line: CliRunner) -> None:
    run = MlflowRun(recorded.uri, "dataset-shapes").id
    folder = command_line.invoke(app, ["artifact", "get", f"runs:/{run}/shapes/v0"])
    assert (Path(folder.stdout.strip()) / "annotations.json").read_text() == "{}"
    file = command_line.invoke(app, ["artifact", "get", f"runs:/{run}/shapes/v1/annotations.json"])
    assert (Path(file.stdout.strip()) / "annotations.json").read_text() == '{"images": []}'


def test_what_is_not_there_is_named_with_what_there_is(recorded: Recorded) -> None:
    for text, told in (
        (f"mlflow-artifact://run-{recorded.first.id}-model:v9", "no version 'v9'; there are best, best-bbox.AP, .*v0"),
        ("mlflow-artifact://base/nothing:v0", "no artifact 'nothing'"),
        ("mlflow-artifact://nowhere/shapes:v0", "no experiment 'nowhere' .*there are Default, base, data, fine"),
        ("models:/detector@nobody", "cannot be read"),
        (f"runs:/{MlflowRun(recorded.uri, recorded.first.id).id}/nothing", "holds no 'nothing'"),
    ):
        with pytest.raises(TrackerError, match=told):
            recorded.find(text)


def test_the_files_arrive_as_they_were_logged(recorded: Recorded, command_line: CliRunner, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    command = ["artifact", "get", "mlflow-artifact://shapes:latest", "-o", str(tmp_path / "mine")]
    done = command_line.invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert content(tmp_path / "mine") == content(recorded.data)
    again = command_line.invoke(app, command)
    assert (again.exit_code, "not empty" in again.stderr) == (1, True)


def test_inputs_stand_where_mlflow_shows_them(recorded: Recorded) -> None:
    client = mlflow.MlflowClient(recorded.uri)
    base, fine = (client.get_run(MlflowRun(recorded.uri, run.id).id) for run in (recorded.first, recorded.second))
    used = {each.tags[0].value: each.dataset for each in base.inputs.dataset_inputs}
    assert {context: json.loads(each.source)["reference"] for context, each in used.items()} == {
        "training": "mlflow-artifact://data/shapes:latest",
        "validation": "mlflow-artifact://data/shapes:v0",
    }
    measured = {
        (metric.dataset_name, metric.dataset_digest)
        for each in MlflowRun(recorded.uri, recorded.first.id).models()
        for metric in each.metrics
    }
    assert measured == {("shapes", used["validation"].digest)}
    (model,) = fine.inputs.model_inputs
    assert client.get_logged_model(model.model_id).params["step"] == "2"


def test_the_best_checkpoint_over_runs_comes_first(recorded: Recorded, command_line: CliRunner) -> None:
    done = command_line.invoke(app, ["artifact", "list", "--type", "model", "--sort", "bbox/mAP", "--json"])
    listed = [(each["run_id"], each["step"], each["value"]) for each in json.loads(done.stdout)]
    assert listed == [
        (recorded.third.id, 21, 0.9),
        (recorded.first.id, 3, pytest.approx(0.3)),
        (recorded.first.id, 2, 0.2),
        (recorded.first.id, 1, 0.1),
        (recorded.second.id, 11, None),
    ]
    shown = command_line.invoke(app, ["artifact", "list", "--type", "dataset"]).stdout
    assert "shapes:v1" in shown
    assert "model" not in shown


def test_lineage_goes_through_all_stages_in_both_directions(recorded: Recorded, command_line: CliRunner) -> None:
    last = f"mlflow-artifact://run-{recorded.third.id}-model:latest"
    up = json.loads(command_line.invoke(app, ["artifact", "lineage", last, "--json"]).stdout)
    stages, weights = [], up
    while weights:
        stages.append(weights["made_by"]["run_id"])
        used = {each["role"]: each for each in weights["made_by"].get("inputs", [])}
        data = used.get("train")
        weights = used.get("weights")
    assert stages == [recorded.third.id, recorded.second.id, recorded.first.id]
    assert data is not None
    assert data["reference"] == "mlflow-artifact://data/shapes:v1"
    assert data["made_by"]["run_id"] == "dataset-shapes"
    first = f"mlflow-artifact://run-{recorded.first.id}-model:best"
    down = json.loads(command_line.invoke(app, ["artifact", "lineage", first, "--json"]).stdout)
    (second,) = down["used_by"]
    assert (second["run_id"], second["role"]) == (recorded.second.id, "weights")
    (output,) = second["outputs"]
    assert output["used_by"][0]["run_id"] == recorded.third.id
    tree = command_line.invoke(app, ["artifact", "lineage", last]).stdout
    assert tree.count("weights: ") == 2
    assert tree.count("train: ") == 1


def test_looking_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = CliRunner().invoke(app, ["artifact", "list"])
    assert (done.exit_code, "there is no MLflow database" in done.stderr) == (1, True)
    assert not list(tmp_path.iterdir())


def test_versions_that_nothing_needs_go_and_the_others_stay(recorded: Recorded) -> None:
    with recorded.start("pruned") as run:
        run.log_checkpoint(recorded.weights(10), 10, aliases=["iter_10"])
        run.log_checkpoint(recorded.weights(20), 20, aliases=["iter_20"])
    with recorded.start("child") as child:
        child.use_artifact(f"mlflow-artifact://run-{run.id}-model:iter_10", role="weights")
    with recorded.start("pruned", id=run.id) as run:
        for step in (30, 40, 50, 60, 70):
            aliases = [f"iter_{step}", *(["best"] if step == 50 else [])]
            run.log_checkpoint(recorded.weights(step), step, aliases=aliases, keep_last=2, keep_every=40)
    left = MlflowRun(recorded.uri, run.id).models()
    # 10: a child needs it; 40: every 40th; 50: best; 60, 70: the last two
    assert sorted(int(model.params["step"]) for model in left) == [10, 40, 50, 60, 70]
    assert [model.tags["unified_tracker.version"] for model in left] == ["v0", "v3", "v4", "v5", "v6"]
    stored = {path.name for path in (recorded.folder / "store" / "pruned").rglob("*.pth")}
    assert stored == {f"model_{step:07}.pth" for step in (10, 40, 50, 60, 70)}


def test_an_artifact_that_would_leave_its_folder_is_refused_by_the_command(
    recorded: Recorded, command_line: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFIED_TRACKER_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "harmless"
    data.mkdir()
    (data / "a.txt").write_text("a")
    with recorded.start("hostile") as run:
        run.log_artifact(data, name="gift", type="dataset")
    mine = MlflowRun(recorded.uri, run.id)
    listing = json.loads(mine.files()["gift/versions.json"])
    for hostile in ("../../../../evil.txt", "/tmp/evil.txt"):
        listing[0]["files"] = {hostile: "0" * 64}
        changed = tmp_path / "versions.json"
        changed.write_text(json.dumps(listing))
        mine.client.log_artifact(mine.id, str(changed), "gift")
        done = command_line.invoke(app, ["artifact", "get", "mlflow-artifact://hostile/gift:latest"])
        assert (done.exit_code, "refused" in done.stderr.replace("\n", " ")) == (4, True)
    stored = next((recorded.folder / "store" / "hostile").rglob("a.txt"))
    stored.unlink()
    stored.symlink_to("/etc/passwd")
    listing[0]["files"] = {"a.txt": ""}
    changed.write_text(json.dumps(listing))
    mine.client.log_artifact(mine.id, str(changed), "gift")
    done = command_line.invoke(app, ["artifact", "get", "mlflow-artifact://hostile/gift:latest"])
    assert (done.exit_code, "refused" in done.stderr.replace("\n", " ")) == (4, True)
    assert not list((tmp_path / "cache").rglob("content"))
