"""Calibration: what was distorted is found again, and only what is to change changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.evaluation import fit as fitting
from ensemble_distill.evaluation.fit import REACH, at_limit, fit
from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Average, Predictive

N, M, K = 400, 5, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(average: Average = "probabilities") -> Categorical:
    return Categorical(2 * normal(N, 1, K) + normal(N, M, K, seed=1), average=average)


def model(predictive: Predictive) -> float:
    return float(predictive.summary().model.mean())


def test_a_distortion_of_the_members_is_undone() -> None:
    for temperature, spread in [(1.0, 2.5), (1.7, 1.0), (0.6, 0.4)]:
        for average in ["probabilities", "logits"]:
            ensemble = members(average)
            log_probs = ensemble.log_probs()
            center = log_probs.mean(1, keepdim=True)
            distorted = replace(ensemble, logits=(center + (log_probs - center) / spread) / temperature)
            found = fit(ensemble, distorted)
            mended = distorted.calibrated(found)
            assert model(mended) == pytest.approx(model(ensemble), rel=1e-3)
            before, after = (float(ensemble.pooled().kl(s.pooled()).mean()) for s in (distorted, mended))
            assert after <= before + 1e-6
            if average == "logits":  # there the pooled prediction tells the temperature alone
                assert found.temperature == pytest.approx(1 / temperature, rel=1e-3)
                assert found.spread == pytest.approx(spread, rel=1e-2)


def test_the_temperature_is_that_of_least_divergence() -> None:
    # far apart, so that the least divergence of the ensemble from the student is at another temperature
    ensemble, student = members(), Categorical(3 * members().pooled().logits + 3 * normal(N, 1, K, seed=5))
    found = fit(ensemble, student)
    assert (found.spread, found.variance) == (1.0, 1.0)  # a single head has no spread

    def divergence(temperature: float) -> float:
        return float(ensemble.pooled().kl(student.tempered(temperature)).mean())

    assert all(divergence(found.temperature) <= divergence(found.temperature * f) for f in (0.98, 1.02))
    assert found.temperature > 2


def test_numbers_are_found_again_exactly() -> None:
    ensemble = Gaussian(normal(N, M), normal(N, 1, seed=3) + 0.2 * normal(N, M, seed=4))
    center = ensemble.mean.mean(1, keepdim=True)
    distorted = Gaussian(center + (ensemble.mean - center) / 3, ensemble.log_variance - torch.tensor(2.0).log())
    found = fit(ensemble, distorted)
    assert found.spread == pytest.approx(3, rel=1e-3)
    assert found.variance == pytest.approx(2, rel=1e-6)
    far = fit(ensemble, Gaussian(distorted.mean, ensemble.log_variance - 5))
    assert far.variance == pytest.approx(torch.tensor(REACH).exp().item())
    mended = distorted.calibrated(found)
    assert_close(mended.mean, ensemble.mean, atol=1e-3, rtol=1e-3)
    assert_close(mended.summary().total, ensemble.summary().total, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", [0.3, 4.0])
def test_a_dirichlets_precision_is_moved_and_its_mean_is_not(precision: float) -> None:
    ensemble = members()
    mean = ensemble.pooled().logits
    student = Dirichlet(mean + torch.log(precision * 5 * (1.5 + normal(N, 1, 1, seed=6)).abs().clamp_min(0.2)))
    mended = student.calibrated(fit(ensemble, student))
    assert model(mended) == pytest.approx(model(ensemble), rel=1e-3)
    assert_close(mended.means(), student.means(), atol=0.02, rtol=0.02)


def test_heads_that_are_equal_are_left_alone_and_far_ones_meet_the_bound() -> None:
    ensemble = members()
    equal = Categorical(ensemble.pooled().logits.expand(N, M, K))
    assert fit(ensemble, equal).spread == 1
    nearly = Categorical(ensemble.pooled().logits + 1e-4 * normal(N, M, K, seed=8))
    assert fit(ensemble, nearly).spread == pytest.approx(torch.tensor(REACH).exp().item())
    agreeing = Categorical(ensemble.logits[:, :1].expand(N, M, K))
    assert fit(agreeing, ensemble).spread == 1


def test_a_power_is_found_again_on_both_halves() -> None:
    """An ensemble whose members differ more where it is unsure than the student's heads do, by a known power."""
    torch.manual_seed(3)
    student = Categorical(normal(400, 1, K, seed=11) * 3 + 0.2 * normal(400, M, K, seed=12))
    by = Calibration(spread=0.9, power=0.3)
    ensemble = student.calibrated(by)
    halves = [(halved(ensemble, start), halved(student, start)) for start in (0, 1)]
    found = fit(ensemble, student, halves=(halves[0], halves[1]))
    assert found.power == pytest.approx(by.power, abs=0.02)
    assert found.spread == pytest.approx(by.spread, rel=0.05)
    assert_close(student.calibrated(found).summary().model, ensemble.summary().model, rtol=0.05, atol=1e-4)
    assert fit(ensemble, student).power == 0  # which one number cannot mend
    alike = (halves[0][0], halves[0][0]), (halves[1][0], halves[1][0])
    assert fit(ensemble, ensemble, halves=alike).power == 0


def test_beside_a_power_the_spread_goes_beyond_its_own_bounds() -> None:
    """Where members all but agree, a power brings large factors, which the spread has to undo."""
    student = Categorical(normal(400, 1, K, seed=11) * 3 + 0.1 * normal(400, M, K, seed=12))
    by = Calibration(spread=0.03, power=0.4)
    ensemble = student.calibrated(by)
    halves = [(halved(ensemble, start), halved(student, start)) for start in (0, 1)]
    found = fit(ensemble, student, halves=(halves[0], halves[1]))
    assert (found.power, found.spread) == (pytest.approx(by.power, abs=0.02), pytest.approx(by.spread, rel=0.1))
    assert_close(student.calibrated(found).summary().model.mean(), ensemble.summary().model.mean(), rtol=1e-3, atol=0)


def test_a_power_that_one_half_alone_wants_is_not_taken() -> None:
    student = Categorical(normal(400, 1, K, seed=11) * 3 + 0.2 * normal(400, M, K, seed=12))
    for powers in ((0.4, -0.1), (-0.1, 0.4)):  # whose mean is none of 0
        up, down = (student.calibrated(Calibration(power=power)) for power in powers)
        halves = (halved(up, 0), halved(student, 0)), (halved(down, 1), halved(student, 1))
        assert fit(student, student, halves=halves).power == 0


def test_the_power_is_the_mean_of_those_of_both_halves() -> None:
    student = Categorical(normal(400, 1, K, seed=11) * 3 + 0.2 * normal(400, M, K, seed=12))
    one, other = (student.calibrated(Calibration(power=power)) for power in (0.3, 0.33))
    halves = (halved(one, 0), halved(student, 0)), (halved(other, 1), halved(student, 1))
    found = fit(student, student, halves=halves).power
    assert found == pytest.approx(0.315, abs=0.01)
    assert fit(student, student, halves=halves[::-1]).power == found


def test_a_power_has_to_reduce_the_mean_error_by_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a little more than half of the rows the ensemble wants a power, and of the others the opposite one."""
    student = Categorical(normal(400, 1, K, seed=11) * 3 + 0.2 * normal(400, M, K, seed=12))
    up, down = (student.calibrated(Calibration(power=power)).logits for power in (0.3, -0.3))
    ensemble = Categorical(torch.where((torch.arange(400) % 100 < 58)[:, None, None], up, down))
    wanted, halves = ensemble.summary().model, ((ensemble, student), (ensemble, student))

    def error(power: float) -> float:
        def moved(log_spread: float) -> Tensor:
            return student.calibrated(Calibration(spread=float(np.exp(log_spread)), power=power)).summary().model

        spread = optimize.brentq(lambda at: float((moved(at).mean() / wanted.mean()).log()), -4, 4, xtol=1e-3)
        return float((moved(spread) - wanted).abs().mean())

    found = fit(ensemble, student, halves=halves).power
    least = error(found)
    assert least < min(error(found - 0.05), error(found + 0.05))
    gain = 1 - least / error(0.0)
    assert 0.01 < gain < 0.02
    monkeypatch.setattr(fitting, "GAIN", 1.1 * gain)
    assert fit(ensemble, student, halves=halves).power == 0


def halved(said: Categorical, start: int) -> Categorical:
    return Categorical(said.logits[start::2])


def test_factors_at_either_bound_are_named() -> None:
    assert at_limit(Calibration(temperature=8.0, spread=0.125, variance=7.9)) == ["temperature", "spread"]
    assert at_limit(Calibration(temperature=0.13, spread=7.9, variance=0.125)) == ["variance"]
    assert at_limit(Calibration(spread=8.0, power=0.2)) == [], "beside a power the spread has another bound"


def test_rows_with_positions_are_calibrated_alike() -> None:
    flat = members()
    folded = Categorical(flat.logits.view(N // 4, 4, M, K).transpose(1, 2))
    by = Calibration(1.3, 1.8)
    assert_close(folded.calibrated(by).log_probs().transpose(1, 2).reshape(N, M, K), flat.calibrated(by).log_probs())
