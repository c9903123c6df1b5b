"""Where indexes that are slow to build are kept between runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def cache_folder(name: str) -> Path:
    """The folder ``name`` under ``$MSTR_CACHE`` (``~/.cache/mstr_hf`` if that is not set), made if needed."""
    folder = Path(os.environ.get("MSTR_CACHE") or "~/.cache/mstr_hf").expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_json(path: Path) -> Any:
    """The content of a cached JSON file; None if it is not there or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a cached JSON file in one step, so that processes starting together never see half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    partial.replace(path)
