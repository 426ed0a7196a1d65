"""Rank-one members against plain layers with the weights W ∘ (r_m s_mᵀ) written out."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.rank_one import RankOne, RankOneBody, rank_one_body, rank_one_heads
from ensemble_distill.students.student import Student

MEMBERS, ROWS, CLASSES = 4, 3, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def converted(body: nn.Module, spread: float = 0.5) -> RankOneBody:
    """A copy of the body as members, whose biases have come apart as well."""
    found = rank_one_body(copy.deepcopy(body), MEMBERS, spread).eval()
    for layer in found.modules():
        if isinstance(layer, RankOne) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=spread)
    return found


def layers_of(body: nn.Module) -> list[RankOne]:
    return [module for module in body.modules() if isinstance(module, RankOne)]


@torch.no_grad()
def written_out(plain: Any, layer: RankOne, m: int) -> None:
    """Give a linear or convolutional layer the weights and bias of member m."""
    weight, r, s = plain.weight, layer.r[m], layer.s[m]
    outputs, seen, *kernel = weight.shape
    group = outputs // getattr(plain, "groups", 1)
    for o in range(outputs):
        first = o // group * seen  # of the input channels that its group sees
        weight[o] *= r[o] * s[first : first + seen].view(-1, *[1] * len(kernel))
    if plain.bias is not None:
        assert layer.bias is not None
        plain.bias.copy_(layer.bias[m])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))


def convolutional() -> nn.Sequential:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 7),
    )
    body.train()(torch.randn(16, 2, 6, 6) * 3 + 1)  # running statistics away from their start
    return body.eval()


def pyramid() -> nn.Module:
    body: nn.Module = timm.create_model("test_resnet", num_classes=0, zero_init_last=False).eval()
    return body


def transformer() -> nn.Module:
    body: nn.Module = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    return body


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "conv": (convolutional, (2, 6, 6)),
    "test_resnet": (pyramid, (3, 32, 32)),
    "test_vit": (transformer, (3, 32, 32)),
}
bodies = pytest.mark.parametrize(("make", "shape"), BODIES.values(), ids=BODIES)


def student_of(body: nn.Module, shape: tuple[int, ...], hidden: tuple[int, ...] = (6,), heads: int = 2) -> Student:
    with torch.no_grad():
        features = body(torch.zeros(2, *shape)).shape[1]
    return Student(body, Heads(heads, features, hidden, CLASSES), CategoricalFamily()).eval()


# --- member by member -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda bias: nn.Linear(6, 4, bias), (6,)),
        (lambda bias: nn.Linear(6, 4, bias), (9, 6)),  # tokens
        (lambda bias: nn.Conv1d(6, 4, 3, bias=bias), (6, 9)),
        (lambda bias: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=bias), (6, 7, 7)),
        (lambda bias: nn.Conv2d(6, 4, 3, groups=2, bias=bias), (6, 7, 7)),
        (lambda bias: nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="circular", bias=bias), (6, 7, 7)),
        (lambda bias: nn.Conv3d(6, 4, 2, dilation=2, bias=bias), (6, 4, 4, 4)),
    ],
    ids=["linear", "tokens", "1-D", "2-D", "grouped", "depthwise", "3-D"],
)
def test_a_member_is_the_plain_layer_with_its_weights(layer: Any, shape: tuple[int, ...], bias: bool) -> None:
    plain = layer(bias)
    found = converted(nn.Sequential(plain, nn.Flatten()))
    (shared,) = layers_of(found)
    x = torch.randn(ROWS, *shape)
    each = found(x)
    for m in range(MEMBERS):
        own = copy.deepcopy(plain)
        written_out(own, shared, m)
        assert_close(each[:, m], own(x).flatten(1))
    assert not torch.allclose(each[:, 0], each[:, 1])
    assert sum(p.numel() for p in found.parameters()) == plain.weight.numel() + MEMBERS * (
        shared.s.shape[1] + shared.r.shape[1] * (1 + bias)
    )


def test_a_whole_body_is_its_members_side_by_side() -> None:
    for make, shape in BODIES.values():
        plain = make()
        found = converted(plain, spread=0.2)
        x = torch.randn(ROWS, *shape)
        each = found(x)
        for m in range(MEMBERS):
            own = copy.deepcopy(plain)
            layers = {name: layer for name, layer in found.inner.named_modules() if isinstance(layer, RankOne)}
            assert layers
            for name, layer in layers.items():
                written_out(own.get_submodule(name), layer, m)
            wanted = own(x)
            assert_close(each[:, m], wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))
        assert each.shape == (ROWS, MEMBERS, plain(x).shape[1])


def test_a_body_that_is_one_layer_is_converted_itself() -> None:
    plain = nn.Linear(6, 4)
    found = converted(plain)
    own = copy.deepcopy(plain)
    written_out(own, layers_of(found)[0], 2)
    x = torch.randn(ROWS, 6)
    assert_close(found(x)[:, 2], own(x))


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_a_head_is_its_members_side_by_side(hidden: tuple[int, ...]) -> None:
    heads = Heads(2, 7, hidden, CLASSES)
    found = rank_one_heads(heads, MEMBERS, 0.5)
    each = torch.randn(ROWS, MEMBERS, 7)
    assert found.count == MEMBERS
    for x, by_member in ((each, each), (each[:, 0], each[:, :1].expand(-1, MEMBERS, -1))):
        for m in range(MEMBERS):
            y = by_member[:, m]
            for index, layer in enumerate(found.layers):
                weight = layer.weight * torch.outer(layer.s[m], layer.r[m])  # type: ignore[operator, index]
                y = (y.relu() if index else y) @ weight + layer.bias[m]  # type: ignore[index]
            assert_close(found(x)[:, m], y)
    assert_close(found.layers[0].weight, heads.layers[0].weight[0])  # type: ignore[index]


@pytest.mark.thorough
def test_without_spread_all_members_are_the_original() -> None:
    for make, shape in BODIES.values():
        student = student_of(make(), shape)
        x = torch.randn(ROWS, *shape)
        before = student(x)
        members = student.with_rank_one(MEMBERS)
        assert members(x).shape == (ROWS, MEMBERS, CLASSES)
        assert_close(members(x), before[:, :1].expand(-1, MEMBERS, -1), rtol=1e-5, atol=1e-5)
        assert torch.equal(student(x), before)  # the student it was made from has kept its layers
        assert members.heads.count == MEMBERS
        assert not members.training


def test_a_spread_parts_the_members() -> None:
    for make, shape in BODIES.values():
        members = student_of(make(), shape).with_rank_one(MEMBERS, 0.3)
        factors = torch.cat([f.detach().flatten() for layer in layers_of(members) for f in (layer.s, layer.r)])
        assert float(factors.mean()) == pytest.approx(1, abs=0.1)
        assert float(factors.std()) == pytest.approx(0.3, rel=0.2)
        raw = members(torch.randn(ROWS, *shape))
        assert all(not torch.allclose(raw[:, 0], raw[:, m]) for m in range(1, MEMBERS))


# --- training ---------------------------------------------------------------------------------------------------


def test_gradient_reaches_every_factor_of_its_own_member() -> None:
    for make, shape in BODIES.values():
        members = student_of(make(), shape, hidden=()).with_rank_one(MEMBERS, 0.2)
        members(torch.randn(8, *shape))[:, 1].square().sum().backward()
        factors = {name: one for name, one in members.named_parameters() if name.rpartition(".")[2] in ("r", "s")}
        assert factors
        for name, parameter in factors.items():
            assert parameter.grad is not None, name
            assert parameter.grad[1].abs().max() > 0, name
            assert parameter.grad[[0, 2, 3]].abs().max() == 0, name


@pytest.mark.parametrize("body", [mlp, convolutional])
def test_gradients_are_those_of_the_members_written_out(body: Callable[[], nn.Sequential]) -> None:
    plain = body()
    found = converted(plain)
    x = torch.randn(ROWS, *BODIES["mlp" if body is mlp else "conv"][1])
    scale = torch.randn_like(found(x))
    (found(x) * scale).sum().backward()
    first: Any = layers_of(found)[0]
    wanted = torch.zeros_like(first.shared.weight)
    for m in range(MEMBERS):
        own = copy.deepcopy(plain)
        for name, layer in found.inner.named_modules():
            if isinstance(layer, RankOne):
                written_out(own.get_submodule(name), layer, m)
        (own(x) * scale[:, m]).sum().backward()
        plainly: Any = own[0]
        kernel = [1] * (wanted.dim() - 2)
        wanted += plainly.weight.grad * first.r[m].view(-1, 1, *kernel) * first.s[m].view(1, -1, *kernel)
        assert_close(first.bias.grad[m], plainly.bias.grad, rtol=1e-4, atol=1e-4)
    assert_close(first.shared.weight.grad, wanted, rtol=1e-4, atol=1e-4)


def test_factors_are_left_out_of_weight_decay() -> None:
    members = student_of(transformer(), (3, 32, 32), hidden=(6,)).with_rank_one(MEMBERS, 0.1)
    optimizer = create_optimizer_v2(members, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decay[id(p)] for name, p in members.named_parameters()}
    undecayed = {name for name, share in named.items() if share == 0}
    factors = {name for name in named if name.rpartition(".")[2] in ("r", "s")}
    assert len(factors) == 2 * (len(layers_of(members)) + 2)
    assert factors <= undecayed
    assert {"body.inner.pos_embed", "body.inner.cls_token"} <= undecayed  # the body's own wishes
    assert {name for name in named if name.endswith(".bias")} <= undecayed
    decayed = named.keys() - undecayed
    assert {name for name in named if name.endswith("shared.weight")} | {"heads.layers.0.weight"} <= decayed


def test_a_bodys_own_parameters_named_like_factors_are_decayed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.r = nn.Linear(6, 4), nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x) @ self.r
            return y

    student = student_of(Scaled(), (6,), hidden=())
    assert student.no_weight_decay() == set()
    factors = {f"{layer}.{factor}" for layer in ("body.inner.layer", "heads.layers.0") for factor in ("r", "s")}
    assert student.with_rank_one(2).no_weight_decay() == factors


# --- what is left as it is ------------------------------------------------------------------------------------


def test_a_module_at_two_places_stays_one() -> None:
    twice = nn.Linear(6, 6)
    body = nn.Sequential(twice, nn.ReLU(), twice)
    found = converted(body)
    inner: Any = found.inner
    assert inner[0] is inner[2]
    assert len(layers_of(found)) == 1
    x = torch.randn(ROWS, 6)
    for m in range(MEMBERS):
        own = copy.deepcopy(body)
        written_out(own[0], layers_of(found)[0], m)
        assert_close(found(x)[:, m], own(x))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        attended: Tensor = self.attend(y, y, y, need_weights=False)[0].mean(1)
        return attended


def test_torchs_attention_is_left_whole() -> None:
    body = Attending().eval()
    found = converted(body)
    (embed,) = layers_of(found)
    x = torch.randn(ROWS, 5, 6)
    for m in range(MEMBERS):
        own = copy.deepcopy(body)
        written_out(own.embed, embed, m)
        assert_close(found(x)[:, m], own(x))


def test_a_frozen_layer_stays_frozen() -> None:
    body = mlp()
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    trained = {name for name, p in converted(body).named_parameters() if p.requires_grad}
    assert trained == {f"inner.{layer}.{factor}" for layer in (0, 2) for factor in ("s", "r")}


def test_dtype_and_mode_are_kept() -> None:
    student = student_of(mlp(), (6,)).double().train()
    members = student.with_rank_one(MEMBERS, 0.1)
    assert {parameter.dtype for parameter in members.parameters()} == {torch.float64}
    assert all(module.training for module in members.modules())


# --- saving and exporting -------------------------------------------------------------------------------------------


def test_weights_come_back_into_a_student_of_that_form() -> None:
    for make, shape in BODIES.values():
        members = student_of(make(), shape).with_rank_one(MEMBERS, 0.3)
        back = student_of(make(), shape, heads=1).formed("rank-one", MEMBERS)
        back.load_state_dict(members.state_dict())
        x = torch.randn(ROWS, *shape)
        assert torch.equal(back(x), members(x))
        apart = student_of(make(), shape, heads=1).formed("heads", MEMBERS)
        assert apart(x).shape == back(x).shape
        assert apart.state_dict().keys() != back.state_dict().keys()


@pytest.mark.thorough
def test_onnx_keeps_the_members_for_any_batch() -> None:
    members = student_of(convolutional(), (2, 6, 6)).with_rank_one(MEMBERS, 0.3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
        program = torch.onnx.export(
            members,
            (torch.zeros(2, 2, 6, 6),),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch_size")},),
            input_names=["x"],
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for rows in (1, 3):
        x = torch.randn(rows, 2, 6, 6)
        (found,) = session.run(None, {"x": x.numpy()})
        assert_close(torch.tensor(found), members(x).detach(), rtol=1e-4, atol=1e-5)
    members(torch.randn(5, 2, 6, 6))  # and the student is as it was
