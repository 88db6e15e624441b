"""Media records as W&B shows them at their step: pictures, tables, and text and figures as HTML."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import wandb
from PIL import Image

from unified_tracker.records import Media


def media(record: Media, file: Path) -> Any:
    """A record's content, as one of wandb's data types."""
    if record.form == "array":
        array = np.load(file, allow_pickle=False)
        grey = array.shape[2:] == (1,)
        return wandb.Image(Image.fromarray(array.squeeze(2) if grey else array), caption=record.caption)
    if record.form == "figure" and file.suffix != ".html":
        return wandb.Image(str(file), caption=record.caption)
    if record.form == "table":
        content = msgspec.json.decode(file.read_bytes())
        rows = content["data"] if "data" in content else content["rows"]
        limit = max(len(rows), wandb.Table.MAX_ROWS)  # wandb cuts longer tables off
        wandb.Table.MAX_ROWS, wandb.Table.MAX_ARTIFACT_ROWS = limit, max(limit, wandb.Table.MAX_ARTIFACT_ROWS)
        return wandb.Table(columns=content["columns"], data=rows, allow_mixed_types=True)
    text = file.read_text(encoding="utf-8")
    if record.form == "text":
        text = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
    return wandb.Html(text, inject=False)
