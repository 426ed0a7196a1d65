"""Compressed networks, against what linear algebra says they can be at best."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.starts.compress import Compression, Piece, compress
from ensemble_distill.starts.layers_seen import look
from ensemble_distill.starts.ranks import Budget
from ensemble_distill.students.canonical import decompose, product
from ensemble_distill.students.factored import factor, factors_of, is_factorable

pytestmark = pytest.mark.thorough
CPU = torch.device("cpu")


def budget(share: float) -> Budget:
    return Budget(share, "student.compress", "body")


def alone(
    body: nn.Module,
    share: float,
    inputs: list[Tensor],
    held_out: list[Tensor],
    advance: Callable[[int], None] = lambda layers: None,
) -> Compression:
    (found,) = compress([Piece("member-7", body.eval())], budget(share), inputs, held_out, CPU, advance)
    return found


def compressed(body: nn.Module, share: float, inputs: list[Tensor]) -> dict[str, int]:
    done: list[int] = []
    parameters = count(body)
    layers = sum(is_factorable(module) for module in body.modules())
    with torch.no_grad():
        wanted = torch.cat([body.eval()(x.clone()) for x in inputs])
    found = alone(body, share, inputs, inputs, done.append)
    assert sum(done) == layers
    with torch.no_grad():
        given = torch.cat([body(x.clone()) for x in inputs])
    if wanted.var(0).mean() > 1e-9:
        kept = r2_score(wanted.flatten(1).numpy(), given.flatten(1).numpy(), multioutput="variance_weighted")
        assert found.kept == pytest.approx(kept, abs=1e-4)
    assert found.share == pytest.approx(count(body) / parameters)
    return dict(found.ranks)


def count(body: nn.Module) -> int:
    return sum(p.numel() for p in body.parameters())


def convolutional(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 20)),
    )


def pictures(rows: int = 60, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).split(20))


def test_a_linear_layer_loses_what_eckart_and_young_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 30) @ torch.randn(30, 30)
    layer = nn.Linear(30, 20)
    body = nn.Sequential(layer)
    wanted = layer(x).detach()
    ranks = compressed(body, 0.5, [x])
    rank = ranks["0"]
    assert rank == (310 - 20) // 50  # 620 parameters, of which half are 50 a rank and the bias
    lost = (body(x) - wanted).square().sum().item()
    spectrum = torch.linalg.svdvals((wanted - wanted.mean(0)).double()).square()
    assert_close(lost, spectrum[rank:].sum().item(), rtol=1e-3, atol=0)


def test_a_layer_that_is_a_product_is_found_again() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, 2, 1)
    thin = factors_of(layer, 6)
    factors = (getattr(thin, name).weight.detach().flatten(1) for name in ("expand", "reduce", "core"))
    expand, reduce, core = factors
    layer.weight.data = product(expand, reduce.T, core.T).view_as(layer.weight)
    inputs = list(torch.randn(200, 16, 8, 8).split(50))
    body = nn.Sequential(layer)
    wanted = body(inputs[0]).detach()
    (rank,) = compressed(body, 0.3, inputs).values()
    assert rank >= 6
    assert_close(body(inputs[0]), wanted, rtol=0, atol=1e-2 * float(wanted.std()))


def test_a_kernel_loses_what_its_factors_lose_of_it_where_inputs_are_alike() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 16, 3)  # inputs of variance 1 that nothing binds: their covariance is known
    inputs = list(torch.randn(4000, 12, 3, 3).split(500))
    body = nn.Sequential(layer)
    wanted = torch.cat([layer(x) for x in inputs]).detach()
    ranks = compressed(body, 0.5, inputs)
    weight = layer.weight.detach().double().flatten(2).permute(1, 2, 0)
    size = weight.square().sum()
    least = (weight - product(*decompose(weight, ranks["0"], 2000))).square().sum() / size
    given = torch.cat([body(x) for x in inputs]).detach()
    share = float((given - wanted).square().mean() / wanted.var((0, 2, 3)).mean())
    assert 0.9 * least < share < 1.25 * least


def test_a_larger_share_is_kept_within_and_loses_less() -> None:
    x, lost = pictures(200), []
    for share in (0.3, 0.5, 0.8):
        body = convolutional()
        body.eval()
        wanted = torch.cat([body(batch) for batch in x]).detach()
        whole = count(body)
        compressed(body, share, x)
        assert 0.9 * share * whole < count(body) <= share * whole
        lost.append(((torch.cat([body(batch) for batch in x]) - wanted).square().mean() / wanted.var(0).mean()).item())
    assert 1 > lost[0] > lost[1] > lost[2]


def test_convolutions_have_whole_blocks_of_channels_between_their_factors() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.Flatten(), nn.Linear(768, 40))
    ranks = compressed(body, 0.6, pictures(90))
    assert ranks.keys() >= {"2", "4"}
    assert ranks["2"] % 8 == 0
    assert ranks["4"] % 8 != 0  # a linear layer's are as many as can be paid for


def test_the_last_layer_makes_up_for_what_the_others_lost_of_the_mean() -> None:
    x, body = pictures(200), convolutional().eval()
    wanted = torch.cat([body(batch) for batch in x]).detach()
    assert "9" in compressed(body, 0.3, x)  # solved from what the thin layers before it give
    found = torch.cat([body(batch) for batch in x]).detach()
    assert (found - wanted).square().mean() > 0.01 * wanted.var(0).mean()
    assert_close(found.mean(0), wanted.mean(0), rtol=0, atol=1e-3 * float(wanted.std(0).mean()))


class Strange(nn.Module):
    """Runs a layer twice, one by keyword, one on no rows and one on some, ties two, reads the weight of one, has one
    where nobody looks, and cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.keyword = nn.Linear(12, 12), nn.Linear(12, 12)
        self.tied, self.other = nn.Linear(12, 12), nn.Linear(12, 12)
        self.other.weight = self.tied.weight
        self.unused = nn.Linear(12, 12)
        self.read, self.behind = nn.Linear(12, 12), nn.Linear(12, 12)
        self.list = [self.behind]
        self.context, self.gate, self.some = nn.Parameter(torch.randn(12)), nn.Linear(12, 12), nn.Linear(12, 12)
        self.lock = threading.Lock()
        self.plain = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x = self.twice(self.twice(x).relu()).relu()
        x = self.keyword(input=x).relu()
        x = self.list[0](self.read(x.to(self.read.weight.dtype)))
        x = x + self.gate(self.context)
        x[x[:, 0] > 0] += self.some(x[x[:, 0] > 0])
        plain: Tensor = self.plain(self.other(self.tied(x).relu()).relu())
        return plain


def test_layers_that_cannot_be_factors_stay_whole() -> None:
    torch.manual_seed(0)
    body, x = Strange(), torch.randn(50, 12)
    kept = x.clone()
    with torch.no_grad():
        assert look(body.eval(), [x]).keys() == {"plain"}
    assert compressed(body, 0.98, [x]).keys() == {"plain"}
    assert isinstance(body.twice, nn.Linear)
    assert_close(x, kept)
    body(x)


def test_transformer_layers_that_are_looked_into_stay_whole() -> None:
    body = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(80, 20))
    assert compressed(body, 0.75, [torch.randn(40, 5, 16)]).keys() == {"2"}  # in eval mode it reads their weights
    for mode in (True, False):
        with torch.no_grad():
            assert body.train(mode)(torch.randn(2, 5, 16)).isfinite().all()


@pytest.mark.parametrize(("outputs", "share", "wanted"), [(640, 0.9, 7), (256, 0.5, 3)])
def test_wide_layers_that_read_little_have_all_the_ranks_that_can_be_paid_for(
    outputs: int, share: float, wanted: int
) -> None:
    body = nn.Sequential(nn.Conv2d(1, outputs, 3, 1, 1), nn.Flatten())
    assert compressed(body, share, [torch.randn(50, 1, 6, 6)])["0"] == wanted


def test_what_is_kept_is_measured_on_rows_that_nothing_was_solved_from() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 60)).eval()
    fitted, fresh = torch.randn(150, 40), torch.randn(5000, 40)
    wanted = body(fresh).detach()
    kept = alone(body, 0.5, [fitted], list(fresh.split(1000))).kept
    assert kept == pytest.approx(r2_score(wanted, body(fresh).detach(), multioutput="variance_weighted"), abs=1e-5)


def test_frozen_layers_have_frozen_factors() -> None:
    body = nn.Sequential(nn.Linear(12, 30), nn.Linear(30, 12))
    body[0].requires_grad_(False)
    assert compressed(body, 0.7, [torch.randn(90, 12)]).keys() == {"0", "1"}
    assert {name[0]: p.requires_grad for name, p in body.named_parameters()} == {"0": False, "1": True}


def test_padding_by_name_is_padding_by_number() -> None:
    by_name, by_number = convolutional(), convolutional()
    by_name[0].padding = "same"
    ways = [compressed(body, 0.5, pictures()) for body in (by_name, by_number)]
    assert ways[0] == ways[1]
    for x in pictures():
        assert_close(by_name(x), by_number(x))


def test_a_body_without_parameters_is_refused() -> None:
    with pytest.raises(EdistillError, match=r"member-7's body has no parameters\. Leave it out"):
        alone(nn.Flatten(), 0.5, pictures(), pictures())


def test_too_small_a_share_is_refused_with_the_least_there_is() -> None:
    with pytest.raises(EdistillError, match=r"compress is 0.3.*member-7's body keeps 0\.\d+ of its.*above 0\.\d+, or"):
        compressed(Strange(), 0.3, [torch.randn(50, 12)])


@pytest.mark.parametrize("body", [nn.Linear(12, 12), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())])
def test_a_body_without_a_layer_to_make_smaller_is_refused(body: nn.Module) -> None:
    x = torch.randn(9, 12) if isinstance(body, nn.Linear) else torch.randn(9, 4, 5, 5)
    with pytest.raises(EdistillError, match="none of member-7's layers can be made much smaller"):
        compressed(body, 0.5, [x])


@pytest.mark.parametrize("value", [0.0, 1000.0, -0.3])
def test_what_does_not_vary_gets_no_weight(value: float) -> None:
    x, varied = torch.full((80, 6, 8, 8), value), torch.randn(80, 6, 8, 8)
    varied[:, 3:] = value
    for rows in (x, varied):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 8))
        wanted = body.eval()(rows).detach()
        assert compressed(body, 0.6, [rows])
        assert max(float(p.detach().abs().max()) for p in body.parameters()) < 1e4
        assert (body(rows).detach() - wanted).square().mean() < 0.3 * wanted.square().mean()


@pytest.mark.parametrize("size", [1, 3])
def test_layers_that_had_nothing_to_read_can_still_learn(size: int) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, size), nn.AdaptiveAvgPool2d(1)).eval()
    body[0].bias.data.fill_(-99)
    x = torch.randn(90, 2, 6, 6)
    wanted = body(x).detach()
    assert compressed(body, 0.8, [x]).keys() >= {"2"}
    assert_close(body(x), wanted)
    first = body[0].expand.bias if isinstance(body[0], nn.Sequential) else body[0].bias
    first.data.fill_(1.0)
    (body(x) - 1).square().sum().backward()
    assert body[2].expand.weight.grad.any()  # and with that, the rest follows


def test_what_cannot_be_measured_is_not_called_kept() -> None:
    found = alone(nn.Sequential(nn.Linear(20, 30)), 0.3, [torch.randn(50, 20)], [torch.randn(1, 20)])
    assert math.isnan(found.kept)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EdistillError, match="member-7's features are not finite"):
        compressed(nn.Sequential(nn.Linear(12, 12), Log()), 0.5, [torch.randn(30, 12)])


class Exit(nn.Module):
    """Leaves early where its first layer gives little: compressed, that is so of other rows."""

    least = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x).relu()
        return self.second(first) if first.mean().item() > self.least else first


def test_layers_that_no_longer_run_are_told_of() -> None:
    torch.manual_seed(0)
    body = Exit().eval()
    x = [torch.randn(1, 20) for _ in range(60)]
    body.least = min(body.first(row).relu().mean().item() for row in x) - 1e-6
    with pytest.raises(EdistillError, match=r"member-7's layer second runs on other rows.*Leave it out"):
        compressed(body, 0.4, x)


class OneDead(nn.Module):
    """All that comes through is of one channel: ranks beyond the first bring nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 40, 3, 1, 1, bias=False), nn.Conv2d(40, 40, 3, 1, 1)
        self.first.weight.data[1:] = self.first.weight.data[:1]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x)).flatten(1)
        return found


def test_ranks_that_bring_nothing_are_not_paid_for() -> None:
    torch.manual_seed(0)
    body, x = OneDead().eval(), torch.randn(60, 1, 6, 6)
    wanted = body(x).detach()
    # what nine neighbors say of 40 channels is rank 9 at most
    assert compressed(body, 0.9, [x])["second"] <= 9
    assert count(body) < 0.2 * count(OneDead())
    assert_close(body(x), wanted, rtol=0, atol=1e-2 * float(wanted.std()))


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_whatever_ranks_are_chosen_can_be_solved_for(
    layers: list[tuple[int, int, int]], share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    widths = [2, *(width for width, _, _ in layers)]
    body = nn.Sequential(
        *(
            nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2))
            for (inputs, outputs), (_, height, width) in zip(itertools.pairwise(widths), layers, strict=True)
        ),
        nn.Flatten(),
    )
    whole, x = count(body), torch.randn(30, 2, 4, 4)
    least = 0
    for (inputs, outputs), (_, height, width) in zip(itertools.pairwise(widths), layers, strict=True):
        kernel = height * width
        factors = inputs + (kernel if kernel > 1 else 0) + outputs + outputs  # of rank 1, with a bias
        least += min(inputs * kernel * outputs + outputs, factors)
    if least > share * whole:
        with pytest.raises(EdistillError, match=rf"^student\.compress is {share:g}, and "):
            compressed(body, share, [x])
        return
    ranks = compressed(body, share, [x])
    assert count(body) <= share * whole
    assert torch.isfinite(body(x)).all()
    fresh = nn.Sequential(*(nn.Conv2d(layer_in, out, 1) for layer_in, out in itertools.pairwise(widths)), nn.Flatten())
    for index, (_, height, width) in enumerate(layers):
        fresh[index] = nn.Conv2d(widths[index], widths[index + 1], (height, width))
    factor(fresh, ranks)  # as a run is loaded
    assert fresh.state_dict().keys() == body.state_dict().keys()
