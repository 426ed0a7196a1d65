"""The registry of families, and what every family obeys: this file runs over whatever is discovered."""

import itertools
import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive import (
    family_from_json,
    family_name,
    family_names,
    family_to_json,
    open_family,
)
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian_vector import GaussianVector
from ensemble_distill.predictive.protocol import Average, Family, Predictive, Summary

ROWS, MEMBERS, CLASSES = 6, 4, 3
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
UNCERTAINTIES = ("total", "data", "model")


def other_than_default(name: str) -> Family:
    """The family with every field moved away from its default."""
    if name == "gaussian-vector":
        return open_family(name, unit=(1.5, 0.5), center=(0.5, -1.0), scale=(2.0, 0.25))
    kind = type(open_family(name))
    return open_family(name, **{f.name: f.default + 0.5 for f in fields(kind)})  # type: ignore[arg-type, operator]


def numeric(family: Family) -> bool:
    return family.width(0) > 0


def width(family: Family) -> int:
    return family.width(0 if numeric(family) else CLASSES)


def answers(family: Family) -> tuple[int, ...]:
    """The shape of a row's answer: of one class or number (), of several their number."""
    if family_name(family) == "bernoulli":
        return (CLASSES,)
    return (width(family) // 2,) if family_name(family) == "gaussian-vector" else ()


def with_members(family: Family) -> bool:
    """Whether it holds a distribution per member, or one for them all."""
    try:
        return family.predictive(torch.zeros(1, 2, width(family)), None, "probabilities").members == 2
    except ValueError:
        return False


each = pytest.mark.parametrize("family", [f for n in family_names() for f in (open_family(n), other_than_default(n))])
of_members = pytest.mark.parametrize(
    "family", [f for n in family_names() for f in (open_family(n), other_than_default(n)) if with_members(f)]
)
AVERAGES: tuple[Average, ...] = ("probabilities", "logits")


def raw_of(family: Family, positions: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    members = MEMBERS if with_members(family) else 1
    return torch.randn(ROWS, members, *positions, width(family), generator=generator, dtype=torch.float64)


def targets_of(family: Family, positions: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (ROWS, *positions, *answers(family))
    if numeric(family):
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(2 if answers(family) else CLASSES, shape, generator=generator)


def predicted(family: Family, raw: Tensor, average: Average = "probabilities", weights: Tensor | None = None) -> Any:
    return family.predictive(raw, weights, average)


def uncertainties(summary: Summary) -> Tensor:
    return torch.stack([getattr(summary, name) for name in UNCERTAINTIES])


# --- the registry -----------------------------------------------------------------------------------------


def test_families_are_found_by_their_files() -> None:
    assert family_names() == tuple(sorted(family_names()))
    assert {"categorical", "dirichlet", "gaussian"} <= set(family_names())
    assert not {"protocol", "weighted"} & set(family_names())  # modules, but no families


def test_a_family_travels_through_json_with_its_fields() -> None:
    for name in family_names():
        for family in (open_family(name), other_than_default(name)):
            assert family_name(family) == name
            record = json.loads(json.dumps(family_to_json(family), allow_nan=False))
            assert record["name"] == name
            assert family_from_json(record) == family
        if fields(type(open_family(name))):  # type: ignore[arg-type]
            assert open_family(name) != other_than_default(name)


def test_no_other_name_is_a_family() -> None:
    for name in ["weighted", "protocol", "Gaussian", "", "os"]:
        with pytest.raises(ValueError, match=r"is not a family of .*categorical, dirichlet, gaussian"):
            open_family(name)


def test_a_record_that_no_family_wrote_is_an_error() -> None:
    for record, error in [
        ({"name": "student-t"}, ValueError),
        ({"name": "gaussian", "unit": 1.0}, TypeError),
        ({}, TypeError),
    ]:
        with pytest.raises(error):
            family_from_json(record)


def test_a_row_takes_so_many_numbers() -> None:
    assert open_family("gaussian").width(0) == 2
    assert open_family("categorical").width(10) == 10
    assert open_family("gaussian") == open_family("gaussian", center=0.0, scale=1.0)


def test_some_families_have_members_and_some_stand_for_all() -> None:
    multiple = {name for name in family_names() if with_members(open_family(name))}
    assert {"categorical", "gaussian"} <= multiple
    assert "dirichlet" not in multiple


# --- what every family obeys --------------------------------------------------------------------------------


@each
def test_shapes(family: Family) -> None:
    for average in AVERAGES:
        for positions in [(), (2,)]:
            raw = raw_of(family, positions)
            ours = predicted(family, raw, average)
            y = targets_of(family, positions)
            several, one = raw.shape[:-1], (ROWS, *positions)
            assert ours.members == raw.shape[1]
            assert ours.nll(y).shape == ours.kl(ours).shape == several
            assert ours.pooled_nll(y).shape == one
            assert ours.means().shape == (*several, *(answers(family) or (1 if numeric(family) else CLASSES,)))
            assert ours.member_mean(ours.nll(y)).shape == one
            assert ours.tempered(2.0).nll(y).shape == several
            for pooled in (ours.pooled(), ours.mixture()):
                assert pooled.members == 1
                assert not pooled.has_model_uncertainty
                assert pooled.nll(y).shape == (ROWS, 1, *positions)
            summary = ours.summary()
            assert summary.mean.shape == ((*one, *answers(family)) if numeric(family) else (*one, CLASSES))
            assert summary.total.shape == summary.data.shape == summary.model.shape == one


@each
def test_total_is_data_plus_model_and_none_is_below_zero(family: Family) -> None:
    for average in AVERAGES:
        summary = predicted(family, raw_of(family), average).summary()
        assert_close(summary.total, summary.data + summary.model, rtol=1e-12, atol=0)
        assert (uncertainties(summary) >= 0).all()
        assert (summary.model > 1e-3).all()


@each
def test_what_is_said_of_the_prediction_is_said_of_what_is_pooled(family: Family) -> None:
    for average in AVERAGES:
        ours = predicted(family, raw_of(family), average)
        mean = ours.pooled().means()[:, 0] * torch.tensor(getattr(family, "unit", 1.0), dtype=torch.float64)
        assert_close(ours.summary().mean, mean[:, 0] if numeric(family) and not answers(family) else mean)
        if average == "probabilities":
            assert_close(ours.summary().total, ours.mixture().summary().total)
            assert_close(ours.pooled().means()[:, 0], ours.member_mean(ours.means()))
        if not numeric(family):  # a mixture of normal distributions is none, and its NLL is its own
            assert_close(ours.pooled_nll(targets_of(family)), ours.pooled().nll(targets_of(family))[:, 0])


@each
def test_kl_is_zero_at_equality_and_above_it_elsewhere(family: Family) -> None:
    ours, others = (predicted(family, raw_of(family, seed=seed)) for seed in (0, 1))
    assert_close(ours.kl(ours), torch.zeros(ours.kl(ours).shape, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (ours.kl(others) > 1e-3).all()
    assert not torch.allclose(ours.kl(others), others.kl(ours))


@each
def test_kl_is_least_at_equality_along_every_line(family: Family) -> None:
    """So its gradient with respect to the student is 0 there: what distillation converges to."""
    raw = raw_of(family)
    student = raw.clone().requires_grad_()
    predicted(family, raw).kl(predicted(family, student)).sum().backward()
    assert student.grad is not None
    assert_close(student.grad, torch.zeros_like(raw), rtol=0, atol=1e-12)


@each
def test_a_temperature_of_one_changes_nothing_and_a_higher_one_is_less_certain(family: Family) -> None:
    ours = predicted(family, raw_of(family))
    assert_close(uncertainties(ours.tempered(1.0).summary()), uncertainties(ours.summary()))
    y = targets_of(family)
    assert_close(ours.tempered(1.0).nll(y), ours.nll(y))
    assert (ours.tempered(3.0).summary().total > ours.summary().total).all()
    assert_close(ours.tempered(3.0).tempered(1 / 3).nll(y), ours.nll(y))


@each
def test_rows_know_nothing_of_each_other(family: Family) -> None:
    raw = raw_of(family)
    whole, one = predicted(family, raw), predicted(family, raw[2:3])
    assert_close(uncertainties(whole.summary())[:, 2:3], uncertainties(one.summary()))
    assert_close(whole.pooled_nll(targets_of(family))[2:3], one.pooled_nll(targets_of(family)[2:3]))


@each
def test_float32_stays_float32(family: Family) -> None:
    ours = predicted(family, raw_of(family).float())
    exact = predicted(family, raw_of(family))
    y = targets_of(family)
    for found in (ours.kl(ours), ours.pooled_nll(y.float() if numeric(family) else y), ours.means()):
        assert found.dtype == torch.float32
    assert_close(uncertainties(ours.summary()), uncertainties(exact.summary()).float(), rtol=1e-4, atol=1e-6)


# --- of members ---------------------------------------------------------------------------------------------


@of_members
def test_permuting_the_members_changes_nothing(family: Family) -> None:
    for average in AVERAGES:
        order = torch.tensor([2, 0, 3, 1])
        raw, y = raw_of(family), targets_of(family)
        before = predicted(family, raw, average, WEIGHTS)
        after = predicted(family, raw[:, order], average, WEIGHTS[order])
        assert_close(uncertainties(after.summary()), uncertainties(before.summary()), rtol=1e-12, atol=1e-12)
        assert_close(after.summary().mean, before.summary().mean, rtol=1e-12, atol=1e-12)
        assert_close(after.pooled_nll(y), before.pooled_nll(y))
        assert_close(after.nll(y), before.nll(y)[:, order])
        assert not torch.allclose(
            predicted(family, raw[:, order], average, WEIGHTS).pooled_nll(y), before.pooled_nll(y)
        )


@of_members
def test_clones_have_no_model_uncertainty(family: Family) -> None:
    for weights in [None, WEIGHTS]:
        for average in AVERAGES:
            raw, y = raw_of(family), targets_of(family)
            one = predicted(family, raw[:, :1], average)
            clones = predicted(family, raw[:, :1].expand(-1, MEMBERS, -1), average, weights)
            assert clones.has_model_uncertainty
            assert clones.summary().model.max() < 1e-14
            assert_close(clones.summary().total, one.summary().total)
            assert_close(clones.pooled_nll(y), one.nll(y)[:, 0])


@of_members
def test_a_single_distribution_is_spread_over_the_members(family: Family) -> None:
    members, one = (predicted(family, raw_of(family, seed=seed)[:, :count]) for seed, count in ((0, MEMBERS), (1, 1)))
    copies = predicted(family, raw_of(family, seed=1)[:, :1].expand(-1, MEMBERS, -1))
    assert members.kl(one).shape == one.kl(members).shape == (ROWS, MEMBERS)
    assert_close(members.kl(one), members.kl(copies))
    assert_close(one.kl(members), copies.kl(members))


@of_members
def test_the_mixture_is_the_nearest_single_distribution(family: Family) -> None:
    """mean_m KL(p_m ‖ q) = mean_m KL(p_m ‖ mixture) + KL(mixture ‖ q): what distilling the mean minimizes."""
    members, q = predicted(family, raw_of(family), weights=WEIGHTS), predicted(family, raw_of(family, seed=3)[:, :1])
    mixture: Predictive = members.mixture()
    least = members.member_mean(members.kl(mixture))
    assert_close(members.member_mean(members.kl(q)), least + mixture.kl(q)[:, 0])
    assert (least > 0).all()


@of_members
def test_one_member_has_no_model_uncertainty_of_its_own(family: Family) -> None:
    one = predicted(family, raw_of(family)[:, :1])
    assert not one.has_model_uncertainty
    assert one.summary().model.max() < 1e-14
    assert predicted(family, raw_of(family)).has_model_uncertainty


# --- from distributions back to numbers, and calibrated -----------------------------------------------------------


@each
def test_raw_numbers_mean_their_distributions(family: Family) -> None:
    for positions in [(), (2,)]:
        ours = predicted(family, raw_of(family, positions))
        back = predicted(family, family.raw(ours))
        assert_close(back.means(), ours.means())
        assert_close(uncertainties(back.summary()), uncertainties(ours.summary()))
        assert_close(family.raw(back), family.raw(ours))


@each
def test_a_calibration_of_ones_changes_nothing(family: Family) -> None:
    for average in AVERAGES:
        for positions in [(), (2,)]:
            ours = predicted(family, raw_of(family, positions), average, WEIGHTS if with_members(family) else None)
            same = ours.calibrated(Calibration())
            assert_close(same.means(), ours.means())
            assert_close(uncertainties(same.summary()), uncertainties(ours.summary()))


@each
def test_spread_moves_the_model_uncertainty_and_keeps_the_prediction(family: Family) -> None:
    for average in AVERAGES:
        for positions in [(), (2,)]:
            weights = WEIGHTS if with_members(family) else None
            ours = predicted(family, 0.5 * raw_of(family, positions), average, weights)
            models = []
            for spread in (0.25, 0.5, 1.0, 1.5, 2.0):
                moved = ours.calibrated(Calibration(spread=spread))
                models.append(moved.summary().model)
                difference = (
                    ours.pooled().kl(moved.pooled())
                    if not numeric(family)
                    else moved.summary().mean - ours.summary().mean
                )
                assert difference.abs().max() < 2e-3
            assert all((b > a).all() for a, b in itertools.pairwise(models))


@each
def test_a_power_spreads_each_row_by_its_own_uncertainties(family: Family) -> None:
    """Each row moves as by a spread of its own, spread × (total ÷ model)^power, and keeps its prediction. Of several
    targets each has a spread of its own."""
    for average in AVERAGES:
        for positions in [(), (2,)]:
            weights = WEIGHTS if with_members(family) else None
            ours = predicted(family, 0.5 * raw_of(family, positions), average, weights)
            ours = ours.apart if isinstance(ours, GaussianVector) else ours
            moved = ours.calibrated(Calibration(spread=0.8, power=0.25))
            here = ours.summary()
            own = 0.8 * (here.total / here.model) ** 0.25
            for at, spread in np.ndenumerate(own.numpy()):
                alone = ours.calibrated(Calibration(spread=float(spread)))
                assert_close(moved.summary().model[at], alone.summary().model[at], rtol=1e-4, atol=1e-7)
            kept = ours.pooled().kl(moved.pooled()) if not numeric(family) else moved.summary().mean - here.mean
            assert kept.abs().max() < 2e-2


def test_a_power_leaves_heads_that_say_the_same_alone() -> None:
    same = Categorical(torch.randn(4, 1, 5).expand(4, 3, 5))
    moved = same.calibrated(Calibration(power=0.5))
    assert_close(moved.means(), same.means())


def test_a_power_of_0_is_not_written_and_another_comes_back() -> None:
    assert Calibration(1.1, 1.2).to_json() == {"temperature": 1.1, "spread": 1.2, "variance": 1.0}
    steep = Calibration(1.1, 1.2, power=0.2)
    assert Calibration.from_json(steep.to_json()) == steep
    for wrong in (1.5, -2.0, float("nan"), "0.2", True):
        with pytest.raises(ValueError, match="power"):
            Calibration.from_json({**steep.to_json(), "power": wrong})


def test_what_is_calibrated_is_a_number_near_1() -> None:
    for wrong in (0.0, -1.0, 1e-300, 1e44, True, "1.5", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="spread"):
            Calibration.from_json({**Calibration().to_json(), "spread": wrong})
