"""`edistill init`: what a folder holds, and a settings file for it, with the lines that only its owner can fill in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import FILE_NAME
from ensemble_distill.setup.fills import problems_of, raising, unwritten
from ensemble_distill.setup.finding import find_scene, stub_file, stub_name
from ensemble_distill.setup.splits import told
from ensemble_distill.setup.stub import stub
from ensemble_distill.setup.written import written


@dataclass(frozen=True)
class InitReport:
    """What was found, and what was written.

    Attributes:
        files: that were written.
        members: name, kind, model, parameters and problem of each.
        splits: rows and kind of each, or its problem.
        mend: what is wrong with members and data as they are, with remedies.
        fill: the lines to fill in, in the order in which they are needed: file, line and why.
        next: the command that comes next, once they are.
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
    """Write `edistill.toml` for the members in a folder, and where only their owner knows their modules `model.py` with
    functions to fill in. No code of theirs runs.

    Args:
        into: the folder of the file.
        overwrite: replace an `edistill.toml` that is there; no other file ever is.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: there is no member, or an `edistill.toml` already.
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
    text, files = written(scene), [file]
    fill = [(str(file), line, why) for line, why in text.fills]
    stubbed = [one for one in scene.built if one.stub]
    if stubbed:
        module = stub_file(root)
        names = [stub_name(index) for index, one in enumerate(scene.built) if one.stub]
        code = stub([one.members for one in stubbed], names)
        write_text(module, code)
        files.insert(0, module)
        fill = [*raising(module, code), *fill]
    write_text(file, "\n".join(text.lines) + "\n")
    fill = [*unwritten(scene), *fill]
    here = "" if root.resolve() == Path.cwd() else f" -c {file}"
    return InitReport(
        files=tuple(files),
        teachers=scene.teachers,
        members=tuple(
            {
                "name": one.name,
                "kind": one.kind,
                "model": one.model,
                "parameters": one.parameters,
                "problem": one.problem,
            }
            for one in scene.found
        ),
        splits={
            name: told(scene.splits.sources[name])
            if name in scene.splits.sources
            else {"problem": scene.splits.problems.get(name, "its columns are not declared yet")}
            for name in scene.splits.entries
        },
        mend=problems_of(scene),
        fill=tuple(fill),
        next=f"edistill doctor{here}" if fill or problems_of(scene) else f"edistill cache-logits{here}",
    )
