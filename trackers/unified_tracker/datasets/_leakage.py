"""Leakage: images that stand in two data sets, recognised by their bytes, under whatever names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shared_images(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names, in `a`, of the images that `b` has too.

    Args:
        a, b: Path in the artifact to a file with an attribute or key `sha256`, as `files` of `dataset.json`; or with
            an attribute `digest` ("sha256:<hex>"), as `ArtifactVersion.files`. Only what is below `images/` counts.

    Returns:
        File names without `images/`, sorted; each of the copies of an image, where `a` has several.
    """
    there = {digest for digest in _digests(b).values() if digest}
    return sorted(name for name, digest in _digests(a).items() if digest in there)


def _digests(files: Mapping[str, Any]) -> dict[str, str]:
    return {path.removeprefix("images/"): _sha256(file) for path, file in files.items() if path.startswith("images/")}


def _sha256(file: Any) -> str:
    if isinstance(file, Mapping):
        return str(file.get("sha256", ""))
    if (sha256 := getattr(file, "sha256", None)) is not None:
        return str(sha256)
    kind, _, digest = str(getattr(file, "digest", "")).partition(":")
    return digest if kind == "sha256" else ""
