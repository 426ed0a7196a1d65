"""Modules taken from a teacher: copied, frozen, and left alone by training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, make_folder, refused, settings
from torch import Tensor, nn

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.runs.run import load_student
from ensemble_distill.settings import Settings
from ensemble_distill.starts.sharing import share
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

FEATURES = 5


def a_teacher() -> nn.Module:
    torch.manual_seed(1)
    stem = nn.Sequential(nn.Linear(4, FEATURES), nn.BatchNorm1d(FEATURES))
    statistics = stem[1]
    assert isinstance(statistics, nn.BatchNorm1d)
    statistics.running_mean = torch.arange(FEATURES, dtype=torch.float32)
    module = nn.Module()
    module.stem, module.relu, module.fc = stem, nn.ReLU(), nn.Linear(FEATURES, CLASSES)
    module.wide = nn.Linear(FEATURES, CLASSES + 1)
    return module


def a_student(hidden: tuple[int, ...] = ()) -> Student:
    torch.manual_seed(2)
    body = nn.Sequential()
    body.add_module("first", nn.Sequential(nn.Linear(4, FEATURES), nn.BatchNorm1d(FEATURES)))
    body.add_module("act", nn.ReLU())
    body.add_module("second", nn.Linear(FEATURES, FEATURES))
    return Student(body, Heads(1, FEATURES, hidden, CLASSES), CategoricalFamily())


def trained(student: Student, steps: int = 3) -> None:
    from timm.optim import create_optimizer_v2

    student.train()
    optimizer = create_optimizer_v2(student, opt="adamw", lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        loss = student(torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# --- the modules --------------------------------------------------------------------------------------------------


def test_what_is_shared_is_the_teachers_and_stays_so_through_training() -> None:
    teacher, student = a_teacher(), a_student()
    share(student, teacher, "member a", {"first": "stem", "head": "fc"})
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trained(student)
    after = student.state_dict()
    theirs = teacher.state_dict()
    for name, tensor in after.items():
        if name.startswith("body.first."):
            assert torch.equal(tensor, theirs[name.replace("body.first.", "stem.")]), name
        elif name.startswith("body."):
            assert not torch.equal(tensor, before[name]), name
    assert torch.equal(after["heads.layers.0.weight"][0], theirs["fc.weight"].T)
    assert torch.equal(after["heads.layers.0.bias"][0], theirs["fc.bias"])


def test_the_student_then_says_what_its_teacher_would_of_the_same_features() -> None:
    teacher, student = a_teacher(), a_student()
    share(student, teacher, "member a", {"head": "fc"})
    features = torch.randn(7, FEATURES)
    torch.testing.assert_close(student.heads(features)[:, 0], teacher.fc(features))


def test_classes_in_another_order_are_put_in_the_students() -> None:
    """`order[j]` is the student's class that is the teacher's j-th."""
    teacher, student, order = a_teacher(), a_student(), (2, 0, 1)
    share(student, teacher, "member a", {"head": "fc"}, order)
    features = torch.randn(7, FEATURES)
    of_teacher, of_student = teacher.fc(features), student.heads(features)[:, 0]
    for theirs, mine in enumerate(order):
        torch.testing.assert_close(of_student[:, mine], of_teacher[:, theirs])


def test_an_output_layer_without_bias_is_one_with_zeros() -> None:
    teacher, student = a_teacher(), a_student()
    teacher.fc = nn.Linear(FEATURES, CLASSES, bias=False)
    share(student, teacher, "member a", {"head": "fc"})
    assert not student.heads.last.bias.any()


def test_a_students_own_names_are_found_in_it() -> None:
    first, second = a_student(), a_student((FEATURES,))
    nn.init.normal_(first.heads.last.bias)
    share(second, first, "member a", {"first": "first", "head": "head"})
    torch.testing.assert_close(second.heads.last.weight, first.heads.last.weight)
    torch.testing.assert_close(second.heads.last.bias, first.heads.last.bias)
    assert second.frozen == ("body.first", "heads.layers.1")


def test_new_heads_are_trained_again() -> None:
    student = a_student()
    share(student, a_teacher(), "member a", {"first": "stem", "head": "fc"})
    more = student.with_heads(3)
    assert more.frozen == ("body.first",)
    assert all(parameter.requires_grad for parameter in more.heads.parameters())


def test_modules_that_cannot_be_shared_are_refused() -> None:
    for modules, said in [
        ({"frst": "stem"}, ("'frst'", "body of the student", "first")),
        ({"first": "stm"}, ("'stm'", "member a", "stem")),
        ({"act": "relu"}, ("act", "no weights")),
        ({"first": "relu"}, ("relu of member a", "no weights")),
        ({"second": "stem"}, ("second", "stem", "weight is (5, 5)", "absent")),
        ({"second": "fc"}, ("weight is (5, 5) in the student", "(3, 5) in the teacher")),
        ({"head": "stem"}, ("head", "stem", "Sequential", "linear layer")),
        ({"head": "stem.0"}, ("(3, 5) in the student", "(5, 4) in the teacher")),
        ({"head": "wide"}, ("(3, 5) in the student", "(4, 5) in the teacher")),
    ]:
        with refused("student.share", *said):
            share(a_student(), a_teacher(), "member a", modules)


@pytest.mark.parametrize("modules", [{"first": "stem", "first.1": "stem.1"}, {"first.1": "stem.1", "first": "stem"}])
def test_a_weight_is_shared_once(modules: Mapping[str, str]) -> None:
    with refused("first.1", " and ", "weights in common"):
        share(a_student(), a_teacher(), "member a", modules)


def test_tied_weights_are_one() -> None:
    student, teacher = a_student(), a_teacher()
    student.body.get_submodule("second").weight = student.body.get_submodule("first.0").weight = nn.Parameter(
        torch.zeros(FEATURES, FEATURES)
    )
    teacher.stem = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES))
    with refused("first and second", "weights in common"):
        share(student, teacher, "member a", {"first": "stem", "second": "stem.0"})


def test_something_is_left_to_train() -> None:
    student = Student(nn.Sequential(nn.Linear(4, FEATURES)), Heads(1, FEATURES, (), CLASSES), CategoricalFamily())
    with refused("freezes all of the student", "0, head"):
        share(student, a_teacher(), "member a", {"0": "stem.0", "head": "fc"})


def test_a_teacher_of_many_heads_has_no_head_to_share() -> None:
    with refused("member a has 3"):
        share(a_student(), a_student().with_heads(3), "member a", {"head": "head"})


def test_a_head_of_many_cannot_be_shared() -> None:
    with refused("head", "one head", "the student has 2"):
        share(a_student().with_heads(2), a_teacher(), "member a", {"head": "fc"})


# --- the whole road -----------------------------------------------------------------------------------------------

ONE = {"train.method": "ban", "train.epochs": 2, "train.teacher": "member-1", "student.share": {"head": "2"}}


def deep(folder: Path) -> Settings:
    """Teachers whose output layer sees 36 pixels, and a body that gives as many features."""
    return settings(folder, {**ONE, "student.kwargs": {"width": 36, "dropout": 0.0}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_folder(tmp_path / "tiny")
    cache_logits(settings(made))
    return made


def head(weights: Path) -> Tensor:
    return load_file(weights)["heads.layers.0.weight"][0].T


def test_every_generation_keeps_what_the_first_took(folder: Path) -> None:
    changed = deep(folder).model_copy(
        update={"train": deep(folder).train.model_copy(update={"generations": 2, "model_ema": True})}
    )
    report = train_chain(changed)
    teacher = load_file(folder / "teachers" / "member-1.safetensors")["2.weight"]
    bodies = []
    for generation in report.generations:
        assert torch.equal(head(generation.folder / "student.safetensors"), teacher)
        bodies.append(load_student(generation.folder, trust=True).body.state_dict()["2.weight"])
    assert not torch.equal(*bodies)


def test_shares_that_say_too_little_are_refused(folder: Path) -> None:
    for overrides, said in [
        ({"train.teacher": None}, ("3: member-0, member-1, member-2", "--teacher member-0")),
        ({"train.method": "hydra", "train.teacher": None}, ("there are 3",)),
        ({"train.teacher": "member-7"}, ("member-7", "member-0, member-1, member-2")),
        ({"student.heads": "last-stage"}, ("the output layer where there is one head", "a last stage")),
        ({"train.method": "hydra"}, ("student.share freezes heads.layers.0, and hydra would train it again",)),
        ({"train.method": "batch-ensemble"}, ("batch-ensemble would train it again",)),
    ]:
        values = {**ONE, "student.kwargs": {"width": 36, "dropout": 0.0}, **overrides}
        with refused(*said):
            train(settings(folder, {key: value for key, value in values.items() if value is not None}))


def test_without_teachers_there_is_nothing_to_share(folder: Path) -> None:
    (folder / "teachers").rename(folder / "elsewhere")
    with refused("student.share", "teachers", "Put it back"):
        train(deep(folder))


def test_a_changed_teacher_is_refused_before_anything_is_shared(folder: Path) -> None:
    state = {"2.weight": torch.zeros(CLASSES + 1, 36), "2.bias": torch.zeros(CLASSES + 1)}
    save_file(state, folder / "teachers" / "member-1.safetensors")
    with refused("member-1 with sha256"):
        train(deep(folder))
    assert not list((folder / "runs").rglob("config.json"))
