"""Finding everything in a folder that a settings file can state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.setup.architectures import architecture_of, timm_names
from ensemble_distill.setup.code import BODIES, MEMBERS, Factory, find
from ensemble_distill.setup.members import Found, alike, folder_of_members, look
from ensemble_distill.setup.splits import find_splits
from ensemble_distill.setup.stub import stub
from ensemble_distill.setup.written import Built, Scene, relative

STUB = "model.py"


def find_scene(folder: Path, root: Path, trust: bool) -> Scene:
    """What a folder contains, and what lies beside it if it contains only members.

    Args:
        root: the folder of the future settings file.

    Raises:
        EdistillError: there are no members.
    """
    teachers, others = folder_of_members(folder)
    found = look(teachers, trust)
    groups = alike(found)
    near = [teachers, folder, teachers.parent, root]
    factory = find(near, MEMBERS) if groups else None
    built = [_built(group, index, factory, root) for index, group in enumerate(groups)]
    body_factory = find(near, BODIES)
    splits = find_splits([folder, folder / "data", *([teachers.parent] if teachers == folder else []), root])
    return Scene(
        root=root,
        teachers=teachers,
        found=found,
        built=built,
        splits=splits,
        others=others,
        body=_body(found, built, body_factory, root),
        body_factory=body_factory,
    )


def _built(group: Sequence[Found], index: int, factory: Factory | None, root: Path) -> Built:
    """What builds a group of members: a timm architecture that fits, else an existing function, else a stub to fill
    in."""
    if (architecture := architecture_of(group)) is not None:
        return Built(group, architecture[0])
    if factory is not None:
        return Built(group, f"{relative(factory.file, root)}:{factory.name}", factory)
    return Built(group, f"{stub_file(root).name}:{stub_name(index)}", stub=True)


def stub_name(index: int) -> str:
    return MEMBERS[0] if index == 0 else f"{MEMBERS[0]}_{index + 1}"


def stub_file(root: Path) -> Path:
    """The file for functions to fill in, beside the settings file, under a name that is free."""
    file, count = root / STUB, 1
    while file.exists():
        count += 1
        file = root / f"model_{count}.py"
    return file


def stub_of(scene: Scene) -> dict[Path, str]:
    """The file with functions to fill in, and its text; empty if no function is missing."""
    stubbed = [(one.members, stub_name(index)) for index, one in enumerate(scene.built) if one.stub]
    if not stubbed:
        return {}
    groups, names = zip(*stubbed, strict=True)
    return {stub_file(scene.root): stub(groups, names, body=scene.body_factory is None)}


def _body(found: Sequence[Found], built: Sequence[Built], factory: Factory | None, root: Path) -> str | None:
    if factory is not None:
        return f"{relative(factory.file, root)}:{factory.name}"
    if any(one.stub for one in built):
        return f"{stub_file(root).name}:{BODIES[0]}"
    named = [group.model for group in built if group.factory is None for _ in group.members]
    named = timm_names([*named, *(one.model for one in found)])  # for an ONNX graph, model is its file's name
    return Counter(named).most_common(1)[0][0] if named else None
