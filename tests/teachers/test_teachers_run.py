"""An edistill run as a member: its pooled prediction, and what it knows of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import to_outputs
from numpy.testing import assert_allclose
from scipy.special import log_softmax, logsumexp
from teachers_helpers import context
from tiny import unseal

from ensemble_distill import load_student
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.settings import Settings
from ensemble_distill.teachers import open_teachers, run
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

RUN = "runs/hydra-s0"


def pixels() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def rewrite(folder: Path, **changes: Any) -> Path:
    """The run with another config.json."""
    config = unseal(folder / RUN)
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return folder / RUN


@torch.no_grad()
def raw_of(path: Path) -> Any:
    return log_softmax(load_student(path, trust=True)(pixels()).double().numpy(), axis=-1)


# --- what it is -------------------------------------------------------------------------------------------------


def test_its_output_is_the_log_of_the_heads_mean_probability(digits_session: Path) -> None:
    teacher = run.load(digits_session / RUN, context())
    module = teacher.build()
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    pooled = logsumexp(raw_of(digits_session / RUN), axis=1) - np.log(8)
    assert_allclose(module(pixels()).numpy(), pooled, atol=1e-6)


def test_it_pools_as_its_own_members_did(digits: Path) -> None:
    weights = [float(m + 1) for m in range(8)]
    path = rewrite(digits, average="logits", weights=weights)
    heads = (np.array(weights)[:, None] / sum(weights) * raw_of(path)).sum(1)
    assert_allclose(run.load(path, context()).build()(pixels()).numpy(), log_softmax(heads, axis=-1), atol=1e-6)


def test_it_knows_everything_itself(digits_session: Path) -> None:
    member = run.load(digits_session / RUN, context()).member
    assert (member.name, member.model, member.output) == ("hydra-s0", "edistill run", "logits")
    assert member.sha256 == sha256_file(digits_session / RUN / "student.safetensors")
    assert member.preprocessing == Preprocessing((8, 8), (0.5,), (0.5,))
    assert member.class_order is None


# --- classes ----------------------------------------------------------------------------------------------------


def test_other_class_orders_are_mapped_by_name(digits: Path) -> None:
    names = tuple("abcdefghij")
    path = rewrite(digits, classes=list(names))
    assert run.load(path, context(names)).member.class_order is None
    data = ("j", *names[:9])  # the data calls class 0 what the run calls class 9
    teacher = run.load(path, context(data))
    assert teacher.member.class_order == (*range(1, 10), 0)
    raw = teacher.build()(pixels())
    ordered = to_outputs(raw, teacher.member, "test", range(6))
    for position, name in enumerate(data):
        assert_allclose(ordered[:, position], raw[:, names.index(name)])


def test_other_classes_are_refused(digits: Path) -> None:
    path = rewrite(digits, classes=list("abcdefghij"))
    with pytest.raises(
        EdistillError, match=r"hydra-s0: config\.json names 10 classes, the data has 10 \(only there: j"
    ):
        run.load(path, context(tuple("abcdefghik")))


# --- what is one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "claimed"),
    [
        ('{"edistill": "0.1.0"}', True),
        ('{"architecture": "resnet18"}', False),
        ('["edistill"]', False),
        ("edistill", False),
        (None, False),
    ],
)
def test_only_what_edistill_wrote_is_claimed(tmp_path: Path, content: str | None, claimed: bool) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert run.claims(tmp_path) == claimed
    assert not run.claims(tmp_path / "config.json")


def test_an_unfinished_run_is_no_member(digits: Path) -> None:
    (digits / RUN / "student.safetensors").unlink()
    assert run.claims(digits / RUN), "so that it is not passed over in silence"
    with pytest.raises(
        EdistillError, match=r"holds an unfinished run \(student\.safetensors is missing\)\. Run edistill"
    ):
        open_teachers(digits / "runs", context())


@pytest.mark.parametrize(("content", "told"), [("{", "JSONDecodeError"), ('{"edistill": "0.1.0"}', "KeyError")])
def test_a_damaged_config_is_named(digits: Path, content: str, told: str) -> None:
    (digits / RUN / "config.json").write_text(content)
    with pytest.raises(EdistillError, match=rf"config\.json is damaged \({told}"):
        run.load(digits / RUN, context())


def test_a_run_away_from_its_body_says_which_file_is_missing(digits: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(digits / RUN, tmp_path / "elsewhere" / "hydra-s0"))
    teacher = run.load(alone, context())
    with pytest.raises(
        EdistillError, match=r"trained with the body .*model\.py:make_body, and that file is not there\. Put it back"
    ):
        teacher.build()


def test_damaged_weights_are_named(digits: Path) -> None:
    weights = digits / RUN / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EdistillError, match=r"student\.safetensors is damaged \("):
        run.load(digits / RUN, context())


# --- a generation -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_student_teaches_the_next(digits: Path, settings_of: Callable[..., Settings]) -> None:
    """Two runs are an ensemble like any other: cached, distilled, compared."""
    quick = {"train.epochs": 1, "views.count": 1}
    train(settings_of(digits, {**quick, "train.seed": 1, "views.count": 2}))
    generation = {**quick, "teachers.path": "runs", "output.cache": "cache2", "output.runs": "generation"}
    generation["student.init"] = None  # whose members are others
    settings = settings_of(digits, generation)
    assert cache_logits(settings).members == ("hydra-s0", "hydra-s1")
    report = train(settings)
    assert report.heads == 2
    document = evaluate(settings).to_json()
    own = evaluate(settings_of(digits), "hydra-s0").models["student"]["nll"]
    other = evaluate(settings_of(digits), "hydra-s1").models["student"]["nll"]
    assert_allclose(document["models"]["member"]["nll"], (own + other) / 2, rtol=1e-3)
