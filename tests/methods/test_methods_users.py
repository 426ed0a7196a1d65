"""A user's own method: whatever it says or does wrong is one message, and an edited one is another method."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import with_cache

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods import open_method
from ensemble_distill.workflows.train import train

MINE = """
import math

import torch
from pydantic import BaseModel
from ensemble_distill.methods.method import Method, Stage


def same(student):
    return student


class Mine(Method):
    title = paper = outputs = "mine"

    def heads(self, members):
        return 1

    def stages(self, options, members):
        def loss(batch, student, step):
            return batch.teacher.pooled().kl(student).mean()
        return [Stage("all", 1.0, same, loss)]

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(tiny.make_folder(tmp_path_factory.mktemp("users") / "f", rows={"train": 40}))


def losing(expression: str) -> str:
    """A method whose loss is that."""
    return f"    def stages(self, o, m):\n        return [Stage('all', 1.0, same, lambda b, s, p: {expression})]"


WRONG = {
    "vector": (losing("b.teacher.pooled().kl(s)"), "loss of stage all is a tensor of shape (8, 1). Return one number"),
    "detached": (losing("b.teacher.kl(s).mean().detach()"), "of shape () that does not depend on the student"),
    "number": (losing("1.5"), "The loss of stage all is 1.5. Return one number"),
    "nothing": (losing("None"), "The loss of stage all is None."),
    "raises": (losing("1 / 0"), "stage all's loss raised ZeroDivisionError: division by zero, at mine.py, line 26"),
    "heads-raise": ("    def heads(self, members): return 1 / 0", "heads raised ZeroDivisionError"),
    "heads-text": ("    def heads(self, members): return '8'", "heads is '8'. Make it 1 or more"),
    "heads-true": ("    def heads(self, members): return True", "heads is True. Make it 1 or more"),
    "heads-negative": ("    def heads(self, members): return -1", "heads is -1. Make it 1 or more"),
    "stages-none": ("    def stages(self, options, members): return None", "stages raised TypeError"),
    "stages-other": ("    def stages(self, options, members): return [same]", "stages is <function same"),
    "share": (
        "    def stages(self, options, members): return [Stage('all', math.nan, same, same)]",
        "stage all's share is nan. Make it a number above 0, at most 1",
    ),
    "shares": (
        "    def stages(self, o, m): return [Stage('a', -1.0, same, same), Stage('b', 2.0, same, same)]",
        "stage a's share is -1.0",
    ),
    "no-loss": ("    def stages(self, o, m): return [Stage('all', 1.0, same, None)]", "stage all's loss is None"),
    "start": ("    def stages(self, o, m): return [Stage('all', 1.0, print, same)]", "stage all's start is None"),
    "fit": (
        "    def stages(self, o, m): return [Stage('all', 1.0, same, super().stages(o, m)[0].loss, lambda *_: 1 / 0)]",
        "stage all's fit raised ZeroDivisionError",
    ),
    "family": ("    def family(self, of_members): return None", "family is None. Make it a family"),
    "options": ("    Options = dict", "Options is <class 'dict'>. Make it a pydantic BaseModel"),
    "needs": ("    needs = frozenset({'gpu'})", "needs is frozenset({'gpu'}). Make it a set of teacher and labels"),
    "tasks": (
        "    tasks = frozenset()",
        "tasks is frozenset(). Make it some of classification, language-modelling",
    ),
    "form": ("    form = 'cube'", "form is 'cube'. Make it one of heads, rank-one"),
    "required": ("    class Options(BaseModel):\n        sharpness: float", "method.sharpness is not set, and"),
}


def test_a_mistake_is_one_message_of_the_method_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    first = MINE.replace("class Mine", "class First")
    for number, (wrong, (code, said)) in enumerate(WRONG.items()):
        file = tmp_path / str(number) / "mine.py"  # a file is imported once
        file.parent.mkdir()
        file.write_text(f"{first}class Mine(First):\n{code}\n")
        mine = {"train.method": f"{file}:Mine", "output.name": wrong, "train.epochs": 1}
        with tiny.refused(said):
            train(tiny.settings(folder, mine))
        assert not (folder / "runs" / wrong / "student.safetensors").exists()


def test_an_edited_method_is_another_one(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    mine = tiny.settings(folder, {"train.method": f"{file}:Mine", "train.epochs": 1, "output.name": "edited"})
    assert train(mine).fresh
    assert not train(mine).fresh
    file.write_text(MINE + "# another loss\n")
    before = tiny.contents(folder / "runs/edited")
    with tiny.refused("was made by another", "its file had sha256", "Choose another --name, put the file back"):
        train(mine)
    assert tiny.contents(folder / "runs/edited") == before
    assert train(mine, overwrite=True).fresh


def test_a_refusal_of_the_method_itself_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        MINE + "    def family(self, of_members):\n"
        "        from ensemble_distill.errors import EdistillError\n        raise EdistillError('numbers only')\n"
    )
    method = open_method(f"{tmp_path / 'mine.py'}:Mine")
    with pytest.raises(EdistillError, match=r"^numbers only$"):
        method.family(None)  # type: ignore[arg-type]


def test_a_stage_may_freeze_the_body(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    freezes = "def same(student):\n    student.freeze(['body'])\n    return student"
    file.write_text(MINE.replace("def same(student):\n    return student", freezes))
    mine = {"train.method": f"{file}:Mine"}
    runs = [train(tiny.settings(folder, mine | {"train.epochs": n, "output.name": f"frozen-{n}"})) for n in (1, 2)]
    first, second = (load_file(run.folder / "student.safetensors") for run in runs)
    assert {key.partition(".")[0] for key in first if not torch.equal(first[key], second[key])} == {"heads"}
