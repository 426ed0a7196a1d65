"""A cache with decoded pictures, what it holds of them, and what it must be the same as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import contents, settings

from ensemble_distill.settings import Settings

ON: dict[str, Any] = {"cache.decoded": True}
ROWS = {"train": 24, "validation": 20, "test": 9, "ood/noise": 5}


def on(folder: Path, **more: Any) -> Settings:
    return settings(folder, {**ON, "output.cache": "with", **{k.replace("__", "."): v for k, v in more.items()}})


def records(cache: Path) -> dict[str, bytes]:
    """All but the settings and the decoded pictures."""
    return {name: made for name, made in contents(cache, ["args.toml"]).items() if not name.startswith("decoded/")}


def blocks_of(cache: Path, split: str = "train") -> list[Path]:
    return sorted((cache / "decoded" / split).glob("*.safetensors"))
