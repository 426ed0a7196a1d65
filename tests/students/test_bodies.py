"""Building a student's body, and starting it from a member."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from configs import changed, configured
from small_run import SHAPE, make_body, saved_run
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.starts.bodies import start_from, starting_members
from ensemble_distill.students.bodies import build_body, feature_count


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return saved_run(tmp_path)


# --- bodies -----------------------------------------------------------------------------------------------


def test_a_timm_body_is_the_model_without_its_classifier() -> None:
    for channels in [1, 3]:
        for name in ["test_resnet", "test_vit"]:
            torch.manual_seed(0)
            body = build_body(name, {"drop_rate": 0.0}, (channels, 160, 160))
            features = feature_count(body, (channels, 160, 160), name)
            whole = timm.create_model(name, num_classes=7, in_chans=channels).eval()
            start_from(body, whole, name)
            assert features == whole.num_features
            x = torch.randn(2, channels, 160, 160)
            with torch.no_grad():
                assert_close(body.eval()(x), whole.forward_head(whole.forward_features(x), pre_logits=True))


def test_a_body_in_double_or_half_precision_is_trained_in_float32() -> None:
    for kind in (torch.float64, torch.bfloat16):
        body = build_body("", {}, (3,), lambda kind=kind: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(kind))
        assert {x.dtype for x in body.state_dict().values() if x.is_floating_point()} == {torch.float32}
        assert body(torch.zeros(2, 3)).dtype == torch.float32


def test_a_timm_student_is_saved_and_loaded(tmp_path: Path) -> None:
    config = configured(
        model="test_resnet",
        kwargs={"drop_rate": 0.1},
        shape=(3, 32, 32),
        kind="pixels",
        preprocessing=Preprocessing((32, 32), (0.5,), (0.5,)),
    )
    student = config.architecture.build().eval()
    back = load_student(Run.save(tmp_path / "run", config, student).folder, trust=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(back(x), student(x))


def test_loading_a_pretrained_timm_student_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    create = timm.create_model

    def recording(*args: Any, **kwargs: Any) -> nn.Module:
        asked.append(kwargs)
        module: nn.Module = create(*args, **kwargs)
        return module

    monkeypatch.setattr(timm, "create_model", recording)
    config = configured(model="test_resnet", kwargs={"pretrained": True}, shape=(3, 32, 32))
    untrained = changed(config, kwargs={}).architecture.build()
    load_student(Run.save(tmp_path / "run", config, untrained).folder, trust=True)
    assert len(asked) == 2
    assert not any(kwargs.get("pretrained") for kwargs in asked)


def test_a_factory_of_a_package_is_a_body() -> None:
    assert feature_count(build_body("torch.nn:Flatten", {}, (2, 3)), (2, 3), "flatten") == 6


def test_an_unknown_timm_name_is_answered_with_near_ones() -> None:
    with pytest.raises(EdistillError, match=r"'resnet81', which timm does not know \(near it: .*resnet.*factory"):
        build_body("resnet81", {}, (3, 32, 32))
    with pytest.raises(EdistillError, match=r"'', which timm does not know\. Give a timm name"):
        build_body("", {}, (3, 32, 32))


def test_a_timm_model_needs_images() -> None:
    with pytest.raises(EdistillError, match=r"test_resnet is a timm image model, but .* shape \(6,\).*make_body"):
        build_body("test_resnet", {}, SHAPE)


@pytest.mark.parametrize(("key", "value"), [("num_classes", 10), ("in_chans", 3)])
def test_what_the_student_decides_itself_is_no_argument(key: str, value: int) -> None:
    with pytest.raises(EdistillError, match=rf"student\.kwargs has {key} = {value}.*Leave {key} out"):
        build_body("test_resnet", {key: value}, (3, 32, 32))


def test_arguments_a_timm_model_does_not_take_are_refused() -> None:
    with pytest.raises(EdistillError, match=r"test_resnet cannot be built .*\{'widht': 3\}.*unexpected keyword"):
        build_body("test_resnet", {"widht": 3}, (3, 32, 32))
    with pytest.raises(EdistillError, match=r"test_resnet\.nowhere cannot be built .*[Ii]nvalid pretrained tag"):
        build_body("test_resnet.nowhere", {}, (3, 32, 32))


def test_a_transformer_of_another_input_size_is_refused() -> None:
    with pytest.raises(EdistillError, match=r"test_vit fails on .*\(2, 3, 32, 32\): AssertionError: .*32.*160"):
        build_body("test_vit", {"dynamic_img_size": False}, (3, 32, 32))


class Returns(nn.Module):
    def __init__(self, returned: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        return self.returned(x)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda x: x.view(2, 3, 2), r"\(2, 3, 2\)"),
        (lambda x: x.sum(-1), r"\(2,\)"),
        (lambda x: x.view(1, 12), r"\(1, 12\)"),
        (lambda x: (x, x), "a tuple"),
        (lambda x: {"features": x}, "a dict"),
    ],
)
def test_a_body_that_returns_no_features_is_refused(returned: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(EdistillError, match=f"mine returns {got} for 2 rows; a body returns features"):
        build_body("mine", {}, SHAPE, lambda: Returns(returned))


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, AttributeError, KeyError])
def test_a_body_that_fails_on_the_data_says_on_what(error: type[Exception]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("no such luck.")

    with pytest.raises(EdistillError, match=rf"mine fails on an input of shape \(2, 6\): {error.__name__}") as caught:
        build_body("mine", {}, SHAPE, lambda: Returns(fail))
    assert isinstance(caught.value.__cause__, error)
    assert not str(caught.value).endswith("..")


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(EdistillError, match=r"mine returned list, not a torch\.nn\.Module"):
        build_body("mine", {}, SHAPE, list)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_counting_features_leaves_a_body_as_it_was(training: bool) -> None:
    body = make_body().train(training)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    assert feature_count(body, SHAPE, "mine") == 4
    assert body.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


# --- starting from a member -------------------------------------------------------------------------------


def test_a_body_starts_from_a_member_of_its_architecture() -> None:
    member = make_body().append(nn.Linear(4, 3))
    member.train()(torch.randn(8, *SHAPE))
    body = make_body()
    start_from(body, member, "member-0")
    x = torch.randn(5, *SHAPE)
    assert torch.equal(body.eval()(x), member.eval()[:3](x))
    with torch.no_grad():
        next(member.parameters()).add_(1)
    assert not torch.equal(body(x), member[:3](x))  # a copy: training the student leaves the member alone


def test_bodies_of_all_members_are_in_the_members_order() -> None:
    """Head m imitates member m, whose body is best where its own features are."""
    members = ("member-0", "member-1", "member-2")
    for init in (["member-2", "member-0", "member-1"], ["member-*"], ["member-2", "member-[01]"]):
        assert starting_members(init, members, "teachers") == list(members)
    assert starting_members(["member-2", "member-0"], members, "teachers") == ["member-2", "member-0"]
    assert starting_members("member-1", members, "teachers") == ["member-1"]
    assert starting_members(None, members, "teachers") == []


def test_a_body_does_not_start_from_another_architecture() -> None:
    with pytest.raises(EdistillError, match=r"'member-0', but the body's 0\.weight is \(4, 6\) and .* is \(5, 6\)"):
        start_from(make_body(4), make_body(5), "member-0")
    with pytest.raises(EdistillError, match=r"the body's 1\.weight is \(4,\) and the member's is absent"):
        start_from(make_body(4), nn.Sequential(nn.Linear(6, 4)), "member-0")


def test_a_refused_start_leaves_the_body_alone() -> None:
    body = make_body()
    before = next(body.parameters()).clone()
    with pytest.raises(EdistillError):
        start_from(body, nn.Sequential(nn.Linear(6, 4)), "member-0")
    assert torch.equal(next(body.parameters()), before)
