"""When each key of a student, its training and its method's options has an effect.

`TRAINING` lists the keys that may have none, each with the rule that decides. A test lists all others, so a new key has
to go on one side or the other. A rule is asked only about a key whose value is not the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from ensemble_distill.data.source import Source
from ensemble_distill.methods.method import Method, Stage
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import counted
from ensemble_distill.settings.idle import Idle, no_pixels, tell
from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.state import highest_decay


@dataclass(frozen=True)
class IdleFacts:
    """What is known just before a student is trained.

    Attributes:
        normalizes: whether its body has BatchNorm.
        steps: of the whole training.
    """

    train: SettledTraining
    sources: Mapping[str, Source]
    method: Method
    options: BaseModel
    stages: Sequence[Stage]
    normalizes: bool
    steps: int


def _no_pixels(facts: IdleFacts) -> Idle | None:
    return no_pixels(source.kind for source in facts.sources.values())


def _without_teacher(facts: IdleFacts) -> str | None:
    if "teacher" in facts.method.needed(facts.options):
        return None
    return f"{facts.train.method} learns from labels alone"


def _one_teacher(facts: IdleFacts) -> Idle | None:
    why = _without_teacher(facts)
    remedy = "Leave it out, or use --method kd or ban."
    return Idle(f"{why}, and evaluate would compare with that member alone", remedy, refused=True) if why else None


def _weights(facts: IdleFacts) -> Idle | None:
    teacher = facts.train.teacher
    return None if teacher is None else Idle(f"the student learns from {teacher} alone")


def _transfer(facts: IdleFacts) -> Idle | None:
    source, why = facts.sources.get("transfer"), _without_teacher(facts)
    return Idle(f"{why}, and its rows have none") if why and source is not None and source.labels is None else None


def _warmup(facts: IdleFacts) -> Idle | None:
    train = facts.train
    short = min(facts.stages, key=lambda stage: stage.share)
    epochs = short.share * train.epochs
    if not 0 < epochs <= train.warmup_epochs:
        return None
    return Idle(
        f"stage {short.name} has {epochs:g} epochs and {train.warmup_epochs:g} are to warm it up, so that it never "
        "trains at train.lr",
        "Set fewer, or raise train.epochs.",
    )


def _no_plateau(facts: IdleFacts) -> Idle | None:
    sched = facts.train.sched
    return None if sched == "plateau" else Idle(f"train.sched is {sched!r}", "Set --sched plateau, or leave it out.")


def _momentum(facts: IdleFacts) -> Idle | None:
    from timm.optim import get_optimizer_info

    opt = facts.train.opt
    try:
        has = get_optimizer_info(opt).has_momentum
    except ValueError:
        return None  # no such optimizer: building it raises the error
    return None if has else Idle(f"train.opt {opt!r} has none")


def _batch_norm(facts: IdleFacts) -> Idle | None:
    return None if facts.normalizes else Idle("the student has no BatchNorm")


def _pictures(facts: IdleFacts) -> Idle | None:
    kinds = {source.kind for source in facts.sources.values()}
    if kinds <= {"features", "several"}:
        what = "rows are several arrays" if "several" in kinds else "the data holds features"
        return Idle(f"{what}, and it is for pictures alone")
    return None


def _amp(facts: IdleFacts) -> Idle | None:
    return None if facts.train.amp else Idle("train.amp is off", "Set train.amp = true, or leave it out.")


def _average(facts: IdleFacts) -> Idle | None:
    """None also where the average's warm-up reaches the decay; see `States.fresh`."""
    if not facts.train.model_ema:
        return Idle("train.model-ema is off", "Set train.model-ema = true, or leave it out.")
    longest = max(facts.stages, key=lambda stage: stage.share)
    steps = round(longest.share * facts.steps)
    reached = highest_decay(steps)
    if reached > facts.train.model_ema_decay:
        return None
    return Idle(
        f"its warm-up reaches {reached:.4g} in the {counted(steps, 'step')} of stage {longest.name}, the longest",
        f"Leave it out, set it below {reached:.4g}, or raise train.epochs.",
    )


TRAINING: Mapping[str, Callable[[IdleFacts], Idle | None]] = {
    "teachers.preprocessing": _no_pixels,
    "teachers.weights": _weights,
    "data.transfer": _transfer,
    "student.preprocessing": _no_pixels,
    "train.teacher": _one_teacher,
    "train.momentum": _momentum,
    "train.decay-rate": _no_plateau,
    "train.patience-epochs": _no_plateau,
    "train.plateau-threshold": _no_plateau,
    "train.warmup-epochs": _warmup,
    "train.freeze-bn": _batch_norm,
    "train.channels-last": _pictures,
    "train.amp-dtype": _amp,
    "train.model-ema-decay": _average,
}


def tell_idle_training(facts: IdleFacts, given: Callable[[str], bool], progress: Progress) -> None:
    """Warn about each setting of the student, its training and its method's options that has no effect.

    Args:
        given: whether a dotted key was given.

    Raises:
        EdistillError: such a setting would change results if it had its effect.
    """
    options = {f"method.{key}": Idle(why) for key, why in facts.method.idle(facts.options).items()}
    tell(given, {key: rule(facts) for key, rule in TRAINING.items()} | options, progress)
