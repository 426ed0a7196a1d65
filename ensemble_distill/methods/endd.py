"""Ensemble distribution distillation, EnD² (Malinin et al. 2020, arXiv:1905.00076): a Dirichlet for the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.methods.method import Batch, Method, Options, Stage, Step
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet, DirichletFamily
from ensemble_distill.predictive.protocol import Family, Predictive

MANY = 10_000  # steps: from here on there is time to anneal from the paper's temperature


class EnDDOptions(Options):
    first_temperature: float | None = Field(
        None,
        ge=1,
        le=100,
        description="Initial temperature of both sides of the loss; it falls to 1. Default 3, or 10 for "
        "10,000 steps or more.",
    )
    anneal_share: float = Field(
        2 / 3,
        gt=0,
        le=1,
        description="Share of training after which the temperature is 1: it stays constant for the first half of that "
        "share and falls linearly in the second.",
    )
    smoothing: float = Field(
        1e-3, gt=0, lt=1, description="Share of the uniform distribution mixed into the members' predictions."
    )


def annealed(options: EnDDOptions, progress: float, steps: int = 1) -> float:
    """The temperature T after a share `progress` in (0, 1] of `steps` steps; exactly 1 at the end."""
    first = _first(options, steps)
    left = min(max(2 - 2 * progress / options.anneal_share, 0.0), 1.0)
    return 1 + (first - 1) * left


def _first(options: EnDDOptions, steps: int) -> float:
    if options.first_temperature is not None:
        return options.first_temperature
    return 10.0 if steps >= MANY else 3.0


class EnDD(Method):
    """One head that emits a Dirichlet, α = exp(z/T), fitted to the members by maximum likelihood.

    The loss is −(T²/M) Σ_m ln Dir(p_m; α), where p_m are member m's probabilities, softened by T and smoothed to
    (1 − ε) p + ε/K. Without smoothing, one confident member would outweigh all others through ln p.

    T falls to 1. It starts higher because at 1 the members lie in corners of the simplex, where an untrained Dirichlet
    has hardly any mass. The authors' code holds T and then lowers it linearly. For long trainings, the default is the
    schedule of a published reproduction on CIFAR-10: of 90 epochs, 30 at T = 10, 30 falling, 30 at 1. Short trainings
    would have no time left to learn at 1. On the validation rows of the quickstart's digits, two seeds, 96 steps gave
    3 % of the members' model uncertainty from T = 10, half from 5, about all from 3, and seventeen times as much from
    2; 320 steps gave four fifths from 2 and from 3. In trainings of a few thousand steps, 2 to 5 came much nearer to
    the members than 10. The likelihood is unbounded where all members agree, and it suits many classes badly;
    `proxy-endd` mends both.

    Starting from a head solved for by least squares, as `kd` does, did not work for either method: with a proxy
    Dirichlet as the target, precisions differ so much between rows that accuracy was .2 to .7 after 96 steps.

    Members are read in float64, because a large α multiplies the rounding of ln p_m.
    """

    title = "one head that gives a Dirichlet, fitted to the members; a Prior Network"
    paper = "Malinin et al. 2020, arXiv:1905.00076"
    outputs = "a Dirichlet"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    several: ClassVar[bool] = True
    Options: ClassVar[type[BaseModel]] = EnDDOptions

    def family(self, of_members: Family) -> Family:
        return DirichletFamily()

    def heads(self, members: int) -> int:
        return 1

    def timed(self, options: BaseModel, steps: int) -> BaseModel:
        assert isinstance(options, EnDDOptions)
        return options.model_copy(update={"first_temperature": _first(options, steps)})

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        assert isinstance(options, EnDDOptions)
        constant = options.first_temperature == 1
        return {"anneal-share": "method.first-temperature is 1, so that nothing falls"} if constant else {}

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, EnDDOptions)
        smoothing = options.smoothing

        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            assert isinstance(batch.teacher, Categorical)
            assert isinstance(student, Dirichlet)
            temperature = annealed(options, step.progress, step.steps)
            teacher = replace(batch.teacher, logits=batch.teacher.logits.double()).tempered(temperature)
            probs = teacher.means()
            smoothed = (1 - smoothing) * probs + smoothing / probs.shape[-1]
            log_density = student.tempered(temperature).log_density(smoothed.log())
            return -(temperature**2) * teacher.member_mean(log_density).mean()

        return (Stage("likelihood", 1.0, lambda student: student, loss),)


METHOD = EnDD
