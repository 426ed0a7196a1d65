"""The run folder and the student in it: bodies, pooling, saving, loading, and every refusal on the way."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import changed, configured, student_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_run import SHAPE, edited, make_body, saved_run
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.safetensors import export_safetensors
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.gaussian import GaussianFamily
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime.names import is_plain
from ensemble_distill.serving.weights import WeightsFile
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.regression import Regression


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return saved_run(tmp_path)


# --- saving and loading -----------------------------------------------------------------------------------


def test_a_saved_student_comes_back_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = configured(weights=(1.0, 2.0, 3.0, 4.0), average="logits")
    student = config.architecture.build(make_body)
    student.train()(torch.randn(16, *SHAPE))
    student.eval()
    back = load_student(Run.save(tmp_path / "run", config, student).folder, body=make_body)
    assert not back.training
    assert back.state_dict().keys() == student.state_dict().keys()
    for name, tensor in student.state_dict().items():
        assert back.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(back.state_dict()[name], tensor), name
    x = torch.randn(9, *SHAPE)
    assert torch.equal(back(x), student(x))
    assert torch.equal(back.predictive(back(x)).pooled().logits, student.predictive(student(x)).pooled().logits)
    assert back(x).shape == (9, 4, 3)


def test_a_run_finds_its_body_where_it_was_trained(run: Run) -> None:
    x = torch.randn(3, *SHAPE)
    assert torch.equal(load_student(str(run.folder), trust=True)(x), load_student(run.folder, body=make_body)(x))


def test_a_run_travels_with_its_folder(run: Run, tmp_path: Path) -> None:
    wanted = load_student(run.folder, trust=True)(torch.ones(2, *SHAPE))
    (tmp_path / "work" / "runs").mkdir(parents=True)
    (tmp_path / "model.py").rename(tmp_path / "work" / "model.py")
    moved = run.folder.rename(tmp_path / "work" / "runs" / "renamed")
    assert torch.equal(load_student(moved, trust=True)(torch.ones(2, *SHAPE)), wanted)


def test_a_run_whose_body_file_is_gone_says_how_to_pass_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").unlink()
    with pytest.raises(EdistillError, match=r"model\.py:make_body, and that file is not there.*body=make_body\)"):
        load_student(run.folder, trust=True)
    assert load_student(run.folder, body=make_body)(torch.ones(2, *SHAPE)).shape == (2, 4, 3)


def test_a_body_that_no_longer_fits_is_refused_with_its_keys(run: Run) -> None:
    wider = (
        r"does not fit the body .*\{'width': 5\}: body\.0\.weight is \(5, 6\) in the file and \(6, 6\) .* 6 more differ"
    )
    with pytest.raises(EdistillError, match=wider):
        load_student(run.folder, body=lambda width: make_body(width + 1))
    with pytest.raises(EdistillError, match=r"body\.3\.weight is absent in the file and \(5, 5\) .* 1 more differ"):
        load_student(run.folder, body=lambda width: make_body(width).append(nn.Linear(width, width)))
    with pytest.raises(EdistillError, match=r"body\.1\.\w+ is \(.*\) in the file and absent in the student"):
        load_student(run.folder, body=lambda width: nn.Sequential(nn.Linear(6, width), nn.ReLU()))


def test_a_body_of_the_same_weights_that_computes_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    def changed_body(width: int) -> nn.Sequential:
        return nn.Sequential(*list(make_body(width))[:2], nn.Tanh())

    told = r"does not fit the body .*the student returned \S+ after its training, and now returns \S+\. .*code.*changed"
    with pytest.raises(EdistillError, match=told + ".*load_student"):
        load_student(run.folder, body=changed_body)
    config = Run.open(run.folder).config
    file = export_safetensors(load_student(run.folder, body=make_body), config, tmp_path / "model.safetensors")
    (tmp_path / "model.py").write_text((tmp_path / "model.py").read_text().replace("ReLU", "Tanh"))
    with pytest.raises(EdistillError, match=told):
        WeightsFile(file, Trust(everything=True)).module(Trust(everything=True))
    older = edited(run, lambda record: record.pop("answers", None))
    assert Run.open(older.folder).student(changed_body)  # an earlier version kept none


@pytest.mark.parametrize("odd", ["random", "failing", "infinite"])
def test_a_body_that_has_no_answer_to_a_fixed_input_keeps_none(tmp_path: Path, odd: str) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if odd == "failing":
                assert (x == 0).all()
            return super().forward(x) + (torch.randn(1) if odd == "random" else x.log().sum())

    config = configured(kwargs={})
    run = Run.save(tmp_path / "run", config, config.architecture.build(lambda: Odd(6, 4)))
    assert run.student(lambda: Odd(6, 4))
    assert "answers" not in json.loads((run.folder / "config.json").read_text())


def test_a_body_that_does_not_take_the_runs_arguments_is_refused(run: Run) -> None:
    with pytest.raises(EdistillError, match=r"does not take student\.kwargs \{'width': 5\}"):
        load_student(run.folder, body=lambda: make_body(5))


def test_truncated_weights_are_called_damaged(run: Run) -> None:
    weights = run.folder / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(EdistillError, match=r"student\.safetensors is damaged .*--overwrite"):
        load_student(run.folder, trust=True)


@pytest.mark.parametrize(
    ("missing", "says"),
    [("student.safetensors", "student.safetensors is missing"), ("config.json", "config.json is missing")],
)
def test_a_folder_without_a_finished_run_says_what_is_missing(run: Run, missing: str, says: str) -> None:
    (run.folder / missing).unlink()
    with pytest.raises(EdistillError, match=f"no run .{re.escape(says)}.*edistill train"):
        load_student(run.folder, trust=True)
    (run.folder / "args.toml").write_text("")
    again = " --overwrite" if missing == "config.json" else ""
    with pytest.raises(EdistillError, match=rf"an unfinished run .*train -c \S+args\.toml{again}\."):
        load_student(run.folder, trust=True)


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(EdistillError, match=r"nowhere holds no run \(student\.safetensors is missing\)"):
        load_student(tmp_path / "nowhere", trust=True)


def test_a_damaged_config_is_called_so(run: Run) -> None:
    for text in [
        '{"edistill": ',
        "null",
        "[]",
        "{}",
        '{"student": {}, "input": {}, "method": {}}',
        '{"student": 3, "input": 3, "method": 3}',
    ]:
        (run.folder / "config.json").write_text(text)
        with pytest.raises(EdistillError, match=r"config\.json is damaged \(\w+: "):
            Run.open(run.folder)


PLAIN = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "heads as text": lambda record: record["student"].update(heads="8"),
    "heads below 1": lambda record: record["student"].update(heads=-1),
    "hidden as text": lambda record: record["student"].update(hidden="abc"),
    "hidden below 1": lambda record: record["student"].update(hidden=[-1]),
    "kwargs as a list": lambda record: record["student"].update(kwargs=[1]),
    "model as a number": lambda record: record["student"].update(model=5),
    "no members": lambda record: record.update(members=[]),
    "weights of nothing": lambda record: record.update(weights=[0, 0, 0, 0]),
    "weights as text": lambda record: record.update(weights="abcd"),
    "too few weights": lambda record: record.update(weights=[1, 2]),
    "another average": lambda record: record.update(average="x"),
    "no classes": lambda record: record.update(classes=[]),
    "a class twice": lambda record: record.update(classes=["0"] * len(record["classes"])),
    "no task": lambda record: record.update(task="x"),
    "a Dirichlet of four heads": lambda record: record["student"].update(family={"name": "dirichlet", "offset": 1.0}),
    "trained on a number": lambda record: record.update(trained_on=5),
    "no versions": lambda record: record.update(versions=None),
    "options as a number": lambda record: record["method"].update(options=5),
    "a member without a hash": lambda record: record["members"][0].update(sha256=None),
    "a member of one class": lambda record: record["members"][0].update(class_order=[0]),
    "a member of one class over and over": lambda record: record["members"][0].update(class_order=[0, 0, 0]),
    "a mean as text": lambda record: record["members"][0].update(
        preprocessing={"size": [8, 8], "mean": ["a"], "std": [0.5], **PLAIN}
    ),
    "no interpolation": lambda record: record["members"][0].update(
        preprocessing={"size": [8, 8], "mean": [0.5], "std": [0.5], **PLAIN, "interpolation": 5}
    ),
}


def test_a_config_that_no_training_writes_is_called_damaged(run: Run) -> None:
    whole = (run.folder / "config.json").read_bytes()
    for nonsense in NONSENSE.values():
        (run.folder / "config.json").write_bytes(whole)
        edited(run, nonsense)
        with pytest.raises(EdistillError, match=r"config\.json is damaged"):
            Run.open(run.folder)


def test_weights_of_any_scale_pool_alike() -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0]) / 10
    for scale in (1e-300, 1.0, 4e307):
        found = configured(weights=tuple(scale * w for w in (1.0, 2.0, 3.0, 4.0))).architecture.pooling()
        assert found is not None
        assert_close(found, wanted)


def test_a_config_of_the_wrong_types_is_called_damaged(run: Run) -> None:
    edited(run, lambda record: record["input"].update(preprocessing="squash"))
    with pytest.raises(EdistillError, match=r"config\.json is damaged \(ValueError: preprocessing is 'squash'"):
        Run.open(run.folder)


class Tied(nn.Module):
    """Two layers of one weight, and a buffer that is a view of it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("row", self.first.weight.detach()[0])

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.second(self.first(x).relu()) + self.row
        return features


def test_tied_weights_survive_saving_and_exporting(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = configured(kwargs={})
    student = config.architecture.build(Tied).eval()
    x = torch.randn(3, *SHAPE)
    wanted = student(x)
    back = load_student(Run.save(tmp_path / "run", config, student).folder, body=Tied)
    assert torch.equal(back(x), wanted)
    assert isinstance(back.body, Tied)
    assert back.body.first.weight is back.body.second.weight
    path = export_safetensors(student, config, tmp_path / "out" / "model.safetensors")
    fresh = config.architecture.build(Tied).eval()
    assert not torch.equal(fresh(x), wanted)
    fresh.load_state_dict(load_file(path))
    assert torch.equal(fresh(x), wanted)


def test_tensors_in_another_memory_layout_are_saved_in_order(tmp_path: Path) -> None:
    def body() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(memory_format=torch.channels_last)

    config = configured(kwargs={}, shape=(3, 4, 4), kind="tensor")
    student = config.architecture.build(body).eval()
    x = torch.randn(2, 3, 4, 4)
    back = load_student(Run.save(tmp_path / "run", config, student).folder, body=body)
    assert_close(back(x), student(x))


def test_weights_come_last_so_that_their_presence_finishes_a_run(tmp_path: Path, monkeypatch: Any) -> None:
    order: list[str] = []
    monkeypatch.setattr("ensemble_distill.runtime.files.crash_point", lambda step, path: order.append(path.name))
    Run.save(tmp_path / "run", configured(), configured().architecture.build(make_body))
    assert list(dict.fromkeys(order)) == ["config.json", "student.safetensors"]


# --- config.json ------------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=8)
sizes = st.integers(1, 500)
json_values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e6, 1e6) | names
preprocessings = st.builds(
    Preprocessing,
    size=st.tuples(sizes, sizes),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 1)] * 3),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    crop_pct=st.floats(0.1, 1),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
CLASSES = st.lists(names, min_size=4, max_size=4, unique=True).map(tuple).map(Classification)
ANY_FAMILY = {"task": CLASSES, "output": st.just("logits"), "orders": st.none() | st.permutations(range(4)).map(tuple)}
ANY_FAMILY |= {"family": st.just(CategoricalFamily()), "heads": sizes}
NUMBERS = {**ANY_FAMILY, "task": st.just(Regression()), "family": st.just(GaussianFamily(22.5, 9.25))}
NUMBERS |= {"output": st.just("mean"), "orders": st.none()}
OF_ONE_HEAD = {**ANY_FAMILY, "family": st.just(DirichletFamily(1.0)), "heads": st.just(1)}


def some_config(output: Any, orders: Any, **of: Any) -> Any:
    """Configurations of a task, whose members return `output` in `orders`."""
    return st.builds(
        student_config,
        method=names,
        options=st.dictionaries(names.filter(lambda key: key != "name"), json_values, max_size=3),
        model=names,
        kwargs=st.dictionaries(names, json_values | st.lists(sizes), max_size=3),
        hidden=st.lists(sizes, max_size=3).map(tuple),
        form=st.sampled_from(["heads", "rank-one"]),
        kind=st.sampled_from(["pixels", "tensor", "features"]),
        shape=st.lists(sizes, min_size=1, max_size=3).map(tuple),
        preprocessing=st.none() | preprocessings,
        members=st.lists(
            st.builds(
                Member,
                name=names.filter(is_plain),
                sha256=names,
                output=output,
                class_order=orders,
                preprocessing=st.none() | preprocessings,
                model=names,
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
        average=st.sampled_from(["probabilities", "logits"]),
        bodies=st.integers(1, 9),
        source=st.just("") | names,
        trained_on=st.dictionaries(names, names, max_size=2),
        versions=st.dictionaries(names, names, max_size=2),
        **of,
    )


@pytest.mark.thorough
@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=st.one_of(*(some_config(**of) for of in (ANY_FAMILY, NUMBERS, OF_ONE_HEAD))), weighted=st.booleans())
def test_a_config_is_the_same_after_json(config: StudentConfig, weighted: bool) -> None:
    config = changed(
        config, weights=tuple(0.5 + m for m in range(len(config.provenance.members))) if weighted else None
    )
    text = json.dumps(config.to_json(), allow_nan=False)
    assert StudentConfig.from_json(json.loads(text)) == config


def test_config_json_says_what_others_read_in_it() -> None:
    record = configured(preprocessing=Preprocessing((8, 8), (0.5,), (0.5,))).to_json()
    assert record["method"] == {"name": "hydra", "options": {"temperature": 2.0}}
    assert record["student"] == {
        "model": "../../model.py:make_body",
        "kwargs": {"width": 5},
        "bodies": 1,
        "hidden": [3],
        "heads": 4,
        "form": "heads",
        "family": {"name": "categorical"},
    }
    assert record["classes"] == ["cat", "dog", "Übel"]
    assert [member["sha256"] for member in record["members"]] == [f"{m:064x}" for m in range(4)]
    assert record["input"]["preprocessing"]["size"] == (8, 8)
    assert record["edistill"]


# --- how the heads pool -----------------------------------------------------------------------------------


def test_heads_pool_as_the_members_do(tmp_path: Path) -> None:
    weights = (2.0, 1.0, 1.0, 4.0)
    config = configured(weights=weights)
    run = Run.save(tmp_path / "run", config, config.architecture.build(make_body).eval())
    student = load_student(run.folder, body=make_body)
    raw = student(torch.randn(5, *SHAPE))
    share = torch.tensor(weights) / 8
    probabilities = (raw.softmax(-1) * share[:, None]).sum(1)
    assert_close(student.predictive(raw).summary().mean, probabilities)
    config = changed(config, average="logits")
    student = load_student(Run.save(tmp_path / "run", config, student).folder, body=make_body)
    assert_close(student.predictive(raw).summary().mean, (raw.log_softmax(-1) * share[:, None]).sum(1).softmax(-1))


def test_pooling_weights_are_those_of_one_head_per_member() -> None:
    config = configured(weights=(2.0, 1.0, 1.0, 4.0))
    pooling = config.architecture.pooling()
    assert pooling is not None
    assert_close(pooling, torch.tensor([0.25, 0.125, 0.125, 0.5]))
    assert configured().architecture.pooling() is None


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_that_are_not_the_members_pool_equally(heads: int) -> None:
    config = configured(weights=(2.0, 1.0, 1.0, 4.0), heads=heads)
    student = config.architecture.build(make_body).eval()
    raw = student(torch.randn(5, *SHAPE))
    assert_close(student.predictive(raw).summary().mean, raw.softmax(-1).mean(1))


def test_weights_outlive_the_step_from_one_head_to_many() -> None:
    """Training starts from one head and copies it; what it reports on the way pools as the finished run will."""
    config = configured(weights=(2.0, 1.0, 1.0, 4.0))
    grown = config.architecture.around(make_body(5), 5).with_heads(4).eval()
    raw = torch.randn(5, 4, 3)
    built = config.architecture.build(make_body)
    assert_close(grown.predictive(raw).pooled().logits, built.predictive(raw).pooled().logits)
    assert not torch.allclose(
        grown.predictive(raw).pooled().logits,
        configured().architecture.build(make_body).predictive(raw).pooled().logits,
    )
