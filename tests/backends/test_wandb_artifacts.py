"""Artifacts of a W&B server by reference: our tracker logs them, the store finds them, with the real client.

The server is the loopback double.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

wandb = pytest.importorskip("wandb")

import unified_tracker as ut
from tests.backends.wandb_feeding import KEY, TS, clean_environment
from tests.backends.wandb_server import ENTITY, WandbServer
from unified_tracker import _start
from unified_tracker._delivery import Delivery
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._fetching import Fetched, input_of
from unified_tracker._pruning import prune
from unified_tracker._reference import ArtifactReference, parse
from unified_tracker._rundir import RunDirectory
from unified_tracker._store import ArtifactStore, open_store
from unified_tracker._versions import ArtifactVersion, FileInfo
from unified_tracker.records import Input, StagedFile

PLACE = f"{ENTITY}/balloon"
ZOO = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    """A server that holds a training with a data set and one checkpoint."""
    double = WandbServer(KEY)
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, tmp_path_factory.mktemp("trained"), double)
        files = {f"images/{number}.jpg": f"image {number}".encode() for number in range(5)}
        recorded(
            "train000",
            artifact("balloon-train", {"annotations.json": b"{}", **files}, type="dataset", metadata={"digest": "d1"}),
            checkpoint(
                b"weights", step=90, epoch=1.5, metrics={"bbox/mAP": 0.5}, aliases=["best"], metadata={"by": "us"}
            ),
        )
    yield double
    double.close()


@pytest.fixture
def server(trained: WandbServer) -> Iterator[WandbServer]:
    """The same for each test, whatever the tests before have made of it."""
    before = trained.state()
    yield trained
    trained.heal()
    wandb.teardown(exit_code=1)
    problems = trained.problems
    trained.restore(before)
    assert problems == []


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: WandbServer) -> None:
    configure(monkeypatch, tmp_path, server)


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, server: WandbServer) -> None:
    """A key, a server, a cache of our own; runs whose delivery the tests start."""
    clean_environment(monkeypatch, folder)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_PROJECT", "balloon")
    monkeypatch.setenv("UNIFIED_TRACKER_CACHE", str(folder / "cache"))
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds
    for what in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MIN_SECONDS", "1")
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MAX_SECONDS", "1")
    monkeypatch.setenv("UNIFIED_TRACKER_LINGER_S", "60")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(_start.UploaderProcess, "start", lambda self: None)
    monkeypatch.setattr("unified_tracker._watch.DeliveryWatch.wait", lambda self, last, timeout_s: False)


def recorded(id: str, *logged: Callable[[ut.Run], None]) -> RunDirectory:  # noqa: A002 -- the field's word
    """A run that logs these, delivered."""
    run = ut.start_run("wandb", project="balloon", name=f"run {id}", id=id)
    for log in logged:
        log(run)
    assert run.dir is not None
    run.finish(timeout_s=0)
    place = RunDirectory(run.dir)
    deliver(place)
    return place


def artifact(name: str, files: dict[str, bytes], **more: Any) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        folder = Path(f"{run.id}-{name}")
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        run.log_artifact(folder, name=name, **more)

    return log


def checkpoint(content: bytes, **more: Any) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        path = Path(f"{run.id}-model.pth")
        path.write_bytes(content)
        run.log_checkpoint(path, **more)

    return log


def used(*records: Input) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        for record in records:
            run._log_input(record)

    return log


def deliver(place: RunDirectory) -> None:
    command = [sys.executable, "-m", "unified_tracker._uploader", str(place.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    state = place.lane_state("wandb")
    assert state is not None and state.done and state.set_aside == 0, state


def many(**more: Any) -> list[Callable[[ut.Run], None]]:
    """Three versions of one name."""
    return [artifact("many", {"m.pth": content}, type="model", **more) for content in (b"a", b"b", b"c")]


def store() -> ArtifactStore:
    return open_store("wandb")


def find(text: str) -> ArtifactVersion:
    reference = parse(text)
    assert reference is not None
    return store().find(reference)


def use(version: ArtifactVersion, role: str, **more: Any) -> Input:
    return msgspec.structs.replace(input_of(Fetched(str(version.reference), version, ""), role, **more), ts=TS)


# ---- finding and fetching ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_its_alias_with_all_that_is_known_of_it(server: WandbServer) -> None:
    for text in ["run-train000-model:best", "balloon/run-train000-model:v0", f"{PLACE}/run-train000-model"]:
        version = find(f"wandb-artifact://{text}")
        assert (version.project, version.name, version.version) == (PLACE, "run-train000-model", "v0")
        assert (version.type, version.metrics, version.step, version.epoch) == ("model", {"bbox/mAP": 0.5}, 90, 1.5)
        md5 = hashlib.md5(b"weights").hexdigest()
        assert version.files == {"train000-model.pth": FileInfo(7, f"md5:{md5}")}
        assert (version.run, version.run_id) == (f"{PLACE}/train000", "train000")
        assert version.aliases == ("best", "latest") and version.metadata["by"] == "us"
        assert version.uri == f"wandb-artifact://{PLACE}/run-train000-model:v0" and version.created_ms > 0
    assert str(version.reference) == version.uri


def fetched(name: str, folder: Path) -> dict[str, bytes]:
    """The files of an artifact, got by several threads of one store, which is gone afterwards."""
    source = store()
    version = source.find(ArtifactReference("wandb", None, name))

    def fetch(path: str) -> bytes:
        target = folder / path.replace("/", "-")
        source.download(version, path, target)
        assert not target.is_symlink()
        return target.read_bytes()

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(version.files, threads.map(fetch, version.files), strict=True))


def test_files_arrive_from_several_threads_and_nothing_stays_behind(server: WandbServer, tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_SERVICE": ""}
    (tmp_path / "got").mkdir()
    got = fetched("balloon-train", tmp_path / "got")
    assert got == {"annotations.json": b"{}"} | {f"images/{n}.jpg": f"image {n}".encode() for n in range(5)}
    assert {**os.environ, "WANDB_SERVICE": ""} == environment, "a run of this process would find its data elsewhere"
    assert not list((tmp_path / "cache" / "scratch").iterdir())
    assert not [path for path in (tmp_path / "home").rglob("*") if "unified-tracker" not in str(path)]


def test_what_is_not_there_is_told_with_what_is_there_instead(server: WandbServer) -> None:
    for text, said in [
        ("balloon-train:v7", "has no 'v7'; it has latest, v0"),
        ("balloon-val", "has no artifact 'balloon-val'; it has balloon-train, run-train000-model"),
        ("other/balloon-train", "W&B has no project loopback/other"),
    ]:
        with pytest.raises(TrackerError, match=said):
            find(f"wandb-artifact://{text}")


def test_without_a_key_or_a_server_or_with_wandb_disabled_it_says_so(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    monkeypatch.setattr("unified_tracker.backends._wandb_artifact_store.INIT_S", 2.0)
    with pytest.raises(TrackerError, match="W&B"):
        find("wandb-artifact://balloon-train")
    server.start()
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigurationError, match="wandb login"):
        open_store("wandb", {"mode": "online"})
    with pytest.raises(ConfigurationError, match="disabled"):
        open_store("wandb", {"mode": "disabled"})
    open_store("wandb")  # offline, since there is no key: no line about recording for somebody who only looks
    assert capsys.readouterr().err == ""


def test_versions_are_listed_newest_first_by_type_and_name(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded("train001", checkpoint(b"second", metrics={"bbox/mAP": 0.6}))
    recorded("train002", *many())
    listed = [(version.name, version.version) for version in store().versions(type="model")]
    assert listed == [("many", f"v{n}") for n in (2, 1, 0)] + [(f"run-train00{n}-model", "v0") for n in (1, 0)]
    (version,) = store().versions(type="model", name="run-train001-model", project=PLACE)
    assert (version.run_id, version.metrics, version.size) == ("train001", {"bbox/mAP": 0.6}, None)
    assert [each.type for each in store().versions(name="balloon-train")] == ["dataset"]
    assert list(store().versions(type="nothing")) == []
    monkeypatch.delenv("WANDB_PROJECT")
    assert [(version.name, version.version) for version in store().versions(type="model")] == listed
    assert len(list(store().versions(type="model", name="many"))) == 3


def test_only_what_wandb_holds_is_fetched(server: WandbServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with wandb.init(project="balloon", mode="online", dir=tmp_path) as run:
        source = run.use_artifact("run-train000-model:latest")
        hostile = wandb.Artifact("hostile", type="model")
        hostile.add_reference(source.get_entry("train000-model.pth"), name="weights.pth")
        hostile.add_reference(secret.as_uri(), name="local.pth")
        hostile.add_reference("https://example.org/m.pth", name="web.pth", checksum=False)
        run.log_artifact(hostile).wait()
    source = store()
    version = source.find(ArtifactReference("wandb", None, "hostile"))
    assert version.files["weights.pth"].digest.startswith("md5:") and version.files["weights.pth"].size is None
    source.download(version, "weights.pth", tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == b"weights"
    for path in ("local.pth", "web.pth"):
        with pytest.raises(TrackerError, match="which W&B does not hold"):
            source.download(version, path, tmp_path / path)
        assert not (tmp_path / path).exists()


# ---- lineage -----------------------------------------------------------------------------------------------------


def test_what_a_run_used_is_in_wandbs_graph_and_in_the_store(server: WandbServer) -> None:
    dataset, model = find("wandb-artifact://balloon-train"), find("wandb-artifact://run-train000-model:best")
    val = Input(TS, "val", "dataset", "val.json", "val.json", digest="ab" * 32, metadata={"images": "val"})
    place = recorded("tuned000", used(use(model, "weights"), use(dataset, "train"), val))
    for file in place.lanes.iterdir():  # everything is sent again
        file.unlink()
    deliver(place)
    assert [version.used_by for version in server.versions] == [["tuned000"], ["tuned000"]]
    summary = store().run("tuned000")
    assert (summary.id, summary.run_id, summary.name) == (f"{PLACE}/tuned000", "tuned000", "run tuned000")
    assert [(each.role, each.name, each.version, each.uri) for each in summary.inputs] == [
        ("weights", "run-train000-model", "v0", model.uri),
        ("train", "balloon-train", "v0", dataset.uri),
        ("val", "val.json", "", ""),
    ]
    assert summary.inputs[0].reference == str(model.reference)  # W&B would take the bare address for an order
    assert summary.inputs[2].metadata == {"images": "val"} and summary.status == "finished" and summary.url
    assert [run.id for run in store().users(model)] == [f"{PLACE}/tuned000"]
    assert store().run(f"{PLACE}/tuned000") == summary


def test_answers_that_are_lost_make_nothing_twice(server: WandbServer) -> None:
    model = find("wandb-artifact://run-train000-model:best")
    for operation in ("UseArtifact", "UpdateArtifact", "CommitArtifact"):
        server.fault(f"^gql/{operation}$", 500, after=True, times=1)
    zoo = Input(TS, "weights", "model", ZOO, Path(ZOO).name, digest="12" * 32)
    recorded("eval0001", used(zoo, use(model, "checkpoint", metrics={"test/bbox/mAP": 0.4})))
    assert [version.used_by for version in server.versions] == [[], ["eval0001"], ["eval0001"]]
    assert server.committed("run-train000-model")[0].metadata["metrics"] == {"bbox/mAP": 0.5, "test/bbox/mAP": 0.4}


def test_what_others_used_is_told_too(server: WandbServer, tmp_path: Path) -> None:
    with wandb.init(project="balloon", id="theirs", mode="online", dir=tmp_path) as run:
        run.use_artifact("balloon-train:latest")
    (told,) = store().run("theirs").inputs
    assert (told.role, told.type, told.reference) == ("used", "dataset", f"wandb-artifact://{PLACE}/balloon-train:v0")


def test_what_an_evaluation_finds_stands_beside_what_the_training_found(server: WandbServer) -> None:
    model = find("wandb-artifact://run-train000-model:best")
    found = {"test/bbox/mAP": 0.4, "test/x": float("nan")}
    recorded("eval0000", used(use(model, "checkpoint"), use(model, "checkpoint", metrics=found)))
    assert find("wandb-artifact://run-train000-model:best").metrics == {"bbox/mAP": 0.5, "test/bbox/mAP": 0.4}
    (version,) = server.committed("run-train000-model")
    assert version.changes == 1 and version.used_by == ["eval0000"]
    (told,) = store().run("eval0000").inputs
    assert told.metrics == {"test/bbox/mAP": 0.4} and told.role == "checkpoint"


def test_weights_that_no_backend_holds_are_used_without_their_bytes(server: WandbServer, tmp_path: Path) -> None:
    local = tmp_path / "mine.pth"
    local.write_bytes(b"mine")
    zoo = Input(TS, "weights", "model", ZOO, Path(ZOO).name, digest="12" * 32)
    file = StagedFile("mine.pth", str(local), 4, local.stat().st_mtime_ns)
    other = Input(TS, "teacher", "model", str(local), "mine.pth", file=file)
    recorded("zoo00000", used(zoo, other))
    recorded("zoo00001", used(zoo))
    name = "detectron2-model-zoo-COCO-Detection_retinanet_R_50_FPN_1x_190397773_model_final_bfca0b.pkl"
    (version,) = server.committed(name)
    assert (version.type, version.used_by, version.files, version.run) == ("model", ["zoo00000", "zoo00001"], {}, "")
    assert version.metadata["original_url"] == ZOO and version.metadata["sha256"] == "12" * 32
    (mine,) = server.committed("mine.pth")
    assert mine.files == {} and mine.metadata["original_url"] == str(local)
    local.write_bytes(b"more")
    changed = StagedFile("mine.pth", str(local), 4, local.stat().st_mtime_ns)
    recorded("zoo00002", used(Input(TS, "weights", "model", str(local), "mine.pth", file=changed)))
    assert [version.used_by for version in server.committed("mine.pth")] == [["zoo00000"], ["zoo00002"]]
    summary = store().run("zoo00000")
    assert [(each.role, each.reference) for each in summary.inputs] == [("weights", ZOO), ("teacher", str(local))]
    with pytest.raises(TrackerError, match="which W&B does not hold"):
        store().download(find("wandb-artifact://mine.pth"), "mine.pth", tmp_path / "copy")


def test_a_version_that_the_server_does_not_have_is_told_and_holds_nothing_up(server: WandbServer) -> None:
    uri = f"wandb-artifact://{PLACE}/m:v1"
    place = recorded(
        "lost0000", used(Input(TS, "weights", "model", "wandb-artifact://m:v1", "m", "v1", "d", "wandb", uri))
    )
    state = place.lane_state("wandb")
    assert state is not None and any("no version that loopback's server has" in note for note in state.notes)
    (told,) = store().run("lost0000").inputs
    assert told.reference == "wandb-artifact://m:v1"


def test_what_was_recorded_offline_is_known_again_on_the_server_by_its_content(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    places = [recorded("data0001", artifact("balloon-train", {"annotations.json": b"[1]"}, type="dataset"))]
    mine = find("wandb-artifact://balloon-train")
    assert (mine.version, mine.project) == ("v0", "balloon")
    places.append(recorded("tuned001", used(use(mine, "train"))))
    assert [run.run_id for run in store().users(mine)] == ["tuned001"]
    monkeypatch.setenv("WANDB_MODE", "online")
    for place in places:
        Delivery(place).go_online()
        deliver(place)
    theirs = find("wandb-artifact://balloon-train")
    assert (theirs.version, theirs.digest) == ("v1", mine.digest)
    assert [version.used_by for version in server.committed("balloon-train")] == [[], ["tuned001"]]
    assert [each.digest for each in store().run("tuned001").inputs] == [mine.digest]


# ---- deleting ----------------------------------------------------------------------------------------------------


def test_a_deleted_version_is_gone_with_its_aliases(server: WandbServer) -> None:
    version = find("wandb-artifact://run-train000-model:best")
    assert not store().is_registered(version)
    server.committed("run-train000-model")[0].linked.append("detector")
    assert store().is_registered(version)
    store().delete(version)
    assert list(store().versions(type="model")) == []
    with pytest.raises(TrackerError, match="it has balloon-train"):
        find("wandb-artifact://run-train000-model:best")


def test_pruning_leaves_what_is_new_used_or_registered(server: WandbServer) -> None:
    recorded("train003", *many())
    first = find("wandb-artifact://many:v0")
    server.committed("many")[0].used_by.append("train000")
    assert [version.version for version in prune(store(), "many", 1)] == ["v1"]
    assert [version.version for version in store().versions(name="many")] == ["v2", "v0"]
    server.committed("many")[0].used_by.clear()
    server.committed("many")[0].linked.append("detector")
    assert prune(store(), "many", 1) == [] and store().is_registered(first)
