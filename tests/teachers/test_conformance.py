"""What every kind of teacher promises: the suite goes over whatever kinds there are."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds_helpers import EXAMPLES, ROWS, Example, copied_run
from numpy.typing import NDArray
from torch import Tensor
from trusted import EVERYTHING

from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers import kinds, open_teachers
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.teacher import Context, Teacher
from ensemble_distill.teachers.trial import Few, tried

KINDS = sorted(kinds())


class Rows:
    """A split of as many rows as the examples have."""

    def __len__(self) -> int:
        return ROWS

    def name(self, row: int) -> str:
        return f"row {row}"


@pytest.fixture(params=KINDS)
def example(request: pytest.FixtureRequest) -> Example:
    kind = request.param
    found = copied_run(request.getfixturevalue("runs_session")) if kind == "run" else EXAMPLES[kind]
    if found.lacking and importlib.util.find_spec(found.lacking) is None:
        pytest.skip(f"needs {found.lacking}, an optional extra")
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(path: Path, example: Example, trust: bool = True, **settings: Any) -> Teacher:
    section = TeacherSettings.model_validate({**example.settings, **settings}, context={"root": Path.cwd()})
    context = Context(section, trust=trust and example.trust, trusted=EVERYTHING)
    (teacher,) = open_teachers(path, context)
    return teacher


def opened(path: Path, example: Example) -> Answering:
    asked = listed(path, example).open(Classification)
    asked.meets("train", Rows())
    return asked


def ask(asked: Answering, rows: Sequence[int], x: Tensor) -> NDArray[np.float32]:
    return asked.answers("train", rows, None if asked.wants is None else x[list(rows)])


def weights_of(path: Path, example: Example) -> Path:
    return path / example.file if example.file else path


def test_every_kind_is_here() -> None:
    assert set(KINDS) == {*EXAMPLES, "run"}


def test_answers_are_of_the_row_alone(here: Path, example: Example) -> None:
    asked, x = opened(example.make(here, 0), example), example.inputs()
    every = list(range(ROWS))
    together = ask(asked, every, x)
    assert together.shape == (ROWS, 3)
    assert together.dtype == np.float32
    assert np.ptp(together, axis=0).min() > 0
    alone = np.concatenate([ask(asked, [row], x) for row in every])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    np.testing.assert_allclose(ask(asked, every[::-1], x)[::-1], together, atol=1e-4)
    few = Few("train", every, None if asked.wants is None else x)
    assert tried(asked, few, 3)[0].member == asked.member


def test_a_member_is_told_by_its_hash(here: Path, example: Example) -> None:
    path = example.make(here, 0)
    first, again = (listed(path, example) for _ in range(2))
    other = listed(example.make(here, 1), example)
    assert first.member.sha256 == again.member.sha256 != other.member.sha256
    assert first.member.name == other.member.name == "m"


def test_a_member_that_changes_after_it_was_listed_is_refused(here: Path, example: Example) -> None:
    teacher = listed(example.make(here, 0), example)
    example.make(here, 1)
    with pytest.raises(EdistillError, match=r"(changed|replaced)"):
        teacher.open(Classification)


def test_a_file_that_is_cut_short_is_refused_by_its_name(here: Path, example: Example) -> None:
    path = example.make(here, 0)
    file = weights_of(path, example)
    content = file.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 9):
        file.write_bytes(content[:length])
        with pytest.raises(EdistillError) as told:
            opened(path, example)
        assert path.name in str(told.value)


class Payload:
    """What a pickle may do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_in_its_place_runs_nothing(here: Path, example: Example) -> None:
    path = example.make(here, 0)
    weights_of(path, example).write_bytes(pickle.dumps(Payload(here / "mark")))
    with pytest.raises(EdistillError):
        listed(path, example, trust=False).open(Classification)
    assert not (here / "mark").exists()


def test_rows_of_another_width_are_refused(here: Path, example: Example) -> None:
    asked = opened(example.make(here, 0), example)
    if asked.wants is None:
        return  # it is shown none
    with pytest.raises(EdistillError, match=r"Member m "):
        ask(asked, [0, 1], example.inputs(2, wider=2))


def test_what_is_not_a_number_is_refused_by_its_row(here: Path, example: Example) -> None:
    asked, x = opened(example.make(here, 0), example), example.inputs()
    if asked.wants is None or example.ids:
        return  # its own tests have it in the file
    x[7] = float("nan")
    with pytest.raises(EdistillError, match=r"(row 7 of train|NaN)"):
        ask(asked, list(range(ROWS)), x)


def test_what_gives_no_gradient_has_no_module_to_start_from(here: Path, example: Example) -> None:
    teacher = listed(example.make(here, 0), example)
    if teacher.open(Classification).module is None:
        with pytest.raises(EdistillError, match=r"Member m is an? .* student\.init"):
            teacher.build()
