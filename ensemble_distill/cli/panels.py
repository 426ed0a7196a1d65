"""The groups of options in a command's help, and their order: dangerous options come last."""

from __future__ import annotations

PURPOSE = "What it is for"
TRAINING = "Training"
MACHINE = "Machine"
FILES = "Files"
OTHERS = "Options"  # typer's own group, which contains --help
DANGEROUS = "Dangerous"
PANELS = (PURPOSE, TRAINING, MACHINE, FILES, OTHERS, DANGEROUS)

PURPOSES = {"train.method", "train.generations", "train.teacher", "train.effort", "train.epochs", "train.seed"}
PURPOSES |= {"student.share", "limit"}
MACHINES = {"train.device", "train.workers", "train.amp", "train.amp-dtype", "train.channels-last", "cache.batch-size"}


# of a command's own parameters, by their names in its function; the default is PURPOSE
OWN = dict.fromkeys(("json", "quiet", "style"), OTHERS)
OWN |= dict.fromkeys(("config_file", "assignments", "output", "into", "report", "picture"), FILES)
OWN |= dict.fromkeys(("overwrite", "trust", "changed", "force"), DANGEROUS)


def own_panel(parameter: str) -> str:
    """The group of an option that is not a setting."""
    return OWN.get(parameter, PURPOSE)


def panel_of(key: str) -> str:
    """The group of a flag, by its setting."""
    if key in PURPOSES:
        return PURPOSE
    if key in MACHINES:
        return MACHINE
    return FILES if key.startswith(("output.", "cache.")) else TRAINING
