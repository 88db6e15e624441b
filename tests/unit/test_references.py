"""References: what they mean, what they say of themselves, and that processes which belong together agree on them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_tracker import ConfigurationError, _pins
from unified_tracker._pruning import superfluous
from unified_tracker._reference import ArtifactReference, parse
from unified_tracker._versions import ArtifactVersion

NAMES = st.text(st.characters(exclude_characters="/:%?#\n", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("mlflow-artifact://name", ArtifactReference("mlflow", None, "name")),
        ("mlflow-artifact://name:best-bbox.AP", ArtifactReference("mlflow", None, "name", "best-bbox.AP")),
        ("mlflow-artifact://my exp/name:v3", ArtifactReference("mlflow", "my exp", "name", "v3")),
        ("wandb-artifact://me/proj/name:latest", ArtifactReference("wandb", "me/proj", "name", "latest")),
        (
            "wandb-artifact://proj/name:v1/images/a:b 1.jpg",
            ArtifactReference("wandb", "proj", "name", "v1", "images/a:b 1.jpg"),
        ),
        ("models:/detector@best", ArtifactReference("mlflow", None, "detector", "best", "", "models:/detector@best")),
        ("models:/detector/3", ArtifactReference("mlflow", None, "detector", "3", "", "models:/detector/3")),
        ("models:/m-0a1b", ArtifactReference("mlflow", None, "m-0a1b", "", "", "models:/m-0a1b")),
        ("runs:/0a1b/shapes/v0", ArtifactReference("mlflow", None, "v0", "", "", "runs:/0a1b/shapes/v0")),
    ],
)
def test_a_reference_means(text: str, meaning: ArtifactReference) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "model.pth",
        "/data/x.pth",
        "https://host/x.pth",
        "detectron2://a/b.pkl",
        "C:\\x.pth",
        "",
        "a:b",
        "torchvision://x",
    ],
)
def test_what_is_no_reference_is_a_path(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    "text", ["mlflow-artifact://", "wandb-artifact:///", "models:/", "runs:/abc", "x-artifact://a:b:c"]
)
def test_what_begins_like_a_reference_and_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no artifact reference"):
        parse(text)


@given(st.sampled_from(["mlflow", "wandb"]), st.none() | NAMES, NAMES, NAMES)
def test_a_reference_is_what_its_text_says(backend: str, project: str | None, name: str, alias: str) -> None:
    reference = ArtifactReference(backend, project, name, alias)
    assert parse(str(reference)) == reference


# ---- processes that belong together -------------------------------------------------------------------------------


def ask(answer: bytes) -> bytes:
    return _pins.shared("question", lambda: answer, lambda found: True)


def child(answer: bytes, queue: multiprocessing.Queue[bytes]) -> None:
    queue.put(ask(answer))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_take_what_their_process_has_found_out(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFIED_TRACKER_CACHE", str(tmp_path))
    assert ask(b"v3") == b"v3"
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=child, args=(b"v4", queue))
    worker.start()
    assert queue.get(timeout=60) == b"v3"
    worker.join()
    assert ask(b"v5") == b"v5"  # the process itself asks anew


def test_ranks_of_one_launch_agree_and_a_program_that_the_user_starts_asks_anew(tmp_path: Path) -> None:
    program = (
        "import sys; from unified_tracker import _pins\n"
        "print(_pins.shared('question', lambda: sys.argv[1].encode(), lambda found: True).decode())"
    )
    environment = {**os.environ, "UNIFIED_TRACKER_CACHE": str(tmp_path)}
    ranked = {**environment, "WORLD_SIZE": "2", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "one"}

    def said(answer: str, variables: dict[str, str]) -> str:
        return subprocess.check_output([sys.executable, "-c", program, answer], env=variables, text=True).strip()

    assert [said("v3", ranked), said("v4", ranked)] == ["v3", "v3"]
    assert said("v5", {**ranked, "TORCHELASTIC_RUN_ID": "two"}) == "v5"
    assert said("v6", environment) == "v6"


# ---- what a backend need not keep ---------------------------------------------------------------------------------

VERSIONS = st.lists(
    st.tuples(st.integers(0, 50), st.sets(st.sampled_from(["iter_3", "epoch_1", "best", "best-bbox.AP", "mine"]))),
    max_size=12,
)


@given(VERSIONS, st.integers(0, 4), st.integers(0, 10), st.sets(st.integers(0, 11)))
def test_what_goes_has_no_name_no_user_and_is_not_among_the_last(
    made: list[tuple[int, set[str]]], last: int, every: int, used: set[int]
) -> None:
    versions = [
        ArtifactVersion(
            "mlflow", None, "m", f"v{n}", "model", f"{n}", f"{n}", {}, tuple(aliases), step=step, created_ms=n
        )
        for n, (step, aliases) in enumerate(made)
    ]
    gone = superfluous(versions, last, every, lambda version: int(version.digest) in used)
    kept = [version for version in versions if version not in gone]
    assert kept[-max(last, 1) :] == versions[-max(last, 1) :]
    for version in gone:
        assert set(version.aliases) <= {"iter_3", "epoch_1"}
        assert int(version.digest) not in used
        assert not every or version.step is None or version.step % every
    for version in kept[: -max(last, 1)]:
        named = set(version.aliases) - {"iter_3", "epoch_1"}
        assert (
            named or int(version.digest) in used or (every and version.step is not None and version.step % every == 0)
        )
