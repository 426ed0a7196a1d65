"""Bodies side by side: started from members under solved heads they are those members, and they travel in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from trusted import EVERYTHING

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.students.side_by_side import SideBySide
from ensemble_distill.students.student import Student
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

BODY = """
from torch import nn


def make_teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))


def make_body():
    return make_teacher()[:3]
"""
START = {"train.epochs": 0, "method.hinton-share": 0, "method.ridge": 1e-7, "method.closed-form": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members of two layers, whose features a body can take over."""
    made = tiny.make_folder(tmp_path_factory.mktemp("side") / "f", members=0, rows={"train": 200, "test": 40})
    modules = []
    for index in range(4):
        torch.manual_seed(index)
        modules.append(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)))
    tiny.put_members(made, BODY, modules)
    cache_logits(tiny.settings(made, {"cache.dtype": "float32", "views.count": 4}))
    return made


def trained(folder: Path, name: str, init: object, **more: object) -> Run:
    chosen = {"student.init": init, "output.name": name, "cache.dtype": "float32", "views.count": 4, **START, **more}
    return Run.open(train(tiny.settings(folder, chosen)).folder)


def test_two_bodies_are_their_features_end_to_end() -> None:
    bodies = [nn.Linear(3, 2), nn.Linear(3, 5)]
    x = torch.randn(4, 3)
    assert_close(SideBySide(bodies)(x), torch.cat([body(x) for body in bodies], 1))


def test_heads_on_the_features_of_members_are_those_members(folder: Path) -> None:
    run = trained(folder, "two", ["member-2", "member-0"])
    assert (run.architecture.bodies, run.architecture.heads) == (2, 4)
    student = run.student(trust=EVERYTHING)
    x = torch.randn(30, 1, 6, 6)
    with torch.no_grad():
        found = student(x)
        for member, near in ((0, True), (2, True), (1, False)):
            module = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
            module.load_state_dict(load_file(folder / f"teachers/member-{member}.safetensors"))
            kl = Categorical(module(x).unsqueeze(1)).kl(Categorical(found[:, [member]])).mean().item()
            assert (kl < 1e-4) == near, (member, kl)


@pytest.mark.thorough
def test_such_a_run_is_evaluated_exported_and_loaded_with_its_factory(folder: Path) -> None:
    run = trained(folder, "three", ["member-0", "member-1", "member-2"])
    settings = tiny.settings(folder, {"cache.dtype": "float32", "views.count": 4})
    document = evaluate(settings, "three").to_json()
    assert document["fidelity"]["diversity_explained"] > 0.75  # three of four members, and a guess at the last
    assert export(settings, "three", onnx=True).files[0].is_file()

    def make_body() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh())

    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        assert_close(load_student(run.folder, make_body)(x), run.student(trust=EVERYTHING)(x))


@pytest.mark.thorough
def test_one_name_in_a_list_is_that_body_itself(folder: Path) -> None:
    alone, listed = (
        trained(folder, f"one-{i}", init).student(trust=EVERYTHING) for i, init in enumerate(("member-1", ["member-1"]))
    )
    assert alone.state_dict().keys() == listed.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), listed.state_dict().values(), strict=True)
    )


def test_a_body_keeps_what_it_wants_undecayed() -> None:
    class Wishing(nn.Linear):
        def no_weight_decay(self) -> set[str]:
            return {"weight"}

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    from ensemble_distill.predictive.categorical import CategoricalFamily
    from ensemble_distill.students.heads import Heads

    student = Student(SideBySide([Wishing(3, 2), nn.Linear(3, 2)]), Heads(1, 4, (), 2), CategoricalFamily())
    assert student.no_weight_decay() == {"body.bodies.0.weight"}
    assert "body.bodies.0.weight" in dict(student.named_parameters())


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (["member-0", "member-9"], "student.init is 'member-9', and the members are member-0, member-1"),
        (["member-1", "member-1"], "student.init names member-1 2 times. Name each member once"),
    ],
)
def test_names_that_are_no_members_or_stand_twice_are_refused(folder: Path, init: list[str], said: str) -> None:
    with tiny.refused(said):
        trained(folder, "refused", init)
    assert not (folder / "runs/refused/args.toml").exists()


# --- BatchNorm ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members with BatchNorm, whose statistics are of plain rows."""
    made = tiny.make_folder(tmp_path_factory.mktemp("norm") / "f", members=0, rows={"train": 40})
    modules = []
    for index in range(2):
        torch.manual_seed(index)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
        module(torch.randn(50, 1, 6, 6))
        modules.append(module)
    tiny.put_members(made, BODY.replace("nn.Tanh()", "nn.BatchNorm1d(8)"), modules)
    cache_logits(tiny.settings(made))
    return made


@pytest.mark.parametrize(
    ("more", "stay"),
    [
        ({"student.init": "member-0"}, True),
        ({"student.init": ["member-0", "member-1"]}, True),
        ({"student.init": "member-0", "train.freeze-bn": False}, False),
        ({}, False),
        ({"train.freeze-bn": True}, True),
    ],
)
def test_statistics_of_a_member_stay_those_of_the_member(normalized: Path, more: dict[str, object], stay: bool) -> None:
    name = f"norm-{len(list((normalized / 'runs').glob('*')))}"
    run = Run.open(train(tiny.settings(normalized, {**more, "output.name": name, "train.epochs": 4})).folder)
    tensors = load_file(run.folder / "student.safetensors")
    found = next(tensor for key, tensor in tensors.items() if key.endswith("running_mean"))
    member = load_file(normalized / "teachers/member-0.safetensors")["2.running_mean"]
    wanted = member if "student.init" in more else torch.zeros(8)
    assert torch.equal(found, wanted) == stay
    assert not torch.equal(
        next(t for k, t in tensors.items() if k.endswith("2.weight")), torch.ones(8)
    )  # the rest learns
