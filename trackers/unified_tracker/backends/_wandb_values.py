"""What W&B accepts, and how everything else is made acceptable: names, configuration, aliases, tags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from unified_tracker._naming import Renamer
from unified_tracker.records import Artifact

AXIS: Final = "trainer/step"
ARTIFACT_URI: Final = "wandb-artifact://"
NAME_LIMIT: Final = 128
TAG_LIMIT: Final = 64
METADATA_KEYS: Final = 100
RESERVED_TYPES: Final = frozenset({"job", "code", "run_table"})
RESERVED_FILES: Final = re.compile(
    r"media/.*|code/.*|wandb-[^/]*|config\.yaml|output\.log|requirements\.txt|conda-environment\.yaml|diff\.patch"
)


def metric_name(name: str) -> str:
    """W&B drops "" silently, keeps a leading "_" for itself, cannot encode lone surrogates; the axis is ours."""
    clean = name.encode("utf-8", "replace").decode()
    if not clean:
        return "empty"
    return f"x{clean}" if clean.startswith("_") or clean == AXIS else clean


def config_key(name: str) -> str:
    """W&B strips "-" from a key's ends, keeps "_wandb" for itself, and takes "." for nesting."""
    clean = name.encode("utf-8", "replace").decode().replace(".", "_").strip("-")
    return f"x{clean}" if clean in {"", "_wandb", "_type"} else clean


def project_name(name: str) -> str:
    """A project that MLflow takes as it is and W&B would refuse for ever."""
    return re.sub(r"[/\\#?%:]", "-", name.strip())[:NAME_LIMIT] or "uncategorized"


def artifact_name(name: str) -> str:
    """Letters, digits, `_ - .` are allowed."""
    return re.sub(r"[^a-zA-Z0-9_\-.]", "-", name) or "artifact"


def artifact_type(name: str) -> str:
    """As a name, and not one of those that W&B keeps for itself."""
    clean = artifact_name(name)
    return f"x-{clean}" if clean.startswith("wandb-") or clean in RESERVED_TYPES else clean


config_keys: Final = Renamer(config_key, 10_000)
_tag_ends: Final = Renamer(lambda key: key.encode("utf-8", "replace").decode().rstrip("-"), 10_000)
artifact_names: Final = Renamer(artifact_name, NAME_LIMIT)
artifact_types: Final = Renamer(artifact_type, NAME_LIMIT)


def aliases(names: Sequence[str]) -> list[str]:
    """Aliases as W&B takes them: "/" becomes ".", ":" becomes "-"; "v3" is W&B's own word for a version."""
    result = []
    for name in names:
        clean = name.strip().replace("/", ".").replace(":", "-")[:NAME_LIMIT]
        if re.fullmatch(r"v\d+", clean):
            clean = f"alias-{clean}"
        if clean and clean != "latest":  # implied
            result.append(clean)
    return list(dict.fromkeys(result))


def asked_alias(name: str) -> str:
    """An alias, or a version, as somebody asks for it: "latest" and "v3" mean what W&B means by them."""
    if name == "latest" or re.fullmatch(r"v\d+", name):
        return name
    return next(iter(aliases([name])), name)


def run_tags(tags: Mapping[str, str]) -> list[str]:
    """Our tags as W&B's flat words: "key:value", or "key" for a flag. What does not fit stands in the config only."""
    words = []
    for key, value in tags.items():
        word = key if value in {"", "true"} else f"{key}:{value}"
        if 0 < len(word) <= TAG_LIMIT and not key.startswith(("mlflow.", "unified_tracker.")):
            words.append(word)
    return list(dict.fromkeys(words))


def tag_key(key: str) -> str:
    """Where a tag stands in the config: flat, since "a" and "a.b" may both be tags."""
    own = key.removeprefix("unified_tracker.")
    return f"unified_tracker/{_tag_ends(own)}" if own != key else f"tags/{_tag_ends(key)}"


def plain(value: Any) -> Any:
    """A value as JSON can hold it and wandb leaves it alone.

    NaN and infinities become "NaN", "Infinity", "-Infinity" (what W&B itself writes in a summary; wandb would make
    None of a NaN and refuse an infinity). A `wandb-artifact://` URI is put into `<>`: wandb takes the bare one for an
    order to fetch the artifact, asks the server, and refuses the whole configuration when that fails.
    """
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        clean = value.encode("utf-8", "replace").decode()
        return f"<{clean}>" if clean.startswith(ARTIFACT_URI) else clean
    return value


def unwrapped(value: Any) -> Any:
    """A value from a configuration without the `<>` of `plain`."""
    if isinstance(value, Mapping):
        return {key: unwrapped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [unwrapped(inner) for inner in value]
    if isinstance(value, str) and value.startswith(f"<{ARTIFACT_URI}") and value.endswith(">"):
        return value[1:-1]
    return value


def json_like(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value as JSON can hold it, with addresses of artifacts as they are: not for wandb."""
    result: dict[str, Any] = unwrapped(plain(value))
    return result


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of the metrics that are finite numbers: nothing else can be compared, or stored as JSON."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration with "a.b" as {"a": {"b": ...}}: W&B shows both as "a.b", but filters by the nested one only."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        value = nested(value) if isinstance(value, Mapping) else plain(value)
        parts = key.split(".")
        if not all(parts):
            parts = [key]
        for part in reversed(parts[1:]):
            value = {config_keys(part): value}
        merge(result, {config_keys(parts[0]): value})
    return result


def merge(old: dict[str, Any], new: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    """Merge new values into old ones, in place, and return what was changed: (dotted name, before, after)."""
    changes: list[tuple[str, Any, Any]] = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            changes += merge(before, value, (*path, key))
            continue
        if key in old and before != value:
            changes.append((".".join((*path, key)), before, value))
        old[key] = value
    return changes


def metadata(record: Artifact) -> dict[str, Any]:
    """An artifact's metadata: the caller's and the record's. W&B takes 100 keys; the rest goes under "more"."""
    result: dict[str, Any] = dict(plain(record.metadata))
    own = {"metrics": plain(record.metrics) or None, "step": record.step, "epoch": record.epoch}
    for key, value in own.items():
        if value is not None:
            result[f"unified_tracker/{key}" if key in result else key] = value
    if len(result) > METADATA_KEYS:
        keys = list(result)
        more = {key: result.pop(key) for key in keys[METADATA_KEYS - 1 :]}
        result["more"] = more
    return result
