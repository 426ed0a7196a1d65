"""Compressed networks, against what linear algebra says they can be at best; and students made of such members."""

from __future__ import annotations

import csv
import itertools
import json
import re
import threading
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.compression import compress
from ensemble_distill.students.factored import factor, factors_of, is_factorable
from ensemble_distill.students.run import Run, load_student
from ensemble_distill.training import loop
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.generations import train_chain
from ensemble_distill.workflows.train import train


def compressed(body: nn.Module, share: float, inputs: list[Tensor]) -> dict[str, tuple[int, int]]:
    done: list[int] = []
    parameters = count(body)
    layers = sum(is_factorable(module) for module in body.modules())
    with torch.no_grad():
        wanted = torch.cat([body.eval()(x.clone()) for x in inputs])
    found = compress(body, share, inputs, inputs, "member-7", done.append)
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
    rank = ranks["0"][0]
    assert rank == (310 - 20) // 50  # 620 parameters, of which half are 50 a rank and the bias
    lost = (body(x) - wanted).square().sum().item()
    spectrum = torch.linalg.svdvals((wanted - wanted.mean(0)).double()).square()
    assert_close(lost, spectrum[rank:].sum().item(), rtol=1e-3, atol=0)


def test_a_layer_that_is_a_product_is_found_again() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, 2, 1)
    thin = factors_of(layer, (5, 6))
    layer.weight.data = torch.einsum(
        "or,rshw,si->oihw", thin.expand.weight[..., 0, 0], thin.core.weight, thin.reduce.weight[..., 0, 0]
    )
    inputs = list(torch.randn(200, 16, 8, 8).split(50))
    body = nn.Sequential(layer)
    wanted = body(inputs[0]).detach()
    (ranks,) = compressed(body, 0.3, inputs).values()
    assert ranks[0] >= 5
    assert ranks[1] >= 6
    assert_close(body(inputs[0]), wanted, rtol=0, atol=1e-3 * float(wanted.std()))


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
    body, x = Strange(), torch.randn(50, 12)
    kept = x.clone()
    assert compressed(body, 0.98, [x]).keys() == {"plain"}
    assert isinstance(body.twice, nn.Linear)
    assert_close(x, kept)
    body(x)


def test_transformer_layers_run_on_whatever_stands_in_them() -> None:
    body = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(80, 20))
    assert compressed(body, 0.8, [torch.randn(40, 5, 16)]).keys() == {"2"}
    for mode in (True, False):
        with torch.no_grad():
            assert body.train(mode)(torch.randn(2, 5, 16)).isfinite().all()


@pytest.mark.parametrize(("outputs", "share", "wanted"), [(640, 0.9, 7), (256, 0.5, 3)])
def test_wide_layers_that_read_little_have_all_the_ranks_that_can_be_paid_for(
    outputs: int, share: float, wanted: int
) -> None:
    body = nn.Sequential(nn.Conv2d(1, outputs, 3, 1, 1), nn.Flatten())
    assert compressed(body, share, [torch.randn(50, 1, 6, 6)])["0"] == (1, wanted)


def test_what_is_kept_is_measured_on_rows_that_nothing_was_solved_from() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 60)).eval()
    fitted, fresh = torch.randn(150, 40), torch.randn(5000, 40)
    wanted = body(fresh).detach()
    kept = compress(body, 0.5, [fitted], list(fresh.split(1000)), "member-7", lambda done: None).kept
    assert kept == pytest.approx(r2_score(wanted, body(fresh).detach(), multioutput="variance_weighted"), abs=1e-5)


def test_frozen_layers_have_frozen_factors() -> None:
    body = nn.Sequential(nn.Linear(12, 30), nn.Linear(30, 12))
    body[0].requires_grad_(False)
    assert compressed(body, 0.7, [torch.randn(90, 12)]).keys() == {"0", "1"}
    assert {name[0]: p.requires_grad for name, p in body.named_parameters()} == {"0": False, "1": True}


def test_too_small_a_share_is_refused_with_the_least_there_is() -> None:
    with pytest.raises(EdistillError, match=r"compress is 0.3.*member-7 keeps 0\.\d+ of its.*above 0\.\d+, or"):
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
    body, x = OneDead().eval(), torch.randn(60, 1, 6, 6)
    wanted = body(x).detach()
    ranks = compressed(body, 0.9, [x])["second"]
    assert ranks[0] == 1  # what nine neighbors say of 40 channels is rank 9 at most
    assert ranks[1] <= 9
    assert count(body) < 0.2 * count(OneDead())
    assert_close(body(x), wanted, rtol=0, atol=2e-3 * float(wanted.std()))


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
    try:
        ranks = compressed(body, share, [x])
    except EdistillError:
        return  # so small a share there is not
    assert count(body) <= share * whole
    assert torch.isfinite(body(x)).all()
    fresh = nn.Sequential(*(nn.Conv2d(layer_in, out, 1) for layer_in, out in itertools.pairwise(widths)), nn.Flatten())
    for index, (_, height, width) in enumerate(layers):
        fresh[index] = nn.Conv2d(widths[index], widths[index + 1], (height, width))
    factor(fresh, ranks)  # as a run is loaded
    assert fresh.state_dict().keys() == body.state_dict().keys()


# --- in a student ---------------------------------------------------------------------------------------------

BODY = """
from torch import nn


def make_teacher():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def make_body():
    return make_teacher()[:5]
"""
VIEWS = {"cache.dtype": "float32", "views.count": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutional members of unlike weights."""
    made = tiny.make_folder(tmp_path_factory.mktemp("compressed") / "f", members=0, rows={"train": 120, "test": 60})
    (made / "model.py").write_text(BODY)
    (made / "teachers").mkdir()
    for index in range(3):
        torch.manual_seed(20 + index)
        module = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            nn.Linear(144, 3),
        )
        module[5].weight.data *= 8
        save_file(module.state_dict(), made / "teachers" / f"member-{index}.safetensors")
    cache_logits(tiny.settings(made, VIEWS))
    return made


def trained(folder: Path, name: str, **more: object) -> Run:
    chosen = {"student.init": ["member-*"], "output.name": name, "train.epochs": 0, **VIEWS}
    chosen |= {key.replace("__", "."): value for key, value in more.items()}
    return Run.open(train(tiny.settings(folder, chosen)).folder)


def diversity(folder: Path, run: Run) -> float:
    document = evaluate(tiny.settings(folder, VIEWS), run.folder.name)
    return float(document["fidelity"]["diversity_explained"])


def test_heads_on_a_body_each_read_that_one_alone(folder: Path) -> None:
    run = trained(folder, "whole", student__init=["member-2", "member-0", "member-1"], method__ridge=1e-8)
    assert (run.config.own_body, run.config.bodies, run.config.compressed) == (True, 3, ())
    student = run.student()
    assert student.heads.last.weight.shape == (3, 144, 3)
    theirs = load_file(folder / "teachers/member-1.safetensors")
    assert_close(student.body.bodies[1].state_dict()["2.weight"], theirs["2.weight"])
    assert diversity(folder, run) > 0.999  # it is the ensemble


def test_compressed_members_keep_what_their_share_allows(folder: Path) -> None:
    runs = [trained(folder, f"kept-{share}", student__compress=share) for share in (0.3, 0.8)]
    less, more = (diversity(folder, run) for run in runs)
    assert 0.2 < less < more < 0.999
    assert more > 0.9
    for run, share in zip(runs, (0.3, 0.8), strict=True):
        whole = sum(
            t.numel() for name, t in load_file(folder / "teachers/member-0.safetensors").items() if name[0] < "5"
        )
        assert all(count(body) <= share * whole for body in run.student().body.bodies)


def test_such_a_run_is_trained_on_exported_and_loaded(folder: Path) -> None:
    run = trained(folder, "on", student__compress=0.2, train__epochs=8, train__lr=1e-3)
    rows = csv.DictReader((run.folder / "summary.csv").read_text().splitlines())
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[0] / 2
    assert export(tiny.settings(folder, VIEWS), "on", onnx=True)[0].is_file()
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        assert_close(load_student(run.folder)(x), run.student()(x))


class Killed(BaseException):
    pass


def kill(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the training end at a step, as a killed process does."""
    step = loop.Training._step

    def dies(self: loop.Training, state: Any, rows: Any) -> float:
        if state.step == at:
            raise Killed
        return step(self, state, rows)

    monkeypatch.setattr(loop.Training, "_step", dies)


def test_an_interrupted_training_has_the_ranks_it_began_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(folder, "straight", student__compress=0.4, train__epochs=2)

    ways = {"student__compress": 0.4, "train__epochs": 2, "train__checkpoint_minutes": 1e-9}
    kill(monkeypatch, at=20)
    with pytest.raises(Killed):
        trained(folder, "killed", **ways)
    monkeypatch.undo()
    monkeypatch.setattr("ensemble_distill.workflows.compressed.compress", None)  # the checkpoint holds what it found
    resumed = trained(folder, "killed", **ways)
    assert (resumed.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()


def test_one_body_from_one_member_is_compressed_too(folder: Path) -> None:
    run = trained(folder, "single", student__init="member-0", student__compress=0.4, train__epochs=1)
    assert (run.config.own_body, run.config.bodies, len(run.config.compressed)) == (False, 1, 1)


@pytest.mark.parametrize("method", ["kd", "ban", "endd", "proxy-endd", "batch-ensemble", "supervised"])
def test_methods_with_fewer_heads_than_bodies_read_all_of_them(folder: Path, method: str) -> None:
    run = trained(folder, method, student__compress=0.5, train__method=method, train__epochs=1)
    assert (run.config.own_body, run.config.bodies, len(run.config.compressed)) == (False, 3, 3)
    with torch.no_grad():
        assert run.student()(torch.randn(2, 1, 6, 6)).isfinite().all()


def test_where_training_begins_with_one_head_the_heads_read_all_bodies(folder: Path) -> None:
    run = trained(folder, "hinton", student__compress=0.5, train__epochs=2, method__hinton_share=0.5)
    assert run.config.own_body is False
    assert run.student().heads.last.weight.shape == (3, 3 * 144, 3)


def test_the_ranks_of_other_bodies_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"student__compress": 0.4, "train__epochs": 2, "train__checkpoint_minutes": 1e-9}
    kill(monkeypatch, at=20)
    with pytest.raises(Killed):
        trained(folder, "cut", **ways)
    monkeypatch.undo()
    config = folder / "runs/cut/config.json"
    document = json.loads(config.read_text())
    document["student"] |= {"bodies": 1, "own_body": False, "compressed": document["student"]["compressed"][:1]}
    config.write_text(json.dumps(document))
    with pytest.raises(EdistillError, match=r"config.json is damaged: it has the ranks of 1 bodies, and 3"):
        trained(folder, "cut", **ways)


def test_the_first_of_a_chain_alone_starts_from_a_member(folder: Path) -> None:
    chosen = {"student.init": "member-1", "student.compress": 0.4, "train.teacher": "member-1", **VIEWS}
    chosen |= {"train.method": "ban", "train.generations": 2, "output.name": "chain", "train.epochs": 1}
    chain = train_chain(tiny.settings(folder, chosen)).folder
    assert [len(Run.open(chain / f"generation-{g}").config.compressed) for g in (1, 2)] == [1, 0]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"train.method": "kd", "student.heads": "last-stage"}, "student.compress is 0.4, and student.heads begin at"),
        (
            {"student.init": "member-*"},
            r"student.init is 'member-\*', and the members are.*make it a list: \[\"member-\*\"\]",
        ),
        ({"student.init": None}, r"student.compress is 0.4.*student.init = \[\"member-\*\"\] for all"),
        ({"student.heads": "last-stage"}, "student.compress is 0.4, and student.heads begin at"),
        ({"student.compress": 0.01}, r"student.compress is 0.01.*member-0 keeps 0\.\d+ of its"),
        ({"student.compress": 1.0}, "less than 1"),
        ({"student.init": ["nobody-*"]}, "student.init is 'nobody-\\*', and the members are member-0"),
        ({"student.init": ["member-*", "member-1"]}, "names member-1 2 times"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, more: dict[str, object], told: str) -> None:
    chosen = {"student.init": ["member-*"], "student.compress": 0.4, "output.name": "refused", **VIEWS, **more}
    with pytest.raises(EdistillError, match=told):
        train(tiny.settings(folder, {key: value for key, value in chosen.items() if value is not None}))
    assert not (folder / "runs" / "refused" / "student.safetensors").exists()


def test_a_damaged_record_of_ranks_is_refused_by_name(folder: Path) -> None:
    run = trained(folder, "damaged", student__compress=0.4)
    config = run.folder / "config.json"
    good = config.read_text()
    ranks = re.search(r'"2": \[\s*(\d+),', good)
    assert ranks is not None
    for old, new in (
        ('"compressed": [', '"compressed": [{}, '),
        (ranks[0], ranks[0].replace(ranks[1], "-1")),
        (ranks[0], ranks[0].replace(ranks[1], "2.5")),
        (ranks[0], ranks[0] + " 1,"),
        ('"own_body": true', '"own_body": 3'),
    ):
        assert old in good
        config.write_text(good.replace(old, new))
        with pytest.raises(EdistillError, match=r"config\.json is damaged"):
            Run.open(run.folder)
