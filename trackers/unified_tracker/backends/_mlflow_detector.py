"""A tracked detector as MLflow serves it: pictures in, COCO results out.

This file is copied into every servable model, as `detector.py`, the code of its flavor `python_function`; beside it
stands `framework.py`, which builds the model. Both import nothing of the tracker.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas
from mlflow.exceptions import MlflowException
from PIL import Image

COLUMN = "image"
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # set by MLflow's server before the first request


class Detector(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow is not looked into
    """A detector.

    Input: pictures, in a column or under a key "image", or a list of them. A picture is the bytes of an image file, the
    same in base64 (with or without "data:image/jpeg;base64,"), or a path. A server takes no paths, which strangers
    would choose, unless the model is loaded with `model_config={"allow_paths": True}`.

    Output: for each picture a list of `{"bbox": [x, y, width, height], "score", "category_id", "category"}`, best
    first, with "segmentation" (COCO's compressed run lengths) and "keypoints" where the model has them.
    """

    def load_context(self, context: Any) -> None:
        """Build the model. Unpickles its weights, where they are more than weights."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        settings = context.model_config or {}
        self._card = json.loads(files["card"].read_text(encoding="utf-8"))
        self._allow_paths: bool | None = settings.get("allow_paths")
        self._turn = threading.Lock()  # a server asks from several threads
        framework = _module(files["framework"])
        self._detector = framework.FrameworkDetector(
            files["config"], files["weights"], self._card.get("imports") or (), settings.get("device")
        )

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Detect.

        Args:
            context: MLflow's.
            model_input: As above; MLflow makes a frame of whatever it is given.
            params: "score_threshold": the lowest score that is returned; default 0, all that the model gives.

        Raises:
            MlflowException: An input is no picture. Nothing is detected then.
        """
        threshold = float((params or {}).get("score_threshold") or 0.0)
        pictures = [self._content(number, given) for number, given in enumerate(_pictures(model_input))]
        return [self._detections(content, threshold) for content in pictures]

    def _detections(self, content: bytes, threshold: float) -> list[dict[str, Any]]:
        with self._turn:
            found = self._detector.detect(content)
        rows = [row for row in found if row["score"] >= threshold]
        return [self._named(row) for row in sorted(rows, key=lambda row: -row["score"])]

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A detection with the data set's own category instead of the label."""
        label, classes, ids = int(row["category_id"]), self._card.get("classes") or (), self._card.get("category_ids")
        keep = {key: row[key] for key in ("segmentation", "keypoints") if row.get(key) is not None}
        return {
            "bbox": [float(value) for value in row["bbox"]],
            "score": float(row["score"]),
            "category_id": ids[label] if ids else label,
            "category": classes[label] if label < len(classes) else str(label),
            **keep,
        }

    def _content(self, number: int, given: Any) -> bytes:
        """The bytes of one picture, which Pillow knows."""
        content = self._read(number, given)
        try:
            with Image.open(io.BytesIO(content)):
                return content
        except Exception as error:
            raise _refused(number, f"is no picture: {type(error).__name__}") from error

    def _read(self, number: int, given: Any) -> bytes:
        if isinstance(given, (bytes, bytearray, memoryview)):
            return bytes(given)
        if not isinstance(given, (str, os.PathLike)):
            raise _refused(number, f"is a {type(given).__name__}; bytes, base64 or a path are taken")
        text = os.fspath(given)
        if self._takes_paths() and os.path.isfile(text):  # `Path.is_file` raises for a name that is too long
            return Path(text).read_bytes()
        try:
            return base64.b64decode("".join(text.partition("base64,")[2].split() or text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            words = "is neither base64 nor a file" if self._takes_paths() else "is no base64; paths are not taken here"
            raise _refused(number, words) from error

    def _takes_paths(self) -> bool:
        return os.environ.get(SERVING, "").lower() != "true" if self._allow_paths is None else bool(self._allow_paths)


def _pictures(given: Any) -> Iterator[Any]:
    """One by one: out of a frame, or a list; a cell of a frame may hold a list again."""
    if isinstance(given, (pandas.DataFrame, Mapping)):
        if COLUMN not in given:
            raise MlflowException.invalid_parameter_value(f'there is no column "{COLUMN}"')
        given = given[COLUMN]
    if isinstance(given, pandas.Series):
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _pictures(each)
    else:
        yield given


def _refused(number: int, why: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"picture {number} {why}")


def _module(path: Path) -> Any:
    """A module from its file, under a name that no other model's takes."""
    spec = importlib.util.spec_from_file_location(f"detector_framework_{abs(hash(path))}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101 -- it is a file of Python
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(Detector())
