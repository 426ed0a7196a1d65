"""Training: the same seed gives the same bytes, losses fall, heads part, averages and statistics are what they say."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.utils
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from tiny import SIDE, contents, examples, linear, make_folder, refused, settings, with_cache
from torch import Tensor, nn
from training_helpers import new_name, summary, trained

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.methods.method import Stage
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runs.run import load_student
from ensemble_distill.students.student import Student
from ensemble_distill.training.order import boundaries
from ensemble_distill.training.report import TrainReport
from ensemble_distill.training.stepping import READ_EVERY
from ensemble_distill.training.summary import Summary
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

SIZE = Preprocessing((SIDE, SIDE), (0.5,), (0.5,))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; runs of this module go there under names of their own."""
    return with_cache(make_folder(tmp_path_factory.mktemp("training") / "tiny"))


def weights(report: TrainReport) -> dict[str, Tensor]:
    return load_file(report.folder / "student.safetensors")


def plain(folder: Path, split: str) -> Tensor:
    """The pixels of a split as the networks get them, computed from the file alone."""
    x = np.load(folder / "data" / f"{split}.npz")["x"]
    return torch.from_numpy((x.astype(np.float32)[:, None] / 255 - 0.5) / 0.5)


# --- reproducible -----------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_and_another_seed_others(cached: Path) -> None:
    first, second = trained(cached), trained(cached)
    assert first.fresh
    assert first.resumed_at == 0
    files = [(r.folder / "student.safetensors").read_bytes() for r in (first, second)]
    assert files[0] == files[1]
    assert (first.folder / "config.json").read_bytes() == (second.folder / "config.json").read_bytes()
    assert (trained(cached, train__seed=1).folder / "student.safetensors").read_bytes() != files[0]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_validation_and_the_state_of_the_world_change_nothing(cached: Path) -> None:
    """Dropout draws from torch's generator: nothing else may, or what else is done would change the student."""
    wanted = weights(trained(cached))
    torch.manual_seed(77)
    torch.rand(3)
    assert_equal(weights(trained(cached, train__workers=2)), wanted)
    assert_equal(weights(trained(cached, data__validation=None)), wanted)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_settings_beside_a_run_make_it_again(cached: Path) -> None:
    from ensemble_distill.settings import load_settings

    report = trained(cached, train__lr=0.02)
    wanted = contents(report.folder, ["summary.csv", "checkpoint.safetensors"])
    train(load_settings(report.folder / "args.toml"), overwrite=True)
    assert contents(report.folder, ["summary.csv", "checkpoint.safetensors"]) == wanted


# --- learning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(cached: Path) -> TrainReport:
    more = {"views.count": 12, "output.cache": "many-views"}
    cache_logits(settings(cached, more))
    rest = {"train.epochs": 60, "student.kwargs": {"dropout": 0.0, "width": 32}, "output.name": new_name()}
    return train(settings(cached, {**more, **rest}))


def test_losses_fall_in_both_stages(learned: TrainReport) -> None:
    table = summary(learned)
    assert [row["epoch"] for row in table] == [str(epoch) for epoch in range(1, 61)]
    stages = {name: [float(r["validation_loss"]) for r in table if r["stage"] == name] for name in ("hinton", "heads")}
    assert {name: len(losses) for name, losses in stages.items()} == {"hinton": 18, "heads": 42}
    assert stages["hinton"][-1] < stages["hinton"][0] / 2
    assert stages["heads"][-1] < 0.7 * stages["heads"][0]
    assert float(table[-1]["validation_nll"]) < 0.3 < float(table[0]["validation_nll"])
    train_losses = [float(row["train_loss"]) for row in table]
    assert max(train_losses[-5:]) < train_losses[0] / 2


def test_heads_part_and_each_is_nearest_to_its_own_member(learned: TrainReport) -> None:
    x, _ = examples(200, 77)
    images = torch.from_numpy((x.astype(np.float32)[:, None] / 255 - 0.5) / 0.5)
    with torch.no_grad():
        student = load_student(learned.folder, trust=True)(images)
        teacher = torch.stack([linear(seed)(images) for seed in range(3)], dim=1)
    assert student.shape == (200, 3, 3)
    kl = torch.stack([Categorical(teacher).kl(Categorical(student[:, [head]])).mean(0) for head in range(3)])
    assert kl.argmin(0).tolist() == [0, 1, 2], kl  # rows are heads, columns members
    off_diagonal = kl[~torch.eye(3, dtype=torch.bool)]
    assert kl.diagonal().mean() < 0.75 * off_diagonal.mean(), kl
    assert Categorical(student).summary().model.mean() > 0.25 * Categorical(teacher).summary().model.mean()


def test_transfer_rows_without_labels_are_trained_on(cached: Path) -> None:
    """40 rows and 16 more in batches of 8: seven steps an epoch, and another student."""
    x = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE), dtype=np.uint8)
    np.savez(cached / "data/transfer.npz", x=x)
    more = {"data__transfer": "data/transfer.npz", "output__cache": "with-transfer"}
    cache_logits(settings(cached, {key.replace("__", "."): value for key, value in more.items()}))
    report = trained(cached, **more)
    state = load_file(report.folder / "checkpoint.safetensors")
    assert state["/optimizer/state/0/step"] == 3 * 7 - 6, "steps of the second stage"
    assert summary(report)[-1]["validation_nll"]
    assert (report.folder / "student.safetensors").read_bytes() != (
        trained(cached).folder / "student.safetensors"
    ).read_bytes()


def test_training_needs_no_labels_at_all(cached: Path) -> None:
    for split in ("train", "validation"):
        data = np.load(cached / f"data/{split}.npz")
        np.savez(cached / f"data/{split}-x.npz", x=data["x"])
    more = {"data.train": "data/train-x.npz", "data.validation": "data/validation-x.npz", "output.cache": "unlabeled"}
    cache_logits(settings(cached, more))
    report = train(settings(cached, {**more, "output.name": new_name()}))
    columns = list(summary(report)[0])
    assert "validation_loss" in columns
    assert "validation_nll" not in columns
    assert_equal(weights(report), weights(trained(cached)))


# --- schedule, clipping, precision ------------------------------------------------------------------------------

ONE_STEP = {"train__batch_size": 40, "train__epochs": 10}  # an epoch is a step; 3 in the first stage, 7 in the second


def rates(report: TrainReport) -> list[float]:
    return [float(row["lr"]) for row in summary(report)]


def test_each_stage_has_a_whole_cosine(cached: Path) -> None:
    wanted = [0.5 * 0.01 * (1 + math.cos(math.pi * i / n)) for n in (3, 7) for i in range(n)]
    assert_allclose(rates(trained(cached, **ONE_STEP)), wanted, rtol=1e-5)


@pytest.mark.parametrize("sched", ["cosine", "none"])
def test_warmup_rises_linearly_from_a_hundredth_in_each_stage(cached: Path, sched: str) -> None:
    found = rates(trained(cached, **ONE_STEP, train__warmup_epochs=2, train__sched=sched))
    for start in (0, 3):
        assert_allclose(found[start : start + 2], [0.0001, 0.00505], rtol=1e-5)
    after = [0.5 * 0.01 * (1 + math.cos(math.pi * i / n)) for n in (3, 7) for i in range(2, n)]
    assert_allclose(found[2:3] + found[5:], [0.01] * 6 if sched == "none" else after, rtol=1e-5)


@pytest.mark.parametrize("sched", ["tanh", "poly"])
def test_other_schedules_fall(cached: Path, sched: str) -> None:
    found = rates(trained(cached, **ONE_STEP, train__sched=sched))
    assert found[3:] == sorted(found[3:], reverse=True)
    assert found[-1] < found[3] == pytest.approx(0.01, rel=0.05)


def test_gradients_are_clipped(cached: Path) -> None:
    """A norm of at most 1e-7 at a rate of 0.1, in 10 steps of momentum 0.9, moves weights by 1e-6 at most."""
    slow = {
        "method__closed_form": False,
        "train__opt": "sgd",
        "train__lr": 0.1,
        "train__weight_decay": 0.0,
        "train__sched": "none",
        **ONE_STEP,
    }
    runs = [weights(trained(cached, **{**slow, **more})) for more in ({"train__clip_grad": 1e-7}, {})]
    start = weights(trained(cached, **{**slow, "train__lr": 1e-12}))
    moved, free = (
        max((w[n] - start[n]).abs().max().item() for n in w if "running" not in n and "num" not in n) for w in runs
    )
    assert moved < 1.01e-6
    assert free > 1e-2


def test_mixed_precision_trains(cached: Path) -> None:
    full, mixed = trained(cached, train__epochs=8), trained(cached, train__epochs=8, train__amp=True)
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(mixed).values())
    losses = [[float(row["train_loss"]) for row in summary(report)] for report in (full, mixed)]
    assert losses[0] != losses[1], "nothing was computed in bfloat16"
    assert_allclose(losses[1], losses[0], rtol=0.2)


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_is_one_call_of_the_student_whose_heads_run_in_full_precision(
    cached: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    """So that what wraps a student sees its body and its heads."""
    calls: list[tuple[torch.dtype, torch.dtype]] = []
    forward = Student.forward

    def noted(self: Student, x: Tensor) -> Tensor:
        raw = forward(self, x)
        if self.training:
            calls.append((self.features(x).dtype, raw.dtype))
        return raw

    monkeypatch.setattr(Student, "forward", noted)
    # a linear body is where the lower precision shows
    (cached / "plain.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))\n"
    )
    trained(cached, train__amp=amp, train__epochs=2, student__model="plain.py:make")
    assert calls == [(torch.bfloat16 if amp else torch.float32, torch.float32)] * 10


@pytest.mark.thorough
def test_a_compiled_body_is_the_same_student_under_the_same_names(cached: Path) -> None:
    plain = trained(cached)
    compiled = trained(cached, train__torchcompile="eager")
    assert_equal(weights(compiled), weights(plain))


def test_a_backend_that_torch_does_not_know_is_refused_with_those_it_knows(cached: Path) -> None:
    with refused("train.torchcompile is 'inductr'", "inductor"):
        trained(cached, train__torchcompile="inductr")


def test_losses_are_read_once_in_a_while_and_all_of_them(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of one epoch of 40 steps: before the second stage, after so many steps, and before its row."""
    reads: list[int] = []
    read = Summary.read

    def counted(self: Summary) -> list[float]:
        reads.append(len(self.unread))
        return read(self)

    monkeypatch.setattr(Summary, "read", counted)
    report = trained(cached, train__epochs=1, train__batch_size=1, train__freeze_bn=True, method__hinton_share=0.1)
    assert [steps for steps in reads if steps] == [4, READ_EVERY, 36 - READ_EVERY]
    assert len(summary(report)) == 1


def test_decay_leaves_biases_of_heads_alone(cached: Path) -> None:
    """Such a weight decay at such a rate leaves nothing of what is decayed."""
    found = weights(trained(cached, train__weight_decay=1e2, train__epochs=20, train__sched="none"))
    assert found["heads.layers.0.weight"].abs().max() < 0.05
    assert found["heads.layers.0.bias"].abs().max() > 0.05


# --- the moving average -----------------------------------------------------------------------------------------


def averaged(students: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """In a loop, in float64, with the decay that timm's warmup is documented to have, up to 0.6."""
    average: dict[str, Tensor] = {}
    for step, student in enumerate(students):
        decay = 0.0 if step < 2 else min(0.6, 1 - step ** (-2 / 3))
        for name, tensor in student.items():
            before = average.get(name, tensor)
            average[name] = decay * before.double() + (1 - decay) * tensor.double()
    return average


def test_the_student_is_the_average_of_the_last_stage(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students: list[dict[str, Tensor]] = []
    update = timm.utils.ModelEmaV3.update

    def recording(self: Any, model: nn.Module, step: int) -> None:
        students.append({name: t.clone() for name, t in model.state_dict().items() if t.is_floating_point()})
        update(self, model, step=step)

    copied: list[Tensor] = []
    with_heads = Student.with_heads

    def copying(self: Student, *more: Any) -> Student:
        copied.append(self.state_dict()["body.2.weight"].clone())
        return with_heads(self, *more)

    monkeypatch.setattr(timm.utils.ModelEmaV3, "update", recording)
    monkeypatch.setattr(Student, "with_heads", copying)
    found = weights(trained(cached, train__model_ema=True, train__model_ema_decay=0.6, train__epochs=4))
    assert len(students) == 6 + 14
    average = averaged(students[6:])
    for name, tensor in average.items():
        assert_allclose(found[name], tensor, atol=1e-6, err_msg=name)
    assert not torch.equal(found["heads.layers.0.weight"], students[-1]["heads.layers.0.weight"])
    # the second stage starts from the first one's average, and its body moves on
    assert_allclose(copied[-1], averaged(students[:6])["body.2.weight"], atol=1e-6)
    assert not torch.equal(copied[-1], students[5]["body.2.weight"])
    assert (found["body.2.weight"] - copied[-1]).abs().max() > 0.01


# --- stages -----------------------------------------------------------------------------------------------------


def stages(shares: list[float]) -> list[Stage]:
    def start(student: Student) -> Student:
        return student

    def loss(*_: object) -> Tensor:
        return torch.zeros(())

    return [Stage(f"stage {index}", share / sum(shares), start, loss) for index, share in enumerate(shares)]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(0, 500))
def test_stages_share_out_the_steps_and_each_has_one(shares: list[float], more: int) -> None:
    steps = len(shares) + more
    ends = boundaries(stages(shares), steps)
    lengths = [stop - start for start, stop in itertools.pairwise([0, *ends])]
    assert sum(lengths) == steps
    assert min(lengths) >= 1
    if steps >= 400 * len(shares):
        assert_allclose(lengths, [steps * share / sum(shares) for share in shares], atol=len(shares))


def test_fewer_steps_than_stages_are_refused() -> None:
    with pytest.raises(EdistillError, match="has 1 steps, and the method has 2 stages \\(stage 0, stage 1\\)"):
        boundaries(stages([1, 1]), 1)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "few", rows={"train": 5})
    cache_logits(settings(folder))
    return folder


def test_fewer_rows_than_a_batch_are_one_batch(few: Path) -> None:
    report = train(settings(few, {"train.epochs": 4}))
    assert [row["stage"] for row in summary(report)] == ["hinton", "heads", "heads", "heads"]
