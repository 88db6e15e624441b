"""What `doctor` says about W&B: its server, the key, the folder of offline runs. Light, imports no wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_tracker._probe import ask
from unified_tracker._tracker import Finding


def diagnose(options: Mapping[str, Any], base_url: str, *, has_key: bool) -> list[Finding]:
    """Look at what the mode needs: online a server and a key, offline a folder."""
    mode = options["mode"]
    if mode == "disabled":
        text = "the mode is 'disabled': the journal keeps everything, W&B gets nothing"
        return [Finding("wandb mode", "warning", text, "unset WANDB_MODE, or set it to 'online' or 'offline'")]
    if mode == "offline":
        return [_folder(Path(options.get("dir") or Path.cwd())), _key(has_key, needed=False)]
    return [*_server(base_url.rstrip("/")), _key(has_key, needed=True)]


def _key(has_key: bool, *, needed: bool) -> Finding:
    if has_key:
        return Finding("wandb key", "ok", "there is one")
    if not needed:
        return Finding("wandb key", "ok", "there is none; recording offline needs none")
    return Finding("wandb key", "error", "there is none in WANDB_API_KEY and netrc", "wandb login")


def _server(base_url: str) -> list[Finding]:
    answer = ask(f"{base_url}/healthz")
    if not answer.status:
        remedy = "correct WANDB_BASE_URL or the proxy's variables; or record with WANDB_MODE=offline"
        return [Finding("wandb server", "error", f"{base_url} does not answer: {answer.trouble}", remedy)]
    if answer.status >= 500:
        remedy = "try again later: what a training records meanwhile waits, and is delivered"
        findings = [Finding("wandb server", "warning", f"{base_url} answers HTTP {answer.status}", remedy)]
    else:
        said = "" if answer.status == 200 else f", HTTP {answer.status} to /healthz"
        findings = [Finding("wandb server", "ok", f"{base_url} answers{said}")]
    if answer.clock:
        findings.append(Finding("clock", "warning", answer.clock, "set this machine's clock (NTP)"))
    return findings


def _folder(folder: Path) -> Finding:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = "set WANDB_DIR to a folder that can be written"
        return Finding("wandb folder", "error", f"{folder} cannot be written", remedy)
    return Finding("wandb folder", "ok", f"offline runs go to {folder / 'wandb'}")
