"""Heads with a last stage each: copies of the body's, or every member's own behind adapters, in the whole tool."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from last_stage_helpers import LISTED, MLP, MODELS, NET, START, explained, make, trained
from safetensors.torch import load_file
from sklearn.metrics import r2_score
from torch import nn
from torch.testing import assert_close
from trusted import EVERYTHING

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("mlps") / "f", "mlp")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nets") / "f", "net")


# --- members' own last stages ------------------------------------------------------------------------------------


def test_with_adapters_of_full_rank_the_student_is_the_ensemble(mlps: Path) -> None:
    """A linear layer is what adapters stand in for, so nothing is lost, whatever the body's own first layer says."""
    run = trained(mlps, "whole", MLP, START)
    student = run.student(trust=EVERYTHING)
    assert isinstance(student.heads, LastStageHeads)
    x = torch.rand(30, 1, 6, 6) * 2 - 1
    for index in range(3):
        theirs = load_file(mlps / f"teachers/member-{index}.safetensors")
        layers = (nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        module = nn.Sequential(nn.Flatten(), *layers)
        module.load_state_dict(theirs)
        with torch.no_grad():
            assert Categorical(module(x).unsqueeze(1)).kl(Categorical(student(x)[:, [index]])).max() < 1e-4
        # in float32 to the last bit: copied, not trained
        assert torch.equal(student.heads.tail.get_parameter("3.weight")[index], theirs["3.weight"])
    assert explained(mlps, "whole") > 0.999


def test_a_lower_rank_costs_diversity_and_saves_weights(mlps: Path) -> None:
    runs = [
        trained(mlps, f"rank-{rank}", START, LISTED, {"student.heads": {**MLP["student.heads"], "rank": rank}})
        for rank in (24, 12, 4)
    ]
    found = [explained(mlps, run.folder.name) for run in runs]
    assert found[0] > found[1] > found[2]
    assert found[0] > 0.9
    sizes = [sum(p.numel() for p in run.student(trust=EVERYTHING).parameters()) for run in runs]
    assert sizes[0] > sizes[1] > sizes[2]


def test_maps_of_all_members_side_by_side_are_enough_for_each(nets: Path) -> None:
    run = trained(nets, "maps", NET, START)
    assert (run.architecture.bodies, run.architecture.last_stage.at) == (3, "stage.0")  # type: ignore[union-attr]
    assert explained(nets, "maps") > 0.99
    state = run.student(trust=EVERYTHING).state_dict()
    for index in range(3):
        theirs = load_file(nets / f"teachers/member-{index}.safetensors")
        assert torch.equal(state["heads.tail.stage.1.running_var"][index], theirs["stage.1.running_var"])


def test_one_row_does_not_tell_what_adapters_say(tmp_path: Path) -> None:
    made, progress = make(tmp_path / "f", "mlp"), Silent()
    tiny.save_data(made, "train", 1, y=np.zeros(1, np.int64))
    one = {"views.transform": "none", "views.count": 1, "output.cache": "one", "output.name": "one"}
    cache_logits(tiny.settings(made, one))
    train(tiny.settings(made, MLP | START | one), progress=progress)
    assert [note for note in progress.notes if "dapters" in note and "could not be measured on so few rows" in note]
    assert not [note for note in progress.notes if "nan" in note]


@pytest.mark.parametrize("rank", [24, 6])
def test_what_the_adapters_say_is_told(mlps: Path, rank: int) -> None:
    progress = Silent()
    chosen = {**START, **LISTED, "student.heads": {**MLP["student.heads"], "rank": rank}, "output.name": f"told-{rank}"}
    folder = train(tiny.settings(mlps, chosen), progress=progress).folder
    told = re.fullmatch(r"Adapters say ([\d.]+) % of .*last stages are given\.", progress.notes[-1])
    assert told is not None
    heads = Run.open(folder).student(trust=EVERYTHING).heads
    assert isinstance(heads, LastStageHeads)
    assert heads.adapters is not None
    with np.load(mlps / "data/train.npz") as arrays:
        x = torch.tensor(arrays["x"]).float() / 255 * 2 - 1  # all of them, and not in views
    layers = [load_file(mlps / f"teachers/member-{index}.safetensors") for index in range(3)]
    wanted = torch.cat([x.flatten(1) @ one["1.weight"].T + one["1.bias"] for one in layers], dim=1)
    with torch.no_grad():
        said = heads.adapters(x.flatten(1)).view(len(x), -1)
    kept = r2_score(wanted.numpy(), said.numpy(), multioutput="variance_weighted")
    assert float(told[1]) == pytest.approx(100 * kept, abs=0.1 if rank == 24 else 8)
    assert (float(told[1]) > 99.9) == (rank == 24)


def test_training_goes_on_from_there(mlps: Path) -> None:
    low = {"student.heads": {**MLP["student.heads"], "rank": 4}}
    start = trained(mlps, "start", START, LISTED, low)
    run = trained(mlps, "further", LISTED, low, {"train.epochs": 20, "train.lr": 0.005})
    assert explained(mlps, "further") > explained(mlps, "start") + 0.05
    assert not torch.equal(*(r.student(trust=EVERYTHING).state_dict()["heads.tail.3.weight"] for r in (start, run)))


@pytest.mark.parametrize(("kind", "chosen"), [("mlps", MLP), ("nets", NET)])
def test_such_a_run_is_exported_loaded_and_a_teacher(
    kind: str, chosen: dict[str, object], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    run = trained(folder, "travels", chosen)
    (file,) = export(tiny.settings(folder), "travels", onnx=True).files
    assert "Einsum" not in {node.op_type for node in onnx.load(file).graph.node}  # it copies the weights at every call
    namespace: dict[str, object] = {}
    exec(MODELS, namespace)
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        student = load_student(run.folder, lambda **given: namespace[kind[:-1]](**given))  # type: ignore[operator]
        assert_close(student(x), run.student(trust=EVERYTHING)(x))


@pytest.mark.parametrize("more", [{"rank": 4}, {"compress": 0.8}])
def test_an_interrupted_training_resumes_to_the_same_bytes(
    mlps: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    low, name = {"student.heads": {**MLP["student.heads"], **more}}, "-".join(more)
    wanted = trained(mlps, f"at-once-{name}", LISTED, low)
    overrides = {"output.name": f"twice-{name}", "train.checkpoint-minutes": 1e-9, **LISTED, **low}
    run, happened = mlps / f"runs/twice-{name}", False
    for point in (4, 7, 12):
        with tiny.killed_at(point, monkeypatch, run) as killed:
            train(tiny.settings(mlps, overrides))
        happened |= bool(killed)
    assert happened
    assert (run / "checkpoint.safetensors").is_file()
    monkeypatch.setattr("ensemble_distill.starts.compressing.compress", None)  # the checkpoint has it
    train(tiny.settings(mlps, overrides))
    files = [(folder / "student.safetensors").read_bytes() for folder in (wanted.folder, run)]
    assert files[0] == files[1]
