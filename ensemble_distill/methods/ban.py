"""Born-again networks (Furlanello et al. 2018, arXiv:1805.04770): a student that learns from one teacher.

The paper's teacher is a network as large as the student. Here the teacher is the pooled prediction of an ensemble or
the student of the previous generation. All four objectives use temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.closed_form import (
    AFTER,
    SHRINKAGE,
    ClosedForm,
    Shrinkage,
    SolveAfter,
    idle_ridge,
    settled_form,
    solved_heads,
    solved_on_the_way,
    together,
)
from ensemble_distill.methods.method import Batch, Method, Options, Stage, Step
from ensemble_distill.methods.supervised import label_nll, labels_loss
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.sampled import Sampled
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.keys import uniform_row
from ensemble_distill.tasks import Task

Objective = Literal["ban", "ban+l", "cwtm", "dkpp"]
COPIES = ("ban", "ban+l")  # objectives under which the student imitates its teacher's whole prediction


def teacher_loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
    """KL(teacher ‖ student), averaged over rows and positions: "BAN".

    This is the paper's cross-entropy minus the teacher's entropy, which has no gradient, so a perfect copy has loss 0.
    """
    return ranks.mean_of_all(batch.teacher.pooled().kl(student))


def confidence_weighted_loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
    """−ln q(y) weighted by the teacher's largest probability: "CWTM", equation 10.

    Σ_s (max p_s ÷ Σ_u max p_u) (−ln q_s(y_s)), where u runs over the whole minibatch, including the rows of all ranks.
    The weight is the teacher's confidence even where the teacher is wrong. Rows without a label count in neither sum.
    """
    teacher = batch.teacher.pooled()
    confidence = (teacher.top if isinstance(teacher, Sampled) else teacher.means().amax(-1))[:, 0]
    known = torch.zeros_like(confidence) if batch.labels is None else batch.labels.known
    weight = torch.where(known.bool(), confidence, 0.0)
    least = torch.finfo(weight.dtype).tiny
    return ranks.share_of_all((weight * label_nll(batch, student)).sum(), weight.sum(), least)


def permuted_loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
    """KL(teacher with permuted dark knowledge ‖ student), averaged over rows and positions: "DKPP", equation 11."""
    teacher = batch.teacher.pooled()
    assert isinstance(teacher, Categorical)
    target = Categorical(permuted_but_the_largest(teacher.log_probs(), step))
    assert isinstance(student, Categorical)
    return ranks.mean_of_all(target.kl(student))


def permuted_but_the_largest(values: Tensor, step: Step) -> Tensor:
    """Values with the last dimension randomly permuted, except for its largest entry, which stays in place.

    Each row and position has its own permutation, uniform over all permutations and drawn afresh in each step; the
    paper does not say whether its own are. Permutations depend on the step's seed and index and on the row's place in
    the joint batch of all ranks.
    """
    before = ranks.before(values.numel())
    drawn = uniform_row(before + values.numel(), "dkpp", step.seed, step.index, 0)[before:]
    keys = torch.from_numpy(drawn).view(values.shape).argsort(-1).to(values.device)  # a random order per row
    largest = values.argmax(-1, keepdim=True)
    # the largest sorts last in both orders, so the first K − 1 of each are the others, in ascending or random order
    classes = values.shape[-1]
    ascending = torch.arange(classes, device=values.device).expand_as(keys)
    places, sources = (order.scatter(-1, largest, classes).argsort(-1)[..., :-1] for order in (ascending, keys))
    return values.scatter(-1, places, values.gather(-1, sources))


def gradient_split(batch: Batch, student: Predictive) -> Mapping[str, Tensor]:
    """The paper's two parts of q − p, the gradient of the divergence from the teacher by the student's logits.

    Each part is a squared norm averaged over rows, whatever objective is minimized. `gradient_label` is (q_* − p_*)²
    for the label's class: the ground-truth gradient with the label scaled by the teacher's p_*. `gradient_dark` is
    Σ (q_k − p_k)² over all other classes: the dark knowledge. Rows whose label is unknown or mixed with another label
    are left out; both parts are NaN for a batch without other rows.
    """
    labels, teacher = batch.labels, batch.teacher.pooled()
    if labels is None or not isinstance(teacher, Categorical) or labels.own.is_floating_point():
        return {}
    plain = labels.known & ((labels.weight == 1) | (labels.own == labels.partner))
    squared = (student.means()[:, 0] - teacher.means()[:, 0]).square()
    of_label = squared.gather(1, torch.where(plain, labels.own, 0).unsqueeze(1))[:, 0]
    sums = {
        "gradient_label": torch.where(plain, of_label, 0.0).sum(),
        "gradient_dark": torch.where(plain, squared.sum(1) - of_label, 0.0).sum(),
    }
    return {name: ranks.share_of_all(found, plain.sum(), 0) for name, found in sums.items()}


class BornAgainOptions(Options):
    objective: Objective = Field(
        "ban",
        description="Teacher alone; teacher and labels; labels weighted by its confidence; dark knowledge permuted.",
    )
    label_weight: float | None = Field(
        None, gt=0, le=1e6, description='Weight of the labels beside the teacher, with objective = "ban+l"; default 1.'
    )
    closed_form: ClosedForm = None
    solve_after: SolveAfter = AFTER
    ridge: Shrinkage = SHRINKAGE


class BornAgain(Method):
    """One head that imitates one teacher; with `train.generations`, each generation learns from the previous one.

    Every generation has a new seed and the same schedule. The head can be solved for during training (`closed_form`),
    as in kd; the default is off, since the paper does not. The paper does not state the weight of the labels in BAN+L;
    by default both terms count equally.
    """

    title = "one head that learns from one teacher, which may be the generation before"
    paper = "Furlanello et al. 2018, arXiv:1805.04770"
    outputs = "one distribution"
    Options: ClassVar[type[BaseModel]] = BornAgainOptions

    def needed(self, options: BaseModel) -> frozenset[str]:
        assert isinstance(options, BornAgainOptions)
        return self.needs | ({"labels"} if options.objective in ("ban+l", "cwtm") else set())

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        assert isinstance(options, BornAgainOptions)
        if options.objective == "dkpp":
            return "method.objective is 'dkpp', which permutes the probabilities of all classes"
        if options.objective == "cwtm" and not pooled_top:
            return (
                "method.objective is 'cwtm', which weighs rows by the largest probability of members that ids were not "
                "drawn from together, or that count unequally"
            )
        return None

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        """The options, with their defaults filled in.

        Raises:
            EdistillError: the objective needs classes and the task has none, or an option contradicts the objective.
        """
        assert isinstance(options, BornAgainOptions)
        objective, weight = options.objective, options.label_weight
        if objective not in COPIES and options.closed_form:
            raise EdistillError(
                f"method.closed-form is on, and it solves for what the teacher says, which method.objective "
                f"{objective!r} does not learn. Use ban or ban+l, or leave closed-form out."
            )
        if not task.one_class and objective in ("cwtm", "dkpp"):
            raise EdistillError(
                f"method.objective is {objective!r}, which is about the probabilities of classes, and the task is "
                f"{task.key}. Use ban or ban+l."
            )
        settled = options.model_copy(update=settled_form(options, False))  # off: the paper does not solve
        if objective == "ban+l":
            return settled.model_copy(update={"label_weight": 1.0 if weight is None else weight})
        if weight is not None:
            raise EdistillError(
                f"method.label-weight is {weight:g}, and method.objective {objective!r} has no such weight. Set "
                'method.objective to "ban+l", or leave the weight out.'
            )
        return settled

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        return idle_ridge(options)

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, BornAgainOptions)
        weight = 1.0 if options.label_weight is None else options.label_weight

        def with_labels(batch: Batch, student: Predictive, step: Step) -> Tensor:
            return teacher_loss(batch, student, step) + weight * labels_loss(batch, student)

        losses = {
            "ban": teacher_loss,
            "ban+l": with_labels,
            "cwtm": confidence_weighted_loss,
            "dkpp": permuted_loss,
        }
        stage = Stage(options.objective, 1.0, lambda student: student, losses[options.objective], watch=gradient_split)
        return solved_on_the_way(options, stage, solved_heads(options, together(1.0)))


METHOD = BornAgain
