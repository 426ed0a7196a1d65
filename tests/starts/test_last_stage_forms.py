"""Last stages that are compressed or copies of the body's own, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from last_stage_helpers import LISTED, MLP, NET, START, explained, make, trained
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from trusted import EVERYTHING

from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.serving.served import Served
from ensemble_distill.students.last_stage import LastStage, LastStageHeads, apart
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("mlps") / "f", "mlp")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nets") / "f", "net")


# --- members' own last stages, compressed -------------------------------------------------------------------------


def thin(share: float, **more: object) -> dict[str, object]:
    return {"student.heads": {**MLP["student.heads"], "compress": share, **more}}


def test_compressed_last_stages_keep_what_their_share_allows(mlps: Path) -> None:
    runs = [trained(mlps, f"thin-{share}", LISTED, START, thin(share)) for share in (0.5, 0.8)]
    less, more = (explained(mlps, run.folder.name) for run in runs)
    assert less < more < 0.999
    assert more > 0.5
    for run, share in zip(runs, (0.5, 0.8), strict=True):
        stage, heads = run.architecture.last_stage, run.student(trust=EVERYTHING).heads
        assert stage is not None
        assert stage.compressed.keys() == {"3"}  # of 8 inputs and 6 outputs, with a Tanh on either side
        assert isinstance(heads, LastStageHeads)
        assert heads.tail.get_parameter("3.expand.weight").shape == (3, 6, stage.compressed["3"])
        numbers = sum(p[0].numel() for p in heads.tail.parameters())
        assert numbers <= share * (8 * 6 + 6) < numbers + 8 + 6  # another channel would be too many


def test_kernels_of_last_stages_are_compressed_too(nets: Path) -> None:
    """And the statistics of each head's own normalization stay its member's."""
    chosen = {"student.heads": {"last-stage": "stage.0", "compress": 0.9}, "student.init": NET["student.init"]}
    run = trained(nets, "thin-maps", chosen, START)
    state = run.student(trust=EVERYTHING).state_dict()
    assert state["heads.tail.stage.0.core.weight"].shape[0] == 3
    assert state["heads.tail.stage.0.core.weight"].shape[2:] == (1, 3, 3)
    theirs = load_file(nets / "teachers/member-2.safetensors")
    assert torch.equal(state["heads.tail.stage.1.running_var"][2], theirs["stage.1.running_var"])
    assert explained(nets, "thin-maps") > 0.5


def test_such_a_run_is_trained_on_exported_and_loaded(mlps: Path) -> None:
    start = trained(mlps, "thin-start", LISTED, START, thin(0.6))
    run = trained(mlps, "thin-on", LISTED, thin(0.6), {"train.epochs": 10, "train.lr": 0.003})
    assert run.architecture.last_stage == start.architecture.last_stage
    assert explained(mlps, "thin-on") > explained(mlps, "thin-start")
    (file,) = export(tiny.settings(mlps), "thin-on", onnx=True).files
    x = np.random.default_rng(0).normal(size=(5, 1, 6, 6)).astype(np.float32)
    w = {name: t.double().numpy() for name, t in load_file(run.folder / "student.safetensors").items()}
    own, bias = w["heads.adapters.own"], w["heads.adapters.bias"]  # (3, 8, 36) and (3, 8)
    for head in range(3):
        h = np.tanh(x.reshape(5, 36) @ own[head].T + bias[head])
        h = h @ w["heads.tail.3.reduce.weight"][head].T @ w["heads.tail.3.expand.weight"][head].T
        h = np.tanh(h + w["heads.tail.3.expand.bias"][head])
        logits = h @ w["heads.last.weight"][head] + w["heads.last.bias"][head]
        assert_allclose(Served(file).run(x)["head_logits"][:, head], logits, atol=1e-4)
    with torch.no_grad():
        assert_close(
            torch.tensor(Served(file).run(x)["head_logits"]), load_student(run.folder, trust=True)(torch.tensor(x))
        )


TWICE = """
from torch import nn

class Twice(nn.Module):
    def __init__(self, body, inplace=False):
        super().__init__()
        self.stem, self.block = nn.Linear(36, 9), nn.Sequential(nn.Linear(9, 9), nn.Tanh())
        self.mid, self.head = nn.Linear(9, 9), nn.Identity() if body else nn.Linear(9, 3)
        self.inplace = inplace

    def forward(self, x):
        x = (x.mul_(-1.5) if self.inplace else x * -1.5).flatten(1)
        x = self.block(self.stem(x))
        return self.head(self.block(self.mid(x)))


def twice(body=False, inplace=False):
    return Twice(body, inplace)
"""


@pytest.mark.parametrize("inplace", [False, True])
def test_what_runs_before_and_in_the_last_stage_stays_whole_before_it(tmp_path: Path, inplace: bool) -> None:
    """And rows are what they are to each member, though a network may work in place."""
    folder = make(tmp_path / "f", "twice", TWICE)
    stage = {"last-stage": "mid", "adapt-from": "stem"}
    chosen = {"student.kwargs": {"body": True, "inplace": inplace}, **LISTED, **START}
    trained(folder, "whole", chosen, {"student.heads": stage})
    assert explained(folder, "whole") > 0.98  # the adapters are linear, and before mid there is a tanh
    trained(folder, "thin", chosen, {"student.heads": {**stage, "compress": 0.85}})
    assert explained(folder, "thin") > 0.9


# --- copies of the body's own -------------------------------------------------------------------------------------


def test_without_members_heads_are_copies_that_part(nets: Path) -> None:
    run = trained(nets, "copies", {"student.heads": {"last-stage": "stage"}, "train.epochs": 6})
    student = run.student(trust=EVERYTHING)
    assert isinstance(student.heads, LastStageHeads)
    assert student.heads.adapters is None
    weight = student.state_dict()["heads.tail.stage.0.weight"]
    assert weight.shape == (3, 5, 4, 3, 3)
    assert not torch.allclose(weight[0], weight[1])
    assert not torch.equal(*student.state_dict()["heads.tail.stage.1.running_mean"][:2])  # statistics of their own
    document = evaluate(tiny.settings(nets), "copies").to_json()
    assert document["fidelity"]["diversity_explained"] is not None


def test_one_head_of_a_last_stage_is_the_body(nets: Path) -> None:
    split, plain = (
        trained(
            nets,
            name,
            {"train.method": "kd", "student.heads": heads, "train.epochs": 2, "method.closed-form": False},
        )
        for name, heads in (("kd-split", {"last-stage": "stage"}), ("kd-plain", []))
    )
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # two trainings, whose sums are taken in different orders
        assert_close(split.student(trust=EVERYTHING)(x), plain.student(trust=EVERYTHING)(x), atol=1e-3, rtol=1e-3)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused_and_nothing_is_written(mlps: Path) -> None:
    for chosen, said in [
        ({"student.heads": {"rank": 4}}, ("student.heads has rank = 4", 'student.init = ["member-00"]')),
        ({"student.heads": {"adapt-from": "1"}, "student.init": "member-0"}, ("student.heads has adapt-from = '1'",)),
        ({"student.heads": {"compress": 0.5}}, ("student.heads has compress = 0.5", 'student.init = ["member-00"]')),
        ({**LISTED, **thin(0.1)}, ("student.heads.compress is 0.1", "member-0's last stage keeps 0.371 of its 54")),
        ({**LISTED, **thin(1.5)}, ("student.heads.compress", "less than 1")),
        ({**LISTED, **thin(0.5), "student.compress": 0.5}, ("student.compress is 0.5", "a compress of its own")),
        ({"student.heads": {"last-stage": "7"}}, ("taken apart at '7', and its modules are 0, 1, 2",)),
        (
            {**LISTED, "student.heads": {"last-stage": "2", "adapt-from": "1", "rank": 99}},
            ("rank = 99", "3 × 8 numbers", "at most 24"),
        ),
        ({**LISTED, "student.heads": {"last-stage": "1", "adapt-from": "0"}}, ("(1, 6, 6)", "(36,)")),
        (
            {**LISTED, "student.heads": {"last-stage": "1", "adapt-from": "3"}},
            ("adapt-from is '3', which comes",),
        ),
        ({"student.heads": {"last-stage": ""}}, ("student.heads.last-stage",)),
        ({"student.init": []}, ("student.init",)),
        ({**MLP, "method.closed-form": False}, ("does not solve for what stands behind it",)),
        ({**MLP, "student.preprocessing": {"mean": [0.2]}}, ("starts from member-0, whose mean is", "0.2")),
        ({**MLP, "train.method": "kd"}, ("kd has no head for each of the 3", "Use --method hydra")),
        ({**MLP, "method.hinton-share": 0.5}, ("stage hinton of hydra has 1", "Leave method.hinton-share out")),
        ({"student.heads": "last-stage", "train.method": "batch-ensemble"}, ("batch-ensemble", "student.heads = []")),
    ]:
        with tiny.refused(*said):
            trained(mlps, "refused", chosen)
        assert not (mlps / "runs/refused/args.toml").exists()


def test_a_member_of_another_architecture_is_refused(mlps: Path) -> None:
    wider = "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 6))\n"
    (mlps / "other.py").write_text(f"from torch import nn\n\n\n{wider}")
    with tiny.refused("member-0", "the body's 1.weight is (9, 36)"):
        trained(mlps, "other", MLP, {"student.model": str(mlps / "other.py:make"), "student.kwargs": {}})


def test_a_forward_that_drops_what_it_changes_in_place_is_refused() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x.relu_()
            y: Tensor = self.b(x)
            return y

    with tiny.refused("Taken apart at its last stage, the body gives", "x = x.relu()"):
        apart(InPlace(), LastStage("b"), (3,), 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rank", "96"), ("rank", 0), ("rank", True), ("at", ["3"]), ("at", None)),
        *(("compressed", {"3": 0}), ("compressed", {"3": "4"}), ("compressed", [3]), ("compressed", None)),
    ],
)
def test_a_damaged_last_stage_is_a_damaged_config(mlps: Path, key: str, value: object) -> None:
    run = trained(mlps, "whole", MLP, START)
    config = tiny.unseal(run.folder)
    whole = config.read_text()
    document = json.loads(whole)
    document["student"]["last_stage"][key] = value
    config.write_text(json.dumps(document))
    try:
        with tiny.refused("config.json is damaged"):
            Run.open(run.folder)
    finally:
        config.write_text(whole)
