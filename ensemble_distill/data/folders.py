"""What kind of data set a folder is, by the names of the files in it."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.data.walk import there

STATE = "state.json"  # of a data set that the library datasets saved
INFO = "dataset_info.json"
OF_SPLITS = "dataset_dict.json"  # of several of them, a folder each


def is_saved(folder: str | Path) -> bool:
    """Whether the library `datasets` saved it: a data set, or several splits of one."""
    here = Path(folder)
    return there(here / OF_SPLITS) or (there(here / STATE) and there(here / INFO))
