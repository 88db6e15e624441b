"""Making a logged checkpoint servable: the files by which MLflow knows it as a model of the flavor `python_function`.

What `mlflow.pyfunc.save_model` writes for models from code, written by hand: that function loads the model to find out
what it needs, and here, in the uploader, no framework is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import platform
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import mlflow
import yaml
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from unified_tracker._detector import CARD_FILE, DetectorCard, read_card
from unified_tracker._errors import TrackerError

SCRIPT: Final = "detector.py"
FRAMEWORK: Final = "framework.py"
REQUIREMENTS: Final = "requirements.txt"
GENERATED: Final = ("MLmodel", "conda.yaml", "python_env.yaml", REQUIREMENTS, SCRIPT, FRAMEWORK)
ADAPTERS: Final = {"detectron2": "unified_tracker_detectron2", "mmdetection": "unified_tracker_mmdet"}
NEEDED: Final = {  # import names; distributions may be called otherwise
    "detectron2": ("torch", "torchvision", "detectron2"),
    "mmdetection": ("torch", "torchvision", "mmengine", "mmcv", "mmdet"),
}
NEEDED_BY_ALL: Final = ("numpy", "PIL", "pycocotools")
BUILD_TOOLS: Final = ("pip", "setuptools", "wheel")
SIGNATURE: Final = ModelSignature(
    Schema([ColSpec("string", "image")]),  # MLflow lets bytes pass in a column of strings
    params=ParamSchema([ParamSpec("score_threshold", "double", 0.0)]),
)
SETTINGS: Final = {"allow_paths": None, "device": None}  # what `model_config` may say; None: the detector decides


def add_serving_files(folder: Path, model: LoggedModel) -> str | None:
    """Add to the files of a model what makes it servable, if they say what detector it is.

    Args:
        folder: With the files as they were logged; nothing in it is written over.
        model: Which it is to be.

    Returns:
        Why it cannot be served; None if it can, or never was to be.
    """
    try:
        card = read_card(folder)
    except TrackerError as error:
        return str(error)
    if card is None:
        return None
    if card.weights is None or not all((folder / name).is_file() for name in (card.weights, card.config)):
        return "its weights are no single file"
    framework = _framework_file(card)
    if framework is None:
        return f"the package for {card.framework!r} is not installed where it was uploaded"
    if taken := [name for name in GENERATED if (folder / name).exists()]:
        return f"it has a file {taken[0]} of its own"
    shutil.copyfile(Path(__file__).with_name("_mlflow_detector.py"), folder / SCRIPT)
    shutil.copyfile(framework, folder / FRAMEWORK)
    packages = _requirements(card.framework)
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in packages), encoding="utf-8")
    _write_yaml(folder / "python_env.yaml", _python_env())
    _write_yaml(folder / "conda.yaml", _conda_env(packages))
    _describe(folder, model, card)
    return None


def _describe(folder: Path, model: LoggedModel, card: DetectorCard) -> None:
    """Write `MLmodel`; the same for every try."""
    artifacts = {"weights": card.weights, "config": card.config, "card": CARD_FILE, "framework": FRAMEWORK}
    created = datetime.fromtimestamp(model.creation_timestamp / 1000, timezone.utc)
    described = Model(
        run_id=model.source_run_id,
        utc_time_created=str(created.replace(tzinfo=None)),
        signature=SIGNATURE,
        model_uuid=model.model_id.removeprefix("m-"),
        model_id=model.model_id,
        metadata={"framework": card.framework, "classes": list(card.classes)},
        model_size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
    described.add_flavor(
        "python_function",
        artifacts={key: {"path": name, "uri": name} for key, name in artifacts.items()},
        code=None,
        config=dict(SETTINGS),
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        loader_module="mlflow.pyfunc.loaders.code_model",
        model_code_path=SCRIPT,
        python_version=platform.python_version(),
        streamable=False,
    )
    described.save(str(folder / "MLmodel"))


def _framework_file(card: DetectorCard) -> Path | None:
    """The part of the detector that knows the framework; found without importing anything."""
    adapter = ADAPTERS.get(card.framework)
    spec = importlib.util.find_spec(adapter) if adapter else None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "_serving.py"
        if path.is_file():
            return path
    return None


@functools.cache  # looking through all that is installed takes half a second
def _requirements(framework: str) -> tuple[str, ...]:
    """Distributions, with the versions that are installed here: those of the training, which started this process."""
    providers = importlib.metadata.packages_distributions()
    found = [name for needed in (*NEEDED[framework], *NEEDED_BY_ALL) for name in providers.get(needed, ())[:1]]
    return (f"mlflow=={mlflow.__version__}", *(_pinned(importlib.metadata.distribution(name)) for name in found))


def _pinned(distribution: importlib.metadata.Distribution) -> str:
    """As `pip` takes it. A package that was installed from a repository is named by it: the index may not have it."""
    name = distribution.metadata["Name"]
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        origin = {}
    source = origin.get("vcs_info", {}) if isinstance(origin, dict) else {}
    url = str(origin.get("url", "")) if source else ""
    if url.startswith("https://") and "@" not in url and source.get("commit_id"):
        return f"{name} @ {source['vcs']}+{url}@{source['commit_id']}"
    return f"{name}=={distribution.version.partition('+')[0]}"  # "+cpu" is known to PyTorch's own index only


def _python_env() -> dict[str, Any]:
    build = [name if version is None else f"{name}=={version}" for name, version in map(_installed, BUILD_TOOLS)]
    return {
        "python": platform.python_version(),
        "build_dependencies": build,
        "dependencies": [f"-r {REQUIREMENTS}"],
    }


def _conda_env(packages: Sequence[str]) -> dict[str, Any]:
    pip = {"pip": list(packages)}
    python = f"python={platform.python_version()}"
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [python, "pip", pip]}


def _installed(name: str) -> tuple[str, str | None]:
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, None


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, default_flow_style=False, sort_keys=False), encoding="utf-8")
