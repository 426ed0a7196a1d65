"""`edistill.toml` as `init` writes it: settings for what was found, and lines to fill in for what only the user
knows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from ensemble_distill.data.entry import Entry
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import harmless_json, one_line
from ensemble_distill.setup.code import Factory
from ensemble_distill.setup.members import Found, told_kinds
from ensemble_distill.setup.splits import Splits
from ensemble_distill.tasks import open_task
from ensemble_distill.teachers.ready_made import outputs_of as ready_outputs

LIKELY = "as the outputs that were found look"
COLUMN = 56  # column of the comments
FILL = "FILL IN"
SOURCES = (
    "a folder of images, .tar shards or save_to_disk; an .npz with x and y; a .csv, .jsonl or .parquet; a .txt; "
    "torch/NAME; or file.py:factory"
)
SUMMED = 1e-3  # by which a row's probabilities may miss the sum 1
READY_MADE = "ready_made"  # the kind of outputs without a network
VIEWS = {
    "pixels": "crop-flip+mixup",
    "tensor": "mixup",
    "features": "mixup",
    "series": "mixup",
    "volume": "mixup",
    "text": "token-dropout",
}


@dataclass(frozen=True)
class Built:
    """What builds the bare weights of one architecture.

    Attributes:
        model: as in `teachers.model`.
        factory: the function behind it; None for a timm name.
        stub: whether `init` writes that function for the user to fill in.
    """

    members: Sequence[Found]
    model: str
    factory: Factory | None = None
    stub: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that was found, and where the file goes.

    Attributes:
        root: the folder of the file, which its paths are relative to.
        body: `student.model`; None if nothing suggests one.
        body_factory: the existing function behind it, if any.
    """

    root: Path
    teachers: Path
    found: Sequence[Found]
    built: Sequence[Built]
    splits: Splits
    others: Sequence[Path] = ()
    body: str | None = None
    body_factory: Factory | None = None


@dataclass
class Text:
    """The lines of the file, and those for the user to fill in, with their numbers and reasons."""

    lines: list[str] = field(default_factory=list)
    fills: list[tuple[int, str]] = field(default_factory=list)

    def say(self, text: str = "", why: str = "") -> None:
        line = f"{text:<{COLUMN}} # {why}" if why else text
        self.lines.append(one_line(line))  # names are foreign, and may not end a comment

    def set(self, key: str, value: Any, why: str = "") -> None:
        self.say(f"{key} = {toml(value)}", why)

    def fill(self, key: str, example: str, why: str) -> None:
        """Add a line that stays a comment until the user fills it in."""
        self.say(f"# {key} = {example}", f"{FILL}: {why}")
        self.fills.append((len(self.lines), f"{key}: {why}"))


def toml(value: Any) -> str:
    """A value as TOML in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return harmless_json(tomli_w.dumps({"": value}).partition("=")[2].strip())  # TOML shares JSON's escapes


def relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()


def written(scene: Scene) -> Text:
    """The whole file."""
    text, task = Text(), scene.splits.task or "classification"
    text.say(f"# Written by edistill init: {len(scene.found)} members ({told_kinds(scene.found) or 'none loads yet'}).")
    text.say(f"# Paths are relative to this file. Lines with {FILL} are yours: fix them, and take the first # away.")
    text.say("# edistill doctor says what is wrong here; edistill settings lists every key.")
    text.set("task", task, "what the labels that were found fit" if scene.splits.task else "no labels were found")
    _teachers(text, scene, task)
    _data(text, scene)
    _views(text, scene)
    _student(text, scene)
    text.say()
    text.say("[train]")
    text.set("method", "hydra", "edistill methods lists them")
    return text


def _teachers(text: Text, scene: Scene, task: str) -> None:
    text.say()
    text.say("[teachers]")
    text.set("path", relative(scene.teachers, scene.root), told_kinds(scene.found))
    for folder in scene.others:
        text.say(f"# path = {toml(relative(folder, scene.root))}", "holds members, too")
    for one in scene.found:
        if one.problem is not None:
            text.say(f"# {one.path.name} is not a member as it is: edistill doctor says why")
    first = scene.built[0] if scene.built else None
    if first is not None:
        _built(text, first)
    if open_task(task).says_labels:
        text.fill("output", '"mean-variance"', 'what members return: "mean" (then variance, too), or "mean-logvar"')
    elif first is not None:
        text.set("output", "logits", 'or "probabilities", where a softmax or sigmoid is in the module')
    likely = [] if open_task(task).says_labels else [one for one in scene.found if says_probabilities(one, task)]
    alone = len(likely) == len(scene.found)
    if likely and alone:
        text.set("output", "probabilities", LIKELY)
    _preprocessing(text, scene)
    for pattern in patterns(likely, scene.found) if likely and not alone else ():
        text.say()
        text.say(f"[teachers.members.{toml(pattern)}]")
        text.set("output", "probabilities", LIKELY)
    for other in scene.built[1:]:
        for pattern in patterns(other.members, scene.found):
            text.say()
            text.say(f"[teachers.members.{toml(pattern)}]")
            _built(text, other)


def says_probabilities(one: Found, task: str) -> bool:
    """Whether ready-made outputs look like probabilities: for classes each row sums to 1, for labels they lie in [0,
    1]."""
    if one.kind != READY_MADE or one.problem is not None:
        return False
    try:
        said = ready_outputs(one.path).sample()
    except EdistillError:  # reported by doctor
        return False
    inside = bool(said.size and said.min() >= 0 and said.max() <= 1)
    return inside and (not open_task(task).one_class or bool(np.abs(said.sum(axis=1) - 1).max() < SUMMED))


def _built(text: Text, built: Built) -> None:
    factory = built.factory
    why = "by its name, and every tensor fits" if factory is None else "found by its name; nothing of it was run"
    text.set(
        "model",
        built.model,
        "to fill in there; or a timm name, if that is what the weights are of" if built.stub else why,
    )
    if factory is not None and factory.required:
        example = "{ " + ", ".join(f"{name} = …" for name in factory.required) + " }"
        text.fill("model-kwargs", example, f"arguments that {factory.name} cannot do without")


def _preprocessing(text: Text, scene: Scene) -> None:
    """Add a line for the preprocessing of pictures, which bare weights do not state."""
    pixels = [source for source in scene.splits.sources.values() if source.kind == "pixels"]
    columns = scene.splits.columns
    known = scene.splits.sources or (columns is not None and "images" not in columns)
    if not scene.built or (known and not pixels):
        return
    size, channels = [32, 32], 3
    if shape := pixels[0].item(0).x.shape if pixels else scene.splits.shape:
        size, channels = [int(shape[0]), int(shape[1])], int(shape[2])
    example = toml({"size": size, "mean": [0.5] * channels, "std": [0.5] * channels})
    text.fill("preprocessing", example, "how pixels in [0, 1] became the members' input when they were trained")


def _data(text: Text, scene: Scene) -> None:
    text.say()
    text.say("[data]")
    entries, problems = scene.splits.entries, scene.splits.problems
    hints = {
        "train": "the rows that members and student learn from",
        "validation": "choices are made here",
        "test": "and reported here",
        "calibration": "rows no member was trained on",
        "transfer": "more rows to train on, without labels",
    }
    for split, hint in hints.items():
        if split in entries:
            why = "cannot be read as it is: edistill doctor says why" if split in problems else hint
            text.set(split, _entry(entries[split], scene.root), why)
        elif split == "train":
            text.fill("train", '"data/train"', SOURCES)
        elif split in ("validation", "test"):
            text.say(f'# {split} = "data/{split}"', hint)
    if not {"validation", "test"} & entries.keys() and "train" in entries:
        text.say("# or, in place of train: one data set, split by a seed")
        text.say(f"# all = {toml(_entry(entries['train'], scene.root))}")
        text.say("# split = { validation = 0.15, test = 0.2, seed = 0 }")
    if (columns := scene.splits.columns) is not None:
        given = "which column holds pictures, texts or arrays" if "inputs" not in columns else "which members are given"
        text.fill("columns", toml(columns), f"{given}, which are labels, and the values … in the members' order")
    ood = {
        name.removeprefix("ood/"): _entry(entry, scene.root) for name, entry in entries.items() if name[:4] == "ood/"
    }
    if ood:
        text.set("ood", {toml_key(name): entry for name, entry in ood.items()}, "sets from elsewhere")
    for other in scene.splits.others[:6]:
        entry = toml({toml_key(other.stem): relative(other, scene.root)})
        text.say(f"# ood = {entry}", "not called as a split is; a set from elsewhere?")


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def _entry(entry: Entry, root: Path) -> Any:
    path = relative(Path(entry.source), root)
    return path if (entry.x, entry.y) == ("x", "y") else {"source": path, "x": entry.x, "y": entry.y}


def _views(text: Text, scene: Scene) -> None:
    train = scene.splits.sources.get("train")
    if train is None:
        return
    if fixed := [one.name for one in scene.found if one.kind == READY_MADE]:
        text.say()
        text.say("[views]")
        text.set("transform", "none", f"{fixed[0]} holds outputs of these rows alone: it can be asked about no others")
        return
    gray = train.kind == "pixels" and train.item(0).x.shape[2] == 1
    text.say()
    text.say("[views]")
    transform = "mixup" if gray else VIEWS.get(train.kind, "none")
    text.set("transform", transform, "how the rows are varied that members are asked about and the student learns from")
    text.set("count", 4, "variants (views) of each training row; more is better, and takes longer")


def _student(text: Text, scene: Scene) -> None:
    text.say()
    text.say("[student]")
    if scene.body is None:
        text.fill("model", '"model.py:make_body"', "a timm name or file.py:function; its output is (B, F)")
    else:
        text.set("model", scene.body, "a timm name or a function; its output is (B, F)")
    if len(scene.built) == 1 and _can_be_compressed(scene.built[0]) and len(scene.built[0].members) == len(scene.found):
        (pattern, *_) = patterns(scene.built[0].members, scene.found)
        text.say(f"# init = [{toml(pattern)}]", "start from the members: best where model is theirs without its last")
        text.say("# compress = 0.34", "layer. Then take both # away")


def _can_be_compressed(built: Built) -> bool:
    """Whether `student.compress` can make its layers thinner: convolutions of series and volumes stay whole."""
    shapes = built.members[0].shapes
    return not any(name.endswith("weight") and len(shape) in (3, 5) for name, shape in shapes.items())


def patterns(members: Sequence[Found], found: Sequence[Found]) -> list[str]:
    """Patterns that match some members' names and no others: the common beginning if it is theirs alone, else every
    name."""
    names, others = [one.name for one in members], [one.name for one in found if one not in members]
    first, last = min(names), max(names)
    shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = glob.escape(first[:shared].rstrip("0123456789")) + "*"
    if len(names) > 1 and not any(fnmatchcase(other, start) for other in others):
        return [start]
    return [glob.escape(name) for name in names]
