"""Settings that apply to nothing: when each key does something, and what is said where one does not.

`CACHING` and `TRAINING` have the keys that may do nothing, each with the rule that tells; a test lists the others, so
that a new key is put on one side or the other. A rule is asked only about a key whose value is not the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Method, Stage
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import Section, Settings
from ensemble_distill.teachers.run import MODEL as RUN
from ensemble_distill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Idle:
    """Why a setting does nothing.

    Attributes:
        why: a clause.
        remedy: what to do, a sentence.
        refused: whether results differ from those of a setting that acts; else it is warned of.
        quiet: whether it is only noted, since nobody asked for anything.
    """

    why: str
    remedy: str = "Leave it out."
    refused: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Caching:
    """What is known when members are about to be asked."""

    settings: Settings
    sources: Mapping[str, Source]
    teachers: Sequence[Teacher]

    @property
    def own(self) -> bool:
        """Whether all members are runs of edistill, which know everything of themselves: then `[teachers]` is what the
        file says of the members that those, in a chain, came from."""
        return all(teacher.member.model == RUN for teacher in self.teachers)


@dataclass(frozen=True)
class Learning:
    """What is known when a student is about to be trained; `normalizes` is whether its body has BatchNorm."""

    settings: Settings
    sources: Mapping[str, Source]
    method: Method
    options: BaseModel
    stages: Sequence[Stage]
    normalizes: bool


# --- members and views ------------------------------------------------------------------------------------------


def _own(facts: Caching) -> dict[str, Any]:
    """Where members are runs of edistill, the settings are those of the ensemble that they learned from."""
    return {"quiet": True, "remedy": "Nothing is to be done."} if facts.own else {}


def _for_bare(facts: Caching) -> Idle | None:
    if any(teacher.bare for teacher in facts.teachers):
        return None
    return Idle("it is for bare checkpoints, and every member is a folder that says what builds it", **_own(facts))


def _for_others(facts: Caching) -> Idle | None:
    return Idle("every member is a run of edistill, which knows what it returns", **_own(facts)) if facts.own else None


def _rendering(facts: Caching) -> Idle | None:
    """Preprocessing acts on pixels, and there where a member's own files do not say otherwise."""
    given = facts.settings.teachers.preprocessing
    if given is None:
        return None
    if told := _no_pixels(facts.sources):
        return told
    used = [teacher.member.preprocessing for teacher in facts.teachers]
    unused = [
        f"{name} = {list(value) if isinstance(value, tuple) else value}"
        for name, value in given
        if value is not None and all(getattr(member, name, None) != value for member in used)
    ]
    if not unused:
        return None
    return Idle(
        f"the files of every member say otherwise than {', '.join(unused)}", "Leave it out, or mend what they say."
    )


def _no_pixels(sources: Mapping[str, Source]) -> Idle | None:
    kinds = sorted({source.kind for source in sources.values()})
    if "pixels" in kinds or not kinds:
        return None
    return Idle(
        f"it is for uint8 pixels, and the data holds {' and '.join(kinds)}, which networks are given as it is",
        "Leave it out; where rows are not normalized yet, normalize the arrays, or store uint8 pixels.",
        refused=True,
    )


def _views(facts: Caching) -> Idle | None:
    if not {"train", "transfer"} & facts.sources.keys():
        return Idle("views are of data.train and data.transfer, and neither is set")
    if facts.settings.views.transform == "none":
        return Idle('views.transform is "none", so that all views are one picture', "Set views.transform.")
    return None


def _transform(facts: Caching) -> Idle | None:
    return None if {"train", "transfer"} & facts.sources.keys() else _views(facts)


# --- training ---------------------------------------------------------------------------------------------------


def _without_teacher(facts: Learning) -> str | None:
    if "teacher" in facts.method.needed(facts.options):
        return None
    return f"{facts.settings.train.method} learns from labels alone"


def _one_teacher(facts: Learning) -> Idle | None:
    return Idle(f"{why}, and evaluate compares with that member alone") if (why := _without_teacher(facts)) else None


def _weights(facts: Learning) -> Idle | None:
    teacher = facts.settings.train.teacher
    return None if teacher is None else Idle(f"the student learns from {teacher} alone")


def _transfer(facts: Learning) -> Idle | None:
    source, why = facts.sources.get("transfer"), _without_teacher(facts)
    return Idle(f"{why}, and its rows have none") if why and source is not None and source.labels is None else None


def _warmup(facts: Learning) -> Idle | None:
    train = facts.settings.train
    short = min(facts.stages, key=lambda stage: stage.share)
    epochs = short.share * train.epochs
    if not 0 < epochs <= train.warmup_epochs:
        return None
    return Idle(
        f"stage {short.name} has {epochs:g} epochs and {train.warmup_epochs:g} are to warm it up, so that it never "
        "trains at train.lr",
        "Set fewer, or raise train.epochs.",
    )


def _batch_norm(facts: Learning) -> Idle | None:
    return None if facts.normalizes else Idle("the student has no BatchNorm")


def _pictures(facts: Learning) -> Idle | None:
    features = all(source.kind == "features" for source in facts.sources.values())
    return Idle("the data holds features, and it is for pictures") if features else None


def _amp(facts: Learning) -> Idle | None:
    return None if facts.settings.train.amp else Idle("train.amp is off", "Set train.amp = true, or leave it out.")


def _average(facts: Learning) -> Idle | None:
    if facts.settings.train.model_ema:
        return None
    return Idle("train.model-ema is off", "Set train.model-ema = true, or leave it out.")


# --- the tables -------------------------------------------------------------------------------------------------

CACHING: Mapping[str, Callable[[Caching], Idle | None]] = {
    "teachers.model": _for_bare,
    "teachers.model-kwargs": _for_bare,
    "teachers.output": _for_others,
    "teachers.standardized": _for_others,
    "teachers.variance": _for_others,
    "teachers.preprocessing": _rendering,
    "views.count": _views,
    "views.transform": _transform,
    "views.seed": _views,
}

TRAINING: Mapping[str, Callable[[Learning], Idle | None]] = {
    "teachers.preprocessing": lambda facts: _no_pixels(facts.sources),
    "teachers.weights": _weights,
    "data.transfer": _transfer,
    "student.preprocessing": lambda facts: _no_pixels(facts.sources),
    "train.teacher": _one_teacher,
    "train.warmup-epochs": _warmup,
    "train.freeze-bn": _batch_norm,
    "train.channels-last": _pictures,
    "train.amp-dtype": _amp,
    "train.model-ema-decay": _average,
}


# --- telling ----------------------------------------------------------------------------------------------------


def tell_idle_caching(facts: Caching, progress: Progress) -> None:
    """Warn of each setting of members and views that does nothing.

    Raises:
        EdistillError: one would change results if it did what it says.
    """
    _tell(facts.settings, {key: rule(facts) for key, rule in CACHING.items()}, progress)


def tell_idle_training(facts: Learning, progress: Progress) -> None:
    """As `tell_idle_caching`, of the student, its training and its method's options."""
    options = {f"method.{key}": Idle(why) for key, why in facts.method.idle(facts.options).items()}
    _tell(facts.settings, {key: rule(facts) for key, rule in TRAINING.items()} | options, progress)


def _tell(settings: Settings, found: Mapping[str, Idle | None], progress: Progress) -> None:
    for key, idle in found.items():
        if idle is None or not is_given(settings, key):
            continue
        told = f"{key} is set and does nothing: {idle.why}. {idle.remedy}"
        if idle.refused:
            raise EdistillError(told)
        (progress.note if idle.quiet else progress.warn)(told)


def is_given(settings: Settings, key: str) -> bool:
    """Whether a dotted key has another value than its default, which is also what a run's own file says of keys that
    nobody set."""
    here: Any = settings
    *tables, last = key.replace("-", "_").split(".")
    for table in tables:
        here = here[table] if isinstance(here, Mapping) else getattr(here, table)
    if isinstance(here, Mapping):
        return any(name.replace("-", "_") == last for name in here)
    assert isinstance(here, Section)
    return bool(getattr(here, last) != type(here).model_fields[last].get_default(call_default_factory=True))
