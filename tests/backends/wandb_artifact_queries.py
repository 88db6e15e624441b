"""The double's answers about artifacts that exist: what W&B's public API, and a run that uses them, ask for.

By wandb 0.31: operations and fields are those of its generated queries. Pages are as small as `PAGE`, so that a client
that forgets to turn them is found out.
"""

# ruff: noqa: N802 -- operations are named as W&B names them
from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

ENTITY: Final = "loopback"
PAGE: Final = 2
GONE: Final = "DELETED"


@dataclass
class Version:
    """One version of an artifact.

    Attributes:
        run: Name of the run that made it; "" if it was only used.
        used_by: Names of the runs that used it.
        linked: Collections that it is linked into.
        changes: How often its metadata was changed.
    """

    id: str
    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    index: int
    state: str = "PENDING"
    aliases: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)  # by path in the artifact
    manifest: bytes = b""
    project: str = ""
    run: str = ""
    used_by: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    changes: int = 0
    created: str = "2026-01-01T00:00:00Z"


class ArtifactQueries:
    """Mixed into the server, which keeps the state."""

    versions: list[Version]
    runs: dict[str, Any]
    url: str
    _run_fields: Callable[[Any], dict[str, Any]]

    def _GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    # ---- lists -----------------------------------------------------------------------------------------------------

    def _GetProjects(self, given: dict[str, Any]) -> dict[str, Any]:
        names = sorted({version.project for version in self.versions} | {run.project for run in self.runs.values()})
        more = {"entityName": ENTITY, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
        nodes = [{"__typename": "Project", "id": name, "name": name, **more} for name in names]
        return {"models": _page(nodes, given)}

    def _ProjectArtifactTypes(self, given: dict[str, Any]) -> dict[str, Any]:
        kinds = sorted({version.type for version in self._in_project(given["project"])})
        nodes = [_type_fields(kind) for kind in kinds]
        return {"project": {"artifactTypes": _page(nodes, given)} if self._has_project(given["project"]) else None}

    def _ArtifactTypeArtifactCollections(self, given: dict[str, Any]) -> dict[str, Any]:
        known = self._collections(given["project"], given["type"])
        return {"project": {"artifactType": {"artifactCollections": _page(known, given)}}}

    def _ProjectArtifactCollections(self, given: dict[str, Any]) -> dict[str, Any]:
        known = self._collections(given["project"])
        page = _page(known, given)
        return {"project": {"artifactCollections": page} if self._has_project(given["project"]) else None}

    def _ProjectArtifactCollection(self, given: dict[str, Any]) -> dict[str, Any]:
        known = self._collections(given["project"], given["type"])
        found = next((each for each in known if each["name"] == given["name"]), None)
        kind = {"artifactCollection": found} if known else None
        return {"project": {"artifactType": kind} if self._has_project(given["project"]) else None}

    def _ArtifactCollectionAliases(self, given: dict[str, Any]) -> dict[str, Any]:
        project, _, name = given["id"].partition("/")
        names = sorted(
            {alias for version in self._in_project(project) if version.name == name for alias in version.aliases}
        )
        nodes = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in names]
        return {"artifactCollection": {"__typename": "ArtifactSequence", "aliases": _page(nodes, given)}}

    def _ProjectArtifacts(self, given: dict[str, Any]) -> dict[str, Any]:
        known = [version for version in self._in_project(given["project"]) if version.name == given["collection"]]
        page = _page([self._artifact_fields(version) for version in reversed(known)], given)
        for edge in page["edges"]:
            edge["version"] = f"v{edge['node']['versionIndex']}"
        kind = {"artifactCollection": {"__typename": "ArtifactSequence", "artifacts": page} if known else None}
        return {"project": {"artifactType": kind}}

    # ---- one version -----------------------------------------------------------------------------------------------

    def _ArtifactMembershipByName(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["entity"] != ENTITY or not self._has_project(given["project"]):
            return {"project": None}
        name, _, alias = given["name"].partition(":")
        known = [version for version in self._in_project(given["project"]) if version.name == name]
        found = [version for version in known if alias in {*version.aliases, f"v{version.index}"}]
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        (version,) = found
        fields = self._artifact_fields(version)
        membership = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"membership-{version.id}",
            "versionIndex": version.index,
            "createdAt": version.created,
            "aliases": [
                {key: alias[key] for key in ("__typename", "id", "alias")}
                for alias in [*fields["aliases"], _alias(f"v{version.index}")]
            ],
            "artifactCollection": fields["artifactSequence"],
            "artifact": {key: value for key, value in fields.items() if key != "aliases"},
        }
        return {"project": {"artifactCollectionMembership": membership}}

    def _ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact_fields(self._version(given["id"]))}

    def _FetchArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/storage/manifest/{given['id']}/wandb_manifest.json"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _ArtifactCreatedBy(self, given: dict[str, Any]) -> dict[str, Any]:
        maker = self.runs.get(self._version(given["id"]).run)
        return {"artifact": {"createdBy": self._run_reference(maker) if maker is not None else None}}

    def _ArtifactUsedBy(self, given: dict[str, Any]) -> dict[str, Any]:
        users = [self.runs[name] for name in self._version(given["id"]).used_by]
        return {"artifact": {"usedBy": {"edges": [{"node": self._run_reference(run)} for run in users]}}}

    def _RunInputArtifacts(self, given: dict[str, Any]) -> dict[str, Any]:
        used = [version for version in self.versions if given["run"] in version.used_by]
        page = _page([self._artifact_fields(version) for version in used], given)
        return {"project": {"run": {"artifacts": page}}}

    def _FetchLinkedArtifacts(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self._version(given["artifactID"])
        own = {"artifactCollection": _collection_fields(version)}
        linked = [
            {"artifactCollection": {**_collection_fields(version), "__typename": "ArtifactPortfolio", "name": name}}
            for name in version.linked
        ]
        more = {"versionIndex": version.index, "createdAt": version.created, "aliases": []}
        edges = [{"node": {**more, **collection}} for collection in (own, *linked)]
        return {"artifact": {"artifactMemberships": {"edges": edges}}}

    # ---- changes -----------------------------------------------------------------------------------------------------

    def _UseArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given.get("input", given)
        version = self._version(asked["artifactID"])
        if asked["runName"] not in version.used_by:
            version.used_by.append(asked["runName"])
        fields = {"description": None, "createdAt": version.created, "metadata": json.dumps(version.metadata)}
        return {
            "useArtifact": {"artifact": {"id": version.id, "digest": version.digest, "state": version.state, **fields}}
        }

    def _UpdateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self._version(given["input"]["artifactID"])
        version.metadata = json.loads(given["input"]["metadata"])
        version.changes += 1
        return {"result": {"artifact": self._artifact_fields(version)}}

    def _DeleteArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self._version(given["input"]["artifactID"])
        assert given["input"]["deleteAliases"] or not version.aliases
        version.state, version.aliases = GONE, set()
        return {"result": {"artifact": {"id": version.id}}}

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _version(self, identity: str) -> Version:
        return next(version for version in self.versions if version.id == identity)

    def _in_project(self, project: str) -> list[Version]:
        return [version for version in self.versions if version.project == project and version.state == "COMMITTED"]

    def _has_project(self, project: str) -> bool:
        return any(item.project == project for item in [*self.versions, *self.runs.values()])

    def _collections(self, project: str, kind: str | None = None) -> list[dict[str, Any]]:
        known = {version.name: version for version in self._in_project(project) if kind in {None, version.type}}
        return [
            {
                **_collection_fields(version),
                "id": f"{project}/{name}",
                "description": None,
                "createdAt": version.created,
                "updatedAt": None,
                "type": {"name": version.type},
                "tags": {"edges": []},
            }
            for name, version in sorted(known.items())
        ]

    def _artifact_fields(self, version: Version) -> dict[str, Any]:
        collection = _collection_fields(version)
        return {
            "__typename": "Artifact",
            "id": version.id,
            "artifactSequence": collection,
            "versionIndex": version.index,
            "artifactType": {"name": version.type},
            "description": None,
            "metadata": json.dumps(version.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": version.state,
            "size": sum(len(content) for content in version.files.values()),
            "digest": version.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": version.id,
            "fileCount": len(version.files),
            "createdAt": version.created,
            "updatedAt": None,
            "aliases": [{**_alias(alias), "artifactCollection": collection} for alias in sorted(version.aliases)],
        }

    def _run_reference(self, run: Any) -> dict[str, Any]:
        return {"__typename": "Run", "id": f"id-{run.id}", "name": run.id, "project": _project_fields(run.project)}

    def _bytes_of(self, digest: str) -> bytes | None:
        """The content of a file that some version holds, by its MD5 in hexadecimal."""
        contents = (content for version in self.versions for content in version.files.values())
        return next((content for content in contents if hashlib.md5(content).hexdigest() == digest), None)


def identity(number: int) -> str:
    """Of a version: base64, as the service's are."""
    return base64.b64encode(f"ArtifactVersion:{number}".encode()).decode()


def _page(nodes: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    first = int(given.get("cursor") or 0)
    edges = [{"node": node, "cursor": str(first)} for node in nodes[first : first + PAGE]]
    end = first + len(edges)
    info = {"__typename": "PageInfo", "endCursor": str(end), "hasNextPage": end < len(nodes)}
    return {"totalCount": len(nodes), "pageInfo": info, "edges": edges}


def _alias(name: str) -> dict[str, Any]:
    return {"__typename": "ArtifactAlias", "id": name, "alias": name}


def _type_fields(name: str) -> dict[str, Any]:
    more = {"description": None, "createdAt": "2026-01-01T00:00:00Z"}
    return {"__typename": "ArtifactType", "id": name, "name": name, **more}


def _project_fields(name: str) -> dict[str, Any]:
    return {"id": "p", "internalId": "1", "name": name, "entity": {"name": ENTITY}}


def _collection_fields(version: Version) -> dict[str, Any]:
    return {"__typename": "ArtifactSequence", "name": version.name, "project": _project_fields(version.project)}


def references(manifest: bytes) -> Iterator[tuple[str, str]]:
    """Path and address of what a manifest refers to."""
    for path, entry in json.loads(manifest)["contents"].items():
        if "ref" in entry:
            yield path, entry["ref"]
