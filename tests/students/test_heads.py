"""Batched heads against the Python list they replace, their copies, and their start."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.students.heads import BatchedLinear, Heads

FEATURES, CLASSES, ROWS = 7, 5, 6


def listed(heads: Heads) -> nn.ModuleList:
    """The same heads as a list of ordinary MLPs."""
    layers = [layer for layer in heads.layers if isinstance(layer, BatchedLinear)]
    mlps = nn.ModuleList()
    for m in range(heads.count):
        mlp = nn.Sequential()
        for index, layer in enumerate(layers):
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            with torch.no_grad():
                linear.weight.copy_(layer.weight[m].T)
                linear.bias.copy_(layer.bias[m])
            if index:
                mlp.append(nn.ReLU())
            mlp.append(linear)
        mlps.append(mlp)
    return mlps


def test_heads_are_the_list_of_mlps() -> None:
    for hidden in [(), (8,), (9, 3)]:
        for count in [1, 4]:
            torch.manual_seed(0)
            heads = Heads(count, FEATURES, hidden, CLASSES)
            mlps = listed(heads)
            x = torch.randn(ROWS, FEATURES)
            ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            found, wanted = heads(ours), torch.stack([mlp(theirs) for mlp in mlps], dim=1)
            assert found.shape == (ROWS, count, CLASSES)
            assert heads.count == count
            assert_close(found, wanted)
            scale = torch.randn_like(found)
            (found * scale).sum().backward()
            (wanted * scale).sum().backward()  # type: ignore[no-untyped-call]
            assert_close(ours.grad, theirs.grad)
            for index, layer in enumerate(heads.layers):
                assert isinstance(layer, BatchedLinear)
                for m, mlp in enumerate(mlps):
                    linear = [module for module in mlp.modules() if isinstance(module, nn.Linear)][index]
                    assert layer.weight.grad is not None
                    assert layer.bias.grad is not None
                    assert linear.weight.grad is not None
                    assert_close(layer.weight.grad[m].T, linear.weight.grad)
                    assert_close(layer.bias.grad[m], linear.bias.grad)


def test_a_batched_layer_takes_one_input_for_all_or_one_each() -> None:
    torch.manual_seed(0)
    layer = BatchedLinear(3, FEATURES, CLASSES)
    x = torch.randn(ROWS, FEATURES)
    assert_close(layer(x), layer(x.unsqueeze(1).expand(-1, 3, -1)))
    each = torch.randn(ROWS, 3, FEATURES)
    for m in range(3):
        assert_close(layer(each)[:, m], each[:, m] @ layer.weight[m] + layer.bias[m])


def test_heads_have_the_parameters_of_the_papers_table() -> None:
    heads = Heads(50, 100, (100, 100), 10)  # the paper's [100, 100, 10]
    assert sum(p.numel() for p in heads.parameters()) == 50 * (2 * (100 * 100 + 100) + 100 * 10 + 10)
    assert len(list(heads.parameters())) == 6


def test_layers_start_as_torchs_linear_does() -> None:
    torch.manual_seed(0)
    for inputs in (4, 100):
        layer, linear = BatchedLinear(200, inputs, 50), nn.Linear(inputs, 10_000)
        bound = 1 / math.sqrt(inputs)
        for ours, theirs in ((layer.weight, linear.weight), (layer.bias, linear.bias)):
            assert ours.abs().max() <= bound
            assert_close(ours.abs().max(), theirs.abs().max(), rtol=1e-2, atol=0)
            assert_close(ours.std(), torch.tensor(bound / math.sqrt(3)), rtol=2e-2, atol=0)
            assert abs(ours.mean()) < bound / 20


def test_heads_start_apart() -> None:
    torch.manual_seed(0)
    weight = next(Heads(3, FEATURES, (4,), CLASSES).parameters())
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[1], weight[2])


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_copies_equal_the_first_head_and_share_nothing(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    heads = Heads(2, FEATURES, hidden, CLASSES)
    copies = heads.copied(3)
    x = torch.randn(ROWS, FEATURES)
    assert copies.count == 3
    assert_close(copies(x), heads(x)[:, :1].expand(-1, 3, -1))
    before = copies(x)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(1)
    assert torch.equal(copies(x), before)
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in copies.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_copies_keep_every_bit_of_the_first_heads_numbers(dtype: torch.dtype) -> None:
    heads = Heads(1, FEATURES, (8,), CLASSES).to(dtype)
    for mine, theirs in zip(heads.parameters(), heads.copied(2).parameters(), strict=True):
        assert theirs.dtype == dtype
        assert torch.equal(theirs, mine.expand_as(theirs))


def test_copies_part_when_their_targets_differ_and_only_then() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, FEATURES)

    def trained(targets: Tensor) -> Heads:
        heads = Heads(1, FEATURES, (16,), CLASSES).copied(3)
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.5)
        for _ in range(50):
            loss = (targets * (targets.log() - heads(x).log_softmax(-1))).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return heads

    same = torch.randn(32, 1, CLASSES).softmax(-1)
    together = trained(same.expand(-1, 3, -1))(x)
    assert_close(together, together[:, :1].expand(-1, 3, -1), rtol=0, atol=1e-6)

    own = torch.randn(32, 3, CLASSES).softmax(-1)
    apart = trained(own)(x).detach().softmax(-1)
    for m in range(3):  # each head is nearest to its own target
        distances = [(own[:, n] * (own[:, n] / apart[:, m]).log()).sum(-1).mean() for n in range(3)]
        assert min(range(3), key=lambda n: float(distances[n])) == m
