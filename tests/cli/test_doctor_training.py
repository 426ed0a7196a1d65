"""`doctor` on the student and its training: it names what `train` refuses, in the same words, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import contents, make_folder

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.train import train


def asked_for(changes: dict[str, Any]) -> Settings:
    return load_settings("ours/edistill.toml", {key.replace("__", "."): value for key, value in changes.items()})


def problems(**changes: Any) -> list[str]:
    return doctor(lambda: asked_for(changes)).problems


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_folder(tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    return folder


REFUSED: dict[str, dict[str, Any]] = {
    "no such teacher": {"train__teacher": "member-99"},
    "one teacher": {"train__teacher": "member-1", "train__method": "endd"},
    "a teacher of labels": {"train__teacher": "member-1", "train__method": "supervised"},
    "a log": {"output__log": "nolog"},
    "a list in a chain": {"train__method": "ban", "train__generations": 2, "student__init": ["member-0"]},
    "heads in a chain": {"train__generations": 2},
    "nothing to compress": {"student__compress": 0.3},
    "a last stage of factors": {"student__heads": "last-stage", "train__method": "batch-ensemble"},
    "a tied layer": {"student__tied": "0", "student__heads": "last-stage"},
    "a plateau of nothing": {"train__sched": "plateau", "data__validation": None},
    "no such start": {"student__init": "member-99"},
    "another start": {"student__init": "member-0"},
    "another input": {"student__init": ["member-0"], "student__preprocessing": {"mean": [0.25]}},
    "modules of several": {"student__share": {"2": "2"}, "train__method": "kd"},
    "weights": {"teachers__weights": [1, 2]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_is_told_before(whole: Path, name: str) -> None:
    """With or without a cache, and in the same words."""
    changes = REFUSED[name]
    before = problems(**changes)
    asked = asked_for(changes)
    cache_logits(asked_for({key: value for key, value in changes.items() if key == "data__validation"}))
    with pytest.raises(EdistillError) as caught:
        train(asked) if asked.train.generations is None else train_chain(asked)
    said = str(caught.value)
    if name == "no such teacher":  # where members are looked for
        said = said.partition(", and ")[0]
    for told in (before, problems(**changes)):
        assert len(told) == 1, told
        assert said in told[0]


FINE: tuple[dict[str, Any], ...] = (
    {"train__method": "kd", "train__teacher": "member-1"},
    {"train__method": "endd"},
    {"train__method": "batch-ensemble"},
    {"train__method": "supervised"},
    {"train__method": "ban", "train__generations": 2},
    {"train__sched": "plateau"},
    {"student__model": "model.py:make_teacher", "student__init": ["member-*"]},
    {
        "student__share": {"2": "2"},
        "student__kwargs": {"width": 3},
        "train__method": "kd",
        "train__teacher": "member-1",
    },
)


@pytest.mark.parametrize("changes", FINE, ids=lambda changes: "-".join(map(str, changes.values())))
def test_what_training_takes_is_no_problem(whole: Path, changes: dict[str, Any]) -> None:
    before = contents(whole)
    assert problems(**changes) == []
    assert contents(whole) == before
    asked = asked_for(changes | {"train__epochs": 1})
    cache_logits(asked)
    train(asked) if asked.train.generations is None else train_chain(asked)
