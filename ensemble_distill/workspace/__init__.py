"""What a command opens once: splits, members, cache and device; and what is refused before anything is written."""

from ensemble_distill.workspace.workspace import Workspace

__all__ = ["Workspace"]
