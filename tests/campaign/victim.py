"""What lies outside a hostile folder, and must stay as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny import contents


class Victim:
    """A folder with something precious in it, made anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "records").mkdir(parents=True)
        (folder / "precious").write_text("mine")
        (folder / "records" / "precious.v0.npy").write_text("mine")
        self._before = contents(folder)

    def harm(self) -> list[str]:
        """What was done to it; nothing where it is as it was."""
        after, found = contents(self.folder), []
        if after != self._before:
            found.append(f"what lies elsewhere changed: {sorted(after.keys() ^ self._before.keys())}")
        if (self.folder / "ran").exists():
            found.append("its code ran")
        return found
