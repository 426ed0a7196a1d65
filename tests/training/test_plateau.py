"""A rate that falls when the validation figure does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import language_helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import StopsAt, make_folder, refused, settings, with_cache

from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.optimization import optimization
from ensemble_distill.training.plateau import Plateau
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

STEEP = {
    "train.opt": "sgd",
    "train.momentum": 0.0,
    "train.weight-decay": 0.0,
    "train.sched": "plateau",
    "train.decay-rate": 0.25,
    "train.patience-epochs": 0,
    "train.lr": 2.0,
    "train.epochs": 8,
}


def plateau(**options: Any) -> tuple[Plateau, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    chosen = SettledTraining.model_construct(**{"lr": 1.0, "plateau_threshold": 0.0, **options})
    return Plateau(optimizer, chosen, options.get("warmup", 0)), optimizer


def by_hand(figures: list[float], rate: float, patience: int, least: float) -> list[float]:
    """The rate in each epoch."""
    now, best, bad, found = 1.0, math.inf, 0, []
    for figure in figures:
        found.append(now)
        best, bad = (figure, 0) if figure < best - least else (best, bad + 1)
        if bad > patience:
            now, bad = now * rate, 0
    return found


@given(
    st.lists(st.sampled_from([1.0, 2.0, 2.25, 3.0, 4.0]), max_size=12),
    st.sampled_from([0.25, 0.5]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 12),
)
def test_the_rate_falls_as_counted_by_hand_and_goes_on_so_from_what_is_saved(
    figures: list[float], rate: float, patience: int, least: float, saved_at: int
) -> None:
    options = {"decay_rate": rate, "patience_epochs": patience, "plateau_threshold": least}
    schedule, optimizer = plateau(**options)
    found = []
    for epoch, figure in enumerate(figures):
        if epoch == saved_at:
            state, now = schedule.state_dict(), optimizer.state_dict()
            schedule, optimizer = plateau(**options)
            schedule.load_state_dict(state)
            optimizer.load_state_dict(now)
        schedule.step_update(3 * epoch)
        found.append(optimizer.param_groups[0]["lr"])
        schedule.end_epoch({"validation_loss": -figure, "validation_nll": figure})
    assert found == pytest.approx(by_hand(figures, rate, patience, least))


def test_perplexity_is_looked_at_where_there_is_one() -> None:
    schedule, optimizer = plateau(decay_rate=0.5, patience_epochs=0, plateau_threshold=0.5)
    for nll in (3.0, 2.99, 2.98):  # 20.1, 19.9, 19.7: by less than .5, until both falls together
        schedule.end_epoch({"validation_loss": 0.0, "validation_nll": nll, "validation_perplexity": math.exp(nll)})
    assert optimizer.param_groups[0]["lr"] == 0.25
    schedule.end_epoch({"validation_nll": 2.9, "validation_perplexity": math.exp(2.9)})
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_while_it_warms_up_nothing_is_counted() -> None:
    schedule, optimizer = plateau(decay_rate=0.5, patience_epochs=0, warmup=4)
    rates = []
    for index in range(8):
        schedule.step_update(index)
        rates.append(optimizer.param_groups[0]["lr"])
        if index % 2:
            schedule.end_epoch({"validation_nll": 1.0})
    assert rates == pytest.approx([0.01, 0.2575, 0.505, 0.7525, 1.0, 1.0, 1.0, 1.0])
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, True)])
def test_plain_sgd_is_sgd_without_momentum(momentum: float, nesterov: bool) -> None:
    given = SettledTraining.model_validate({"opt": "sgd", "momentum": momentum, "lr": 0.5, "weight_decay": 0.0})
    layer = torch.nn.Linear(2, 1)
    optimizer, _ = optimization(layer, given, steps=3, steps_per_epoch=1)  # type: ignore[arg-type]
    assert {group["nesterov"] for group in optimizer.param_groups} == {nesterov}
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 2)).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    np.testing.assert_allclose(layer.weight.detach(), before - 0.5 * (1 + momentum), rtol=1e-6)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(make_folder(tmp_path_factory.mktemp("plateau") / "tiny", rows={"train": 40, "validation": 12}))


def rates_and_figures(run: Path) -> list[tuple[float, float]]:
    header, *lines = (line.split(",") for line in (run / "summary.csv").read_text().splitlines())
    at = header.index("lr"), header.index("validation_nll")
    return [(float(line[at[0]]), float(line[at[1]])) for line in lines]


def test_a_training_lowers_its_rate_as_its_own_summary_says_and_resumes_to_the_same_bytes(cached: Path) -> None:
    given = {**STEEP, "train.method": "supervised"}
    train(settings(cached, {**given, "output.name": "whole"}))
    found = rates_and_figures(cached / "runs/whole")
    assert [rate for rate, _ in found] == pytest.approx([2 * r for r in by_hand([f for _, f in found], 0.25, 0, 0.0)])
    assert found[-1][0] < 2.0, "it never fell"

    each = {**given, "output.name": "stopped", "train.checkpoint-minutes": 1e-9}
    for _ in range(13):
        with pytest.raises(KeyboardInterrupt):
            train(settings(cached, each), progress=StopsAt(4))
    train(settings(cached, each))
    assert rates_and_figures(cached / "runs/stopped") == found
    names = ("student.safetensors", "config.json")
    whole, stopped = ([(cached / f"runs/{run}" / name).read_bytes() for name in names] for run in ("whole", "stopped"))
    assert stopped == whole


def test_a_training_does_not_go_on_with_other_validation_rows(tmp_path: Path) -> None:
    """Its rate was lowered by figures on these rows, and the best of them is kept."""
    folder = with_cache(make_folder(tmp_path / "tiny", rows={"train": 40, "validation": 12}))
    with pytest.raises(KeyboardInterrupt):
        train(settings(folder, STEEP), progress=StopsAt(12))
    rows = np.load(folder / "data/validation.npz")
    np.savez(folder / "data/validation.npz", x=rows["x"][:9], y=rows["y"][:9])
    cache_logits(settings(folder), overwrite=True)
    with refused("hydra-s0 was trained on validation data", "--overwrite"):
        train(settings(folder, STEEP))
    assert train(settings(folder, STEEP), overwrite=True).fresh


def test_language_models_tell_their_perplexity_while_they_train(tmp_path: Path) -> None:
    language_helpers.make_language(tmp_path / "words")
    cache_logits(language_helpers.settings(tmp_path / "words"))
    train(language_helpers.settings(tmp_path / "words", train__method="kd", train__sched="plateau"))
    header, line = (tmp_path / "words/runs/kd-s0/summary.csv").read_text().splitlines()
    told = dict(zip(header.split(","), map(str, line.split(",")), strict=True))
    assert float(told["validation_perplexity"]) == pytest.approx(math.exp(float(told["validation_nll"])), rel=1e-4)


def test_without_validation_rows_it_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 8})
    cache_logits(settings(folder))
    with refused("train.sched is 'plateau'", "data.validation", "--sched cosine"):
        train(settings(folder, {"train.sched": "plateau", "train.method": "kd"}))
    assert [path.name for path in (folder / "runs").rglob("*") if path.is_file()] == []
