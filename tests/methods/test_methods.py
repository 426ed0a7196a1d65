"""What every method does, for every task it can be used for; how one is found or refused; and the [method] table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from methods_helpers import (
    CLASSES,
    FAMILIES,
    FEATURES,
    FIRST,
    HALF,
    LAST,
    Floats,
    M,
    a_batch,
    a_student,
    gradient,
    outputs,
    predictive,
    raw,
    said,
    stages,
)
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods import method_names, method_options, open_method
from ensemble_distill.methods.method import Batch, Labels, Method, Step
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.settings import Settings
from ensemble_distill.tasks import task_names
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.methods import methods
from ensemble_distill.workflows.train import train

TASKS = ("classification", "regression")
USES = [(name, task) for name in method_names() for task in TASKS if task in open_method(name).tasks]
every_method = pytest.mark.parametrize("name", method_names())
every_use = pytest.mark.parametrize(("name", "task"), USES)
STEPS = (FIRST, HALF, LAST)


def heads_of(name: str) -> list[int]:
    """How many heads the student has in each stage."""
    student, found = a_student(name), []
    for stage in stages(name):
        student = stage.start(student)
        found.append(student.heads.count)
    return found


# --- what every method does -------------------------------------------------------------------------------


@every_method
def test_a_method_introduces_itself(name: str) -> None:
    method = open_method(name)
    assert method.title
    assert method.paper
    assert method.outputs
    assert method.needs
    assert method.needs <= {"teacher", "labels"}
    assert method.tasks
    assert method.tasks <= set(task_names())
    listed = {entry["name"]: entry for entry in methods()}
    assert listed[name]["what"] == method.title
    assert listed[name]["needs"] == ", ".join(sorted(method.needs))
    assert listed[name]["tasks"] == ", ".join(sorted(method.tasks))
    assert all(option.replace("_", "-") in listed[name]["options"] for option in method.Options.model_fields)
    json.dumps(listed)


@every_method
def test_options_have_defaults_and_descriptions_and_survive_json(name: str) -> None:
    kind = open_method(name).Options
    options = kind.model_validate({})
    assert kind.model_validate(json.loads(json.dumps(options.model_dump(mode="json")))) == options
    assert kind.model_validate(json.loads(json.dumps(options.model_dump(mode="json", by_alias=True)))) == options
    assert all(field.description for field in kind.model_fields.values())


@every_method
def test_the_stages_share_all_of_the_training(name: str) -> None:
    for members in [1, M, 20]:
        found = stages(name, members)
        assert len({stage.name for stage in found}) == len(found) > 0
        assert all(0 < stage.share <= 1 for stage in found)
        assert sum(stage.share for stage in found) == pytest.approx(1)


@every_use
def test_the_last_stage_has_what_the_method_promises(name: str, task: str) -> None:
    """Heads, form and family: a finished run is rebuilt from these three before its weights are loaded."""
    for members in [1, M]:
        method, student = open_method(name), a_student(name, task)
        rebuilt = student.formed(method.form, method.heads(members))
        for stage in stages(name, members):
            student = stage.start(student)
        assert student.heads.count == method.heads(members)
        numbers = student(torch.zeros(2, FEATURES, dtype=torch.float64))
        assert numbers.shape == (2, method.heads(members), student.family.width(CLASSES[task]))
        assert student.predictive(numbers).members == method.heads(members)
        shapes = {key: value.shape for key, value in student.state_dict().items()}
        assert {key: value.shape for key, value in rebuilt.state_dict().items()} == shapes


@every_use
def test_every_stage_has_a_finite_loss_that_training_lowers(name: str, task: str) -> None:
    for dtype in [torch.float32, torch.float64]:
        batch, student = a_batch(task, rows=16, dtype=dtype), a_student(name, task, dtype)
        torch.manual_seed(0)
        x = torch.randn(16, FEATURES, dtype=dtype)
        for stage in stages(name):
            student = stage.start(student)
            optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
            losses = []
            for _ in range(20):
                loss = stage.loss(batch, student.predictive(student(x)), LAST)
                assert loss.shape == ()
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            assert np.isfinite(losses).all(), stage.name
            assert losses[0] - losses[-1] > 0.1 * abs(losses[0]), stage.name
            assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters()), stage.name


@every_use
def test_gradients_are_those_of_finite_differences(name: str, task: str) -> None:
    method, batch = open_method(name), a_batch(task, rows=2)
    for step in STEPS:
        for stage, heads in zip(stages(name), heads_of(name), strict=True):

            def loss(numbers: Tensor, stage: Any = stage, step: Step = step) -> Tensor:
                found: Tensor = stage.loss(batch, said(method, task, numbers), step)
                return found

            assert torch.autograd.gradcheck(loss, (raw(method, task, heads, rows=2).requires_grad_(),))


@every_use
def test_losses_are_means_over_rows(name: str, task: str) -> None:
    """So that neither the batch's size nor accumulating batches changes what a learning rate means."""
    for step in STEPS:
        method, batch = open_method(name), a_batch(task)
        labels = batch.labels
        assert labels is not None
        columns = (labels.own, labels.partner, labels.weight, labels.known)
        teacher = predictive(task, np.concatenate([outputs(task)] * 2))
        doubled = Batch(teacher, Labels(*(torch.cat([values, values]) for values in columns)))
        for stage, heads in zip(stages(name), heads_of(name), strict=True):
            numbers = raw(method, task, heads)
            single = stage.loss(batch, said(method, task, numbers), step)
            assert_close(stage.loss(doubled, said(method, task, torch.cat([numbers, numbers])), step), single)


@every_use
def test_the_order_of_members_says_nothing_and_a_weight_counts_as_copies(name: str, task: str) -> None:
    method, batch, members = open_method(name), a_batch(task), outputs(task)
    for step in STEPS:
        shuffled = Batch(predictive(task, members[:, [2, 0, 1]]), batch.labels)
        weighted = Batch(predictive(task, members, np.array([2.0, 1.0, 1.0])), batch.labels)
        repeated = Batch(predictive(task, members[:, [0, 0, 1, 2]]), batch.labels)
        for stage, heads in zip(stages(name), heads_of(name), strict=True):
            numbers = raw(method, task, heads)

            def loss(
                of: Batch, order: list[int], numbers: Tensor = numbers, stage: Any = stage, step: Step = step
            ) -> Tensor:
                mine = numbers if numbers.shape[1] == 1 else numbers[:, order]
                found: Tensor = stage.loss(of, said(method, task, mine), step)
                return found

            assert_close(loss(shuffled, [2, 0, 1]), loss(batch, [0, 1, 2]))
            assert_close(loss(repeated, [0, 0, 1, 2]), loss(weighted, [0, 1, 2]))


@every_use
def test_only_what_a_method_needs_has_a_say(name: str, task: str) -> None:
    for step in STEPS:
        method, batch = open_method(name), a_batch(task)
        assert batch.labels is not None
        others = predictive(task, outputs(task, seed=5))
        garbage = torch.where(batch.labels.known, batch.labels.own, -7)
        relabeled = replace(batch, labels=replace(batch.labels, own=garbage))
        for stage, heads in zip(stages(name), heads_of(name), strict=True):
            student = said(method, task, raw(method, task, heads))
            loss = stage.loss(batch, student, step)
            assert_close(stage.loss(relabeled, student, step), loss)  # a row without a label
            if "labels" not in method.needs:
                assert_close(stage.loss(Batch(batch.teacher, None), student, step), loss)
            said_otherwise = stage.loss(Batch(others, batch.labels), student, step)
            assert bool(said_otherwise.isclose(loss)) is ("teacher" not in method.needs)


def extremes(task: str) -> dict[str, Floats]:
    """Members' outputs (B, M, W) at the ends of what an ensemble says."""
    usual = outputs(task)
    agreeing = np.repeat(usual[:, :1], M, 1)
    noise = np.random.default_rng(2).normal(size=usual.shape)
    found = {"agreeing": agreeing, "nearly agreeing": agreeing + 1e-6 * noise}
    if task == "classification":
        found |= {"confident": 50 * np.sign(agreeing), "contradicting": 50 * np.sign(noise)}
    else:
        narrow, wide = usual - np.array([0, 15]), usual + np.array([0, 15])
        found |= {"narrow": narrow, "wide": wide, "contradicting": usual + 100 * noise * np.array([1, 0])}
    return found


@every_use
def test_losses_and_gradients_stay_finite_at_the_extremes(name: str, task: str) -> None:
    """In float32, as a training has them, for a student that is itself at an end or not."""
    for step in STEPS:
        for scale in [1.0, 30.0]:
            method, labels = open_method(name), a_batch(task, dtype=torch.float32).labels
            for what, members in extremes(task).items():
                batch = Batch(predictive(task, torch.tensor(members, dtype=torch.float32)), labels)
                for stage, heads in zip(stages(name), heads_of(name), strict=True):
                    limit = 50 if task == "classification" else 10
                    numbers = (scale * raw(method, task, heads)).clamp(-limit, limit).float().requires_grad_()
                    loss = stage.loss(batch, said(method, task, numbers), step)
                    assert loss.isfinite(), what
                    assert gradient(loss, numbers).isfinite().all(), what


# --- finding one ------------------------------------------------------------------------------------------

MINE = """
from pydantic import BaseModel
from ensemble_distill.methods.method import Method, Stage

class Mine(Method):
    title = "the mean alone"
    paper = "none"
    outputs = "one distribution"

    class Options(BaseModel):
        sharpness: float = 2.0

    def heads(self, members):
        return 1

    def stages(self, options, members):
        def loss(batch, student, step):
            return options.sharpness * batch.teacher.pooled().kl(student).mean()
        return [Stage("mean", 1.0, lambda student: student, loss)]

class Alike:
    title = "looks like a method"
    heads, stages = Mine.heads, Mine.stages

class Half(Method):
    title = "not all of a method"

class Broken(Mine):
    def __init__(self):
        raise ValueError("not today")
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def test_built_in_methods_are_their_files() -> None:
    assert set(method_names()) >= {"batch-ensemble", "endd", "hydra", "kd", "proxy-endd", "supervised"}
    assert "method" not in method_names()
    assert list(method_names()) == sorted(method_names())


def test_a_users_own_method_is_a_class_in_a_file(mine: str) -> None:
    method = open_method(f"{mine}:Mine")
    assert (method.needs, method.tasks, method.form) == ({"teacher"}, set(task_names()), "heads")
    for task, kind in (("classification", Categorical), ("regression", Gaussian)):
        (stage,) = method.stages(method.Options.model_validate({"sharpness": 3}), M)
        batch, student = a_batch(task), said(method, task, raw(method, task, 1))
        assert isinstance(student, kind)
        assert method.family(open_family(FAMILIES[task])) == open_family(FAMILIES[task])
        assert_close(stage.loss(batch, student, FIRST), 3 * batch.teacher.pooled().kl(student).mean())


def test_what_is_no_method_is_refused(mine: str) -> None:
    with pytest.raises(
        EdistillError, match=r"mine\.py:Alike makes Alike, which is not a method\. Derive the class from"
    ):
        open_method(f"{mine}:Alike")
    with pytest.raises(EdistillError, match=r"Half\(\) raised TypeError: .* abstract .*heads.*stages"):
        open_method(f"{mine}:Half")
    with pytest.raises(EdistillError, match=r"Broken\(\) raised ValueError: not today"):
        open_method(f"{mine}:Broken")
    with pytest.raises(EdistillError, match=r"train\.method .* has no callable Nine\. It defines Mine, Alike, Half"):
        open_method(f"{mine}:Nine")
    with pytest.raises(EdistillError, match=r"train\.method .* there is no file .*yours\.py"):
        open_method(mine.replace("mine", "yours") + ":Mine")


def test_an_unknown_method_is_answered_with_the_nearest_or_with_all() -> None:
    with pytest.raises(EdistillError, match=r"'hydro', which is not a method\. Did you mean hydra\?"):
        open_method("hydro")
    with pytest.raises(EdistillError, match=r"'batch_ensemble', which is not a method\. Did you mean batch-ensemble\?"):
        open_method("batch_ensemble")
    with pytest.raises(
        EdistillError, match=rf"'quux', which is not a method\. Use one of {', '.join(method_names())}\."
    ):
        open_method("quux")
    with pytest.raises(EdistillError, match="'method', which is not a method"):  # the module of that name is none
        open_method("method")


# --- the [method] table -----------------------------------------------------------------------------------


def asked(name: str, **options: Any) -> tuple[Method, str, dict[str, Any]]:
    return open_method(name), name, Settings.model_validate({"train": {"method": name}, "method": options}).method


def test_options_are_read_in_either_spelling_and_default() -> None:
    for spelling in ("hinton-share", "hinton_share"):
        options = method_options(*asked("hydra", temperature=4, **{spelling: 0.5}))
        assert options.model_dump(include={"temperature", "hinton_share"}) == {"temperature": 4.0, "hinton_share": 0.5}
    defaults = {
        "temperature": 1.0,
        "hinton_share": None,
        "closed_form": None,
        "loss": "kl",
        "deviation_weight": None,
        "row_weight": 0.0,
        "label_weight": 0.0,
        "ridge": 1e-4,
    }
    assert method_options(*asked("hydra")).model_dump() == defaults


def test_options_out_of_their_domain_are_refused() -> None:
    for name, options, says in [
        (
            "hydra",
            {"temprature": 2},
            r"method\.temprature is not an option of hydra\. Its options are temperature, hinton-share",
        ),
        ("hydra", {"temperature": 0}, r"method\.temperature is 0: input should be greater than or equal to 0\.05\."),
        ("hydra", {"temperature": "hot"}, r"method\.temperature is 'hot': input should be a valid number"),
        ("hydra", {"hinton-share": 1.0}, r"method\.hinton-share is 1\.0: input should be less than 1\."),
        ("hydra", {"hinton-share": -0.1}, r"method\.hinton-share is -0\.1: .* greater than or equal to 0\."),
        ("kd", {"temperature": -1}, r"method\.temperature is -1: .* greater than or equal to 0\.05\."),
        ("endd", {"first-temperature": 0.5}, r"method\.first-temperature is 0\.5: .* greater than or equal to 1\."),
        ("endd", {"anneal-share": 0}, r"method\.anneal-share is 0: input should be greater than 0\."),
        ("endd", {"anneal-share": 1.1}, r"method\.anneal-share is 1\.1: .* less than or equal to 1\."),
        ("endd", {"smoothing": 0}, r"method\.smoothing is 0: input should be greater than 0\."),
        ("endd", {"smoothing": 1}, r"method\.smoothing is 1: input should be less than 1\."),
        ("proxy-endd", {"divisor": "b1"}, r"method\.divisor is 'b1': input should be 'b0' or 'b0\+K'\."),
        ("proxy-endd", {"max-precision": 0}, r"method\.max-precision is 0: .* greater than or equal to 0\.001\."),
        ("batch-ensemble", {"spread": -0.1}, r"method\.spread is -0\.1: .* greater than or equal to 0\."),
        ("batch-ensemble", {"hinton-share": 1}, r"method\.hinton-share is 1: input should be less than 1\."),
        ("supervised", {"temperature": 1}, r"method\.temperature is not an option of supervised\."),
    ]:
        with pytest.raises(EdistillError, match=says):
            method_options(*asked(name, **options))


def test_a_users_own_options_are_validated_too(mine: str) -> None:
    name = f"{mine}:Mine"
    assert method_options(*asked(name, sharpness=5)).model_dump() == {"sharpness": 5.0}
    with pytest.raises(EdistillError, match=r"method\.sharpness is 'much': input should be a valid number"):
        method_options(*asked(name, sharpness="much"))


def test_a_users_method_trains(tmp_path: Path, mine: str) -> None:
    folder = tiny.make_folder(tmp_path / "folder")
    settings = tiny.settings(folder, {"train.method": f"{mine}:Mine", "method.sharpness": 3, "train.epochs": 1})
    cache_logits(settings)
    report = train(settings)
    assert (report.method, report.heads, report.folder.name) == ("Mine", 1, "Mine-s0")
    assert Run.open(report.folder).provenance.options == {"sharpness": 3.0}
    assert load_student(report.folder, trust=True)(torch.zeros(2, 1, 6, 6)).shape == (2, 1, tiny.CLASSES)


def test_a_run_records_a_default_that_depends_on_its_steps(tmp_path: Path) -> None:
    settings = tiny.settings(tiny.make_folder(tmp_path / "folder"), {"train.method": "endd", "train.epochs": 1})
    cache_logits(settings)
    assert Run.open(train(settings).folder).provenance.options["first_temperature"] == 3.0
