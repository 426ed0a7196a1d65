"""`edistill init`: what a folder holds, and a settings file for it, with lines that only its owner can fill in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings import FILE_NAME
from ensemble_distill.setup.fills import problems_of, raising, unwritten
from ensemble_distill.setup.finding import find_scene, stub_of
from ensemble_distill.setup.members import told_members
from ensemble_distill.setup.splits import told_splits
from ensemble_distill.setup.written import written


@dataclass(frozen=True)
class InitReport:
    """What was found, and what was written.

    Attributes:
        files: the files that were written.
        members: name, kind, model, parameters and problem of each.
        splits: rows and kind of each, or its problem.
        mend: problems of the present members and data, with remedies.
        fill: the lines to fill in, in the order in which they are needed: file, line and why.
        next: the command that comes next, once they are filled in.
    """

    files: tuple[Path, ...]
    teachers: Path
    members: tuple[dict[str, Any], ...]
    splits: dict[str, dict[str, Any]]
    mend: tuple[str, ...]
    fill: tuple[tuple[str, int, str], ...]
    next: str


def init(
    folder: str | Path,
    into: str | Path = ".",
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> InitReport:
    """Write `edistill.toml` for the members in a folder.

    If only their owner knows the members' modules, also write `model.py` with functions to fill in. None of the
    members' code is run.

    Args:
        into: the folder to write to.
        overwrite: replace an existing `edistill.toml`; no other file is ever replaced.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: there is no member, or there is an `edistill.toml` already.
    """
    folder, root, progress = Path(folder), Path(into), progress or Silent()
    file = root / FILE_NAME
    if file.exists() and not overwrite:
        raise EdistillError(
            f"{file} is there already. edistill doctor says what is wrong with it; to write another in its place, pass "
            "--overwrite."
        )
    if folder.resolve() != root.resolve() and (folder / FILE_NAME).is_file():
        progress.warn(f"{folder} has an {FILE_NAME} of its own: commands run in {folder} read that.")
    scene = find_scene(folder, root, trust)
    text, code = written(scene), stub_of(scene)
    files = {**code, file: "\n".join(text.lines) + "\n"}
    for path, content in files.items():
        write_text(path, content)
    fill = [*unwritten(scene), *raising(code), *((str(file), line, why) for line, why in text.fills)]
    mend = problems_of(scene)
    here = "" if root.resolve() == Path.cwd() else f" -c {shell(file)}"
    trusted = " --trust-checkpoints" if trust else ""
    return InitReport(
        files=tuple(files),
        teachers=scene.teachers,
        members=told_members(scene.found),
        splits=told_splits(scene.splits),
        mend=mend,
        fill=tuple(fill),
        next=f"edistill {'doctor' if fill or mend else 'cache-logits'}{here}{trusted}",
    )
