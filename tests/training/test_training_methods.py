"""Methods in training: each runs as it is on the quickstart's folder, and a broken one is found before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from ensemble_distill.methods import method_names
from ensemble_distill.runs.run import load_student
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

BROKEN = """
from ensemble_distill.methods.method import Method, Stage


def loss(batch, student, step):
    return batch.teacher.pooled().kl(student).mean()


class Promising(Method):
    title = paper = outputs = "none"
    promised, start, shares, form = 1, staticmethod(lambda student: student), (1.0,), "heads"

    def heads(self, members):
        return self.promised

    def stages(self, options, members):
        return [Stage(f"stage {i}", share, self.start, loss) for i, share in enumerate(self.shares)]


class TooMany(Promising):
    promised = 3


class OtherForm(Promising):
    form = "rank-one"


class Short(Promising):
    shares = (0.5, 0.25)


class Empty(Promising):
    shares = ()


class Wider(Promising):
    promised, start = 3, staticmethod(lambda student: student.with_heads(4))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("method", method_names())
def test_every_method_runs_as_it_is(digits: Path, settings_of: Callable[..., Settings], method: str) -> None:
    report = train(settings_of(digits, {"train.method": method, "train.epochs": 2, "output.name": "again"}))
    assert load_student(report.folder, trust=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.make_folder(tmp_path_factory.mktemp("broken") / "f", rows={"train": 40})
    (made / "broken.py").write_text(BROKEN)
    cache_logits(tiny.settings(made))
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TooMany", ("promises 3 of form 'heads'", "heads.layers.0.weight is (1, 12, 3) and not (3, 12, 3)")),
        ("OtherForm", ("promises 1 of form 'rank-one'", "absent")),
        ("Wider", ("(4, 12, 3) and not (3, 12, 3)", "Make `heads`, `form` and `stages` agree")),
        ("Short", ("2 stages whose shares sum to 0.75",)),
        ("Empty", ("0 stages",)),
    ],
)
def test_a_method_whose_parts_disagree_is_refused_before_the_first_step(
    folder: Path, name: str, said: tuple[str, ...]
) -> None:
    with tiny.refused(*said):
        train(tiny.settings(folder, {"train.method": f"{folder / 'broken.py'}:{name}"}))
    assert not (folder / "runs").exists() or not list((folder / "runs").glob("*/args.toml"))


def test_one_that_keeps_its_word_is_trained(folder: Path) -> None:
    report = train(tiny.settings(folder, {"train.method": f"{folder / 'broken.py'}:Promising", "train.epochs": 1}))
    assert report.heads == 1


@pytest.mark.parametrize("method", ["endd", "proxy-endd", "several.py:OfSeveral"])
def test_one_member_does_not_differ_from_others(folder: Path, tmp_path: Path, method: str) -> None:
    (folder / "several.py").write_text(
        "from ensemble_distill.methods.endd import EnDD\n\n\nclass OfSeveral(EnDD):\n    pass\n"
    )
    named = {"train.method": method, "output.name": "one"}
    with tiny.refused_and_kept(folder, "train.teacher is 'member-1'", "how members differ", "--method kd or ban"):
        train(tiny.settings(folder, {**named, "train.teacher": "member-1"}))
    alone = tiny.make_folder(tmp_path / "alone", members=1, rows={"train": 8})
    cache_logits(tiny.settings(alone))
    (alone / "several.py").write_text((folder / "several.py").read_text())
    with tiny.refused_and_kept(alone, "member-0 is the only member", "Add members"):
        train(tiny.settings(alone, named))
