"""The libraries that the outputs of members and students depend on."""

from __future__ import annotations

from importlib.metadata import version


def library_versions() -> dict[str, str]:
    """Their versions, by name."""
    return {name: version(name) for name in ("torch", "timm", "numpy", "pillow")}
