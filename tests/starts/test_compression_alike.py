"""Networks that are compressed together: the same ranks, factors of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.starts.compress import Piece, compress
from ensemble_distill.starts.ranks import Budget

CPU = torch.device("cpu")


def budget(share: float) -> Budget:
    return Budget(share, "student.heads.compress", "last stage")


def test_networks_that_are_to_be_alike_have_one_rank_and_factors_of_their_own() -> None:
    """Each loses of its own output, on its own inputs, what Eckart and Young say of the rank that they share."""
    torch.manual_seed(0)
    rows, pieces, wanted = torch.randn(400, 12), [], []
    for index in range(3):
        before, layer = nn.Linear(12, 30), nn.Linear(30, 20)
        layer.weight.data *= torch.logspace(0, -index, 20).unsqueeze(1)  # more and less of what a channel brings
        pieces.append(Piece(f"member-{index}", nn.Sequential(layer), before))
        with torch.no_grad():
            wanted.append(layer(before(rows)))
    done: list[int] = []
    found = compress(pieces, budget(0.5), list(rows.split(100)), [rows], CPU, done.append)
    assert sum(done) == 3
    (rank,) = {one.ranks["0"] for one in found}
    assert rank == (310 - 20) // 50
    for one, piece, whole in zip(found, pieces, wanted, strict=True):
        assert piece.before is not None
        with torch.no_grad():
            lost = (piece.network(piece.before(rows)) - whole).square().sum().item()
        spectrum = torch.linalg.svdvals((whole - whole.mean(0)).double()).square()
        assert_close(lost, spectrum[rank:].sum().item(), rtol=2e-3, atol=0)
        assert one.kept == pytest.approx(1 - lost / spectrum.sum().item(), abs=1e-4)


def of_rank(rank: int, size: int = 24) -> nn.Linear:
    """A layer whose output varies in so many directions, equally where its inputs do."""
    layer = nn.Linear(size, size)
    layer.weight.data = torch.linalg.qr(torch.randn(size, size)).Q * (torch.arange(size) < rank)
    return layer


@pytest.mark.parametrize("ranks", [((3, 8), (8, 3)), ((2, 2), (2, 9)), ((9, 2), (2, 2))])
def test_ranks_are_those_that_serve_all_on_average(ranks: tuple[tuple[int, int], ...]) -> None:
    """Of all pairs of ranks that are as dear, the chosen one keeps most of both layers of both networks."""
    torch.manual_seed(0)
    pieces = [Piece(f"member-{i}", nn.Sequential(*map(of_rank, of))) for i, of in enumerate(ranks)]
    rows = torch.randn(4000, 24)
    spectra = []
    for piece in pieces:
        with torch.no_grad():
            outputs = [piece.network[0](rows), piece.network(rows)]  # type: ignore[index]
        variances = [torch.linalg.svdvals((y - y.mean(0)).double()).square() for y in outputs]
        spectra.append([v / v.sum() for v in variances])
    share = (2 * 24 + 12 * 48) / (2 * 24 * 25)  # 12 channels for the two layers, of which 11 are less than a whole one

    def kept(pair: tuple[int, int]) -> float:
        return sum(float(of[:rank].sum()) for both in spectra for of, rank in zip(both, pair, strict=True))

    found = compress(pieces, budget(share), list(rows.split(500)), [rows], CPU, lambda layers: None)
    chosen = found[0].ranks["0"], found[0].ranks["1"]
    best = max(((rank, 12 - rank) for rank in range(1, 12)), key=kept)
    assert kept(chosen) == pytest.approx(kept(best), rel=0.01)
    assert [one.ranks for one in found] == [found[0].ranks] * 2


class Skipping(nn.Module):
    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 30), nn.Linear(30, 30), nn.Linear(30, 20)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y: Tensor = self.last(x if self.skips else self.second(x).relu())
        return y


def test_what_only_some_of_them_can_have_thinner_stays_whole_in_all() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 12)

    def both() -> list[Piece]:
        return [Piece(f"member-{i}", Skipping(skips=i == 1)) for i in range(2)]

    found = compress(both(), budget(0.7), [rows], [rows], CPU, lambda layers: None)
    assert [one.ranks.keys() for one in found] == [{"first", "last"}] * 2
    told = r"member-0's last stage keeps 0\.\d+ of .*member-1's layer second cannot be, though member-0's can"
    with pytest.raises(EdistillError, match=told):
        compress(both(), budget(0.1), [rows], [rows], CPU, lambda layers: None)


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.neg_()


def test_rows_stay_as_they_are_where_a_network_works_in_place() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 12)
    before = rows.clone()
    pieces = [Piece(f"member-{i}", nn.Sequential(nn.Linear(12, 12)), Negated()) for i in range(2)]
    compress(pieces, budget(0.6), [rows], [rows], CPU, lambda layers: None)
    assert torch.equal(rows, before)
