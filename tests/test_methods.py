"""Methods: the Hydra losses against NumPy, what every method must do, and how one is found or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.config import Settings
from ensemble_distill.errors import EdistillError
from ensemble_distill.methods import method_names, open_method
from ensemble_distill.methods.method import Batch, Labels, Method, Stage, Step
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Average
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.run import Run, load_student
from ensemble_distill.students.student import Student
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.methods import methods
from ensemble_distill.workflows.train import method_options, train

Floats = NDArray[np.float64]

B, M, K, FEATURES = 6, 3, 4, 5
FIRST = Step(0, 100)
WEIGHTS = np.array([0.5, 0.3, 0.2])


def a_batch(seed: int = 0, rows: int = B, weights: Floats | None = None, average: Average = "probabilities") -> Batch:
    """Members' logits (rows, M, K) in float64, and labels of which some rows are mixed."""
    rng = np.random.default_rng(seed)
    own, partner = torch.tensor(rng.integers(0, K, (2, rows)))
    weight = torch.tensor(rng.uniform(0.5, 1, rows))
    logits = torch.tensor(rng.normal(scale=2, size=(rows, M, K)))
    pooling = None if weights is None else torch.tensor(weights)
    return Batch(Categorical(logits, pooling, average), Labels(own, partner, weight))


def a_student(heads: int = 1, dtype: torch.dtype = torch.float64) -> Student:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh())
    return Student(body, Heads(heads, 16, (8,), K)).to(dtype)


def stages(name: str, **options: Any) -> list[Stage]:
    method = open_method(name)
    return list(method.stages(method.Options.model_validate(options), M))


# --- Hydra ------------------------------------------------------------------------------------------------


def softened(logits: Floats, temperature: float) -> Floats:
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(-1, keepdims=True))
    found: Floats = exponentials / exponentials.sum(-1, keepdims=True)
    return found


def hinton_loss(teacher: Floats, student: Floats, t: float, w: Floats, average: Average) -> float:
    """T² × mean over rows of KL(the softened members' mean ‖ the one softened head)."""
    total = 0.0
    for members, (head,) in zip(teacher, student, strict=True):
        if average == "probabilities":
            target = sum(w[m] * softened(members[m], t) for m in range(M))
        else:
            target = softened(sum(w[m] * members[m] for m in range(M)), t)
        q = softened(head, t)
        total += sum(target[k] * (np.log(target[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


def heads_loss(teacher: Floats, student: Floats, t: float, w: Floats) -> float:
    """T² × mean over rows of Σ_m w_m KL(softened member m ‖ softened head m); w_m = 1/M in the paper."""
    total = 0.0
    for members, heads in zip(teacher, student, strict=True):
        for m in range(M):
            p, q = softened(members[m], t), softened(heads[m], t)
            total += w[m] * sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_hydras_losses_are_the_papers(temperature: float, weights: Floats | None, average: Average) -> None:
    batch = a_batch(weights=weights, average=average)
    teacher = np.asarray(batch.teacher.logits)  # type: ignore[attr-defined]
    w = np.full(M, 1 / M) if weights is None else weights
    hinton, heads = stages("hydra", temperature=temperature)
    rng = np.random.default_rng(1)
    one, many = rng.normal(size=(B, 1, K)), rng.normal(size=(B, M, K))
    found = hinton.loss(batch, Categorical(torch.tensor(one)), FIRST)
    assert float(found) == pytest.approx(hinton_loss(teacher, one, temperature, w, average), rel=1e-12)
    found = heads.loss(batch, Categorical(torch.tensor(many)), FIRST)
    assert float(found) == pytest.approx(heads_loss(teacher, many, temperature, w), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hydras_gradients(temperature: float) -> None:
    """By finite differences, and T (q − p) / B, times 1/M with a head per member: T² keeps it of one size."""
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=temperature)
    teacher = np.asarray(batch.teacher.logits)  # type: ignore[attr-defined]
    targets = softened(teacher, temperature)
    for stage, count, target in ((hinton, 1, targets.mean(1, keepdims=True)), (heads, M, targets)):
        logits = torch.randn(B, count, K, dtype=torch.float64, requires_grad=True)

        def loss(z: Tensor, stage: Stage = stage) -> Tensor:
            return stage.loss(batch, Categorical(z), FIRST)

        assert torch.autograd.gradcheck(loss, (logits,))
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        q = softened(logits.detach().numpy(), temperature)
        assert_close(gradient, torch.tensor(temperature * (q - target) / (B * count)))


def test_hydras_losses_vanish_at_their_targets_alone() -> None:
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=3.0)
    assert isinstance(batch.teacher, Categorical)
    offset = torch.randn(B, M, 1, dtype=torch.float64)
    assert float(heads.loss(batch, Categorical(batch.teacher.logits + offset), FIRST)) == pytest.approx(0, abs=1e-12)
    mean = 3 * batch.teacher.tempered(3).pooled().logits
    assert float(hinton.loss(batch, Categorical(mean), FIRST)) == pytest.approx(0, abs=1e-12)
    collapsed = Categorical((3 * batch.teacher.tempered(3).pooled().logits).expand(-1, M, -1))
    disagreement = 9 * batch.teacher.tempered(3).summary().model.mean()
    assert_close(heads.loss(batch, collapsed, FIRST), disagreement)  # what is left to a second phase to learn


def test_hydra_copies_the_hinton_head_and_keeps_the_body() -> None:
    hinton, heads = stages("hydra", hinton_share=0.25)
    assert (hinton.share, heads.share) == (0.25, 0.75)
    student = a_student()
    assert hinton.start(student) is student
    grown = heads.start(student)
    assert grown.body is student.body
    x = torch.randn(B, FEATURES, dtype=torch.float64)
    assert_close(grown(x), student(x).expand(-1, M, -1))


def test_hydra_needs_no_labels() -> None:
    batch = Batch(a_batch().teacher, None)
    for stage in stages("hydra"):
        student = stage.start(a_student())
        x = torch.randn(B, FEATURES, dtype=torch.float64)
        assert stage.loss(batch, student.predictive(student(x)), FIRST).isfinite()


# --- what every method does -------------------------------------------------------------------------------

every_method = pytest.mark.parametrize("name", method_names())


@every_method
def test_a_method_introduces_itself(name: str) -> None:
    method = open_method(name)
    assert method.title
    assert "arXiv" in method.paper
    assert method.outputs
    assert method.needs <= {"teacher", "labels"}
    listed = {entry["name"]: entry for entry in methods()}
    assert listed[name]["what"] == method.title
    assert listed[name]["needs"] == ", ".join(sorted(method.needs))
    json.dumps(listed)


@every_method
def test_options_have_defaults_and_descriptions_and_survive_json(name: str) -> None:
    kind = open_method(name).Options
    options = kind.model_validate({})
    assert kind.model_validate(json.loads(json.dumps(options.model_dump(mode="json")))) == options
    assert kind.model_validate(json.loads(json.dumps(options.model_dump(mode="json", by_alias=True)))) == options
    assert all(field.description for field in kind.model_fields.values())


@every_method
@pytest.mark.parametrize("members", [1, M, 20])
def test_the_stages_share_all_of_the_training(name: str, members: int) -> None:
    method = open_method(name)
    found = method.stages(method.Options.model_validate({}), members)
    assert len({stage.name for stage in found}) == len(found) > 0
    assert all(0 < stage.share <= 1 for stage in found)
    assert sum(stage.share for stage in found) == pytest.approx(1)


@every_method
@pytest.mark.parametrize("members", [1, M])
def test_the_last_stage_has_the_heads_that_the_method_promises(name: str, members: int) -> None:
    method = open_method(name)
    student = a_student()
    for stage in method.stages(method.Options.model_validate({}), members):
        student = stage.start(student)
    assert student.heads.count == method.heads(members)
    assert student(torch.zeros(2, FEATURES, dtype=torch.float64)).shape[:2] == (2, method.heads(members))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stage_has_a_finite_loss_that_training_lowers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batch, student = a_batch(rows=16), a_student(dtype=dtype)
    x = torch.randn(16, FEATURES, dtype=dtype)
    for stage in stages(name):
        student = stage.start(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
        losses = []
        for _ in range(60):
            loss = stage.loss(batch, student.predictive(student(x)), FIRST)
            assert loss.shape == ()
            assert loss.isfinite()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = [parameter.grad for parameter in student.parameters()]
            assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
            optimizer.step()
        assert losses[-1] < 0.9 * losses[0], stage.name


@every_method
def test_losses_are_means_over_rows(name: str) -> None:
    """So that neither the batch's size nor accumulating batches changes what a learning rate means."""
    batch = a_batch()
    assert isinstance(batch.teacher, Categorical)
    assert batch.labels is not None
    labels = [torch.cat([values, values]) for values in (batch.labels.own, batch.labels.partner, batch.labels.weight)]
    doubled = Batch(Categorical(torch.cat([batch.teacher.logits] * 2)), Labels(*labels))
    x = torch.randn(B, FEATURES, dtype=torch.float64)
    student = a_student()
    for stage in stages(name):
        student = stage.start(student)
        single = stage.loss(batch, student.predictive(student(x)), FIRST)
        assert_close(stage.loss(doubled, student.predictive(student(torch.cat([x, x]))), FIRST), single)


# --- finding one ------------------------------------------------------------------------------------------

MINE = """
from pydantic import BaseModel
from ensemble_distill.methods.method import Stage

class Mine:
    title = "the mean alone"
    needs = frozenset({"teacher"})

    class Options(BaseModel):
        sharpness: float = 2.0

    def heads(self, members):
        return 1

    def stages(self, options, members):
        def loss(batch, student, step):
            return options.sharpness * batch.teacher.pooled().kl(student).mean()
        return [Stage("mean", 1.0, lambda student: student, loss)]

class Half:
    title = "not a method"
    needs = frozenset()

class Broken:
    def __init__(self):
        raise ValueError("not today")
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def test_built_in_methods_are_their_files() -> None:
    assert "hydra" in method_names()
    assert "method" not in method_names()
    assert list(method_names()) == sorted(method_names())


def test_a_users_own_method_is_a_class_in_a_file(mine: str) -> None:
    method = open_method(f"{mine}:Mine")
    options = method.Options.model_validate({"sharpness": 3})
    (stage,) = method.stages(options, M)
    batch, student = a_batch(), a_student()
    raw = student(torch.randn(B, FEATURES, dtype=torch.float64))
    assert isinstance(batch.teacher, Categorical)
    assert_close(
        stage.loss(batch, student.predictive(raw), FIRST), 3 * batch.teacher.pooled().kl(Categorical(raw)).mean()
    )


def test_a_users_method_is_told_which_parts_it_lacks(mine: str) -> None:
    with pytest.raises(EdistillError, match=r"mine\.py:Half has no Options, heads, stages\. A method has what"):
        open_method(f"{mine}:Half")
    with pytest.raises(EdistillError, match=r"Broken\(\) raised ValueError: not today"):
        open_method(f"{mine}:Broken")
    with pytest.raises(EdistillError, match=r"train\.method .* has no callable Nine\. It defines Mine, Half, Broken"):
        open_method(f"{mine}:Nine")
    with pytest.raises(EdistillError, match=r"train\.method .* there is no file .*yours\.py"):
        open_method(mine.replace("mine", "yours") + ":Mine")


def test_an_unknown_method_is_answered_with_the_nearest_or_with_all() -> None:
    with pytest.raises(EdistillError, match=r"'hydro', which is no method\. Did you mean hydra\?"):
        open_method("hydro")
    with pytest.raises(
        EdistillError, match=rf"'quux', which is no method\. The methods are {', '.join(method_names())}\."
    ):
        open_method("quux")
    with pytest.raises(EdistillError, match="'method', which is no method"):  # the module of that name is none
        open_method("method")


# --- the [method] table -----------------------------------------------------------------------------------


def asked(name: str, **options: Any) -> tuple[Method, Settings]:
    return open_method(name), Settings.model_validate({"train": {"method": name}, "method": options})


def test_options_are_read_in_either_spelling_and_default() -> None:
    for spelling in ("hinton-share", "hinton_share"):
        options = method_options(*asked("hydra", temperature=4, **{spelling: 0.5}))
        assert options.model_dump() == {"temperature": 4.0, "hinton_share": 0.5}
    assert method_options(*asked("hydra")).model_dump() == {"temperature": 1.0, "hinton_share": 0.3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 2}, r"method\.temprature is no option of hydra\. Its options are temperature, hinton-share\."),
        ({"temperature": 0}, r"method\.temperature is 0: Input should be greater than 0\."),
        ({"temperature": "hot"}, r"method\.temperature is 'hot': Input should be a valid number"),
        ({"hinton-share": 1.0}, r"method\.hinton-share is 1\.0: Input should be less than 1\."),
        ({"hinton-share": 0}, r"method\.hinton-share is 0: Input should be greater than 0\."),
    ],
)
def test_options_out_of_their_domain_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(EdistillError, match=says):
        method_options(*asked("hydra", **options))


def test_a_users_own_options_are_validated_too(mine: str) -> None:
    name = f"{mine}:Mine"
    assert method_options(*asked(name, sharpness=5)).model_dump() == {"sharpness": 5.0}
    with pytest.raises(EdistillError, match=r"method\.sharpness is 'much': Input should be a valid number"):
        method_options(*asked(name, sharpness="much"))


def test_a_users_method_trains(tmp_path: Path, mine: str) -> None:
    folder = tiny.make_folder(tmp_path / "folder")
    settings = tiny.settings(folder, {"train.method": f"{mine}:Mine", "method.sharpness": 3, "train.epochs": 1})
    cache_logits(settings)
    report = train(settings)
    assert (report.method, report.heads, report.folder.name) == ("Mine", 1, "Mine-s0")
    assert Run.open(report.folder).config.options == {"sharpness": 3.0}
    assert load_student(report.folder)(torch.zeros(2, 1, 6, 6)).shape == (2, 1, tiny.CLASSES)
