"""What the studies train: the runs of each group and seed in order, and the arms that each run provides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Family:
    """A network of model.py, used as a body and, with classes, as a member."""

    factory: str
    kwargs: Mapping[str, int | float | str]

    def told(self, **more: int) -> str:
        """The arguments as TOML."""
        values = {**self.kwargs, **more}.items()
        return "{ " + ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in values) + " }"

    def student(self) -> tuple[str, ...]:
        return _set(**{"student.model": f"model.py:{self.factory}", "student.kwargs": self.told()})


@dataclass(frozen=True)
class Group:
    """Arms of one network that are trained for the same time.

    Attributes:
        family: of the teacher and its students.
        epochs: of each training; 0 for those of the study's edistill.toml.
        generations: of the BAN chain.
        objectives: further objectives, one student each.
        hydra: whether to train one on all generations.
    """

    family: str
    epochs: int = 0
    generations: int = 3
    objectives: tuple[str, ...] = ("ban+l", "cwtm", "dkpp")
    hydra: bool = True

    def brief(self) -> Group:
        """Only the arms that show whether born-again training helps, with one generation."""
        return replace(self, generations=1, objectives=("ban+l",), hydra=False)


@dataclass(frozen=True)
class Study:
    """The data and the groups of a study.

    Attributes:
        folder: beside this file; contains its edistill.toml, with the views, and its tables.
        classes: of CIFAR-10, numbered in alphabetical order.
        train, validation: rows per class.
        groups: by name.
        crossed: whether to train students of other families than their teacher's, as a further group.
    """

    folder: str
    classes: tuple[int, ...]
    train: int
    validation: int
    groups: Mapping[str, Group] = field(default_factory=dict)
    crossed: bool = False

    def names(self) -> tuple[str, ...]:
        return (*self.groups, CROSS) if self.crossed else tuple(self.groups)

    def families(self) -> dict[str, Family]:
        return {group.family: FAMILIES[group.family] for group in self.groups.values()}

    def planned(self, name: str, seed: int, brief: bool = False) -> list[Planned]:
        """The runs of a group and seed, or only those of its brief arms."""
        if name == CROSS:
            return _cross(seed)
        group = self.groups[name].brief() if brief else self.groups[name]
        return _group(name, group, len(self.classes), seed)


@dataclass(frozen=True)
class Planned:
    """A run or a chain, and the commands that make it.

    Attributes:
        arms: the arms it provides, with the name of each in the document of evaluate.
        name: of the run.
        settings: flags shared by cache-logits, train and evaluate.
        flags: of train alone.
        needs: runs of the same group that it learns from.
        lent: runs of other groups that it learns from.
    """

    arms: Mapping[str, str]
    name: str
    settings: tuple[str, ...]
    flags: tuple[str, ...]
    needs: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()

    def folders(self) -> Mapping[str, str]:
        """The run of each arm, relative to runs/; for an average of generations, its last one."""
        return {arm: _folder(self.name, model) for arm, model in self.arms.items()}


FAMILIES = {
    "wrn": Family("wide_resnet", {"depth": 16, "width": 1}),
    "densenet": Family("densenet_bc", {"depth": 22, "growth": 12}),
}
# takes as long per step as WRN-16-1; its stem and output layer have the shapes of the DenseNet's
BAN_RESNET = Family(
    "ban_resnet", {"units": 2, "ratio": 0.5, "block": "basic", "teacher_depth": 22, "teacher_growth": 12}
)
CROSS = "cross"
GRADIENTS = ("ban-1", "ban+l", "cwtm", "dkpp")  # arms whose gradient is split and recorded
STUDENT = "student"
ANIMALS = (2, 3, 4, 5, 7)  # bird, cat, deer, dog, horse
STUDIES = {
    "brief": Study("cifar10", tuple(range(10)), 600, 100, {name: Group(name) for name in FAMILIES}, crossed=True),
    "converged": Study(
        "converged",
        ANIMALS,
        800,
        200,
        {f"wrn-{epochs}": Group("wrn", epochs).brief() for epochs in (17, 50)}
        | {"wrn-100": Group("wrn", 100)}
        | {"wrn-200": Group("wrn", 200).brief()}
        | {"densenet-100": Group("densenet", 100)},
    ),
    "few-views": Study(
        "few-views", ANIMALS, 800, 200, {f"wrn-{epochs}": Group("wrn", epochs).brief() for epochs in (17, 50, 100)}
    ),
}


def _group(name: str, group: Group, classes: int, seed: int) -> list[Planned]:
    family = FAMILIES[group.family]
    long = ("--epochs", str(group.epochs)) if group.epochs else ()
    teacher, chain = f"{name}-teacher-s{seed}", f"{name}-chain-s{seed}"
    # train reads rows and views from a cache, so there must be one before there is a teacher: that of an untrained
    # member, which supervised training ignores
    start = _cached(f"untrained-{group.family}", f"cache-{group.family}") + family.student()
    start += _set(
        **{"teachers.model": f"model.py:{family.factory}", "teachers.model-kwargs": family.told(classes=classes)}
    )
    taught = _cached(f"runs/{teacher}", f"cache-{name}-s{seed}") + family.student()
    averaged = _cached(f"runs/{chain}", f"cache-{name}-bane-s{seed}") + family.student()
    generations = ("--generations", str(group.generations))
    hydra = _one(
        "hydra", f"{name}-hydra-s{seed}", averaged, ("--method", "hydra", *long, *_seed(2000 + seed)), needs=(chain,)
    )
    return [
        _one("teacher", teacher, start, ("--method", "supervised", *long, *_seed(seed))),
        _one("second", f"{name}-second-s{seed}", start, ("--method", "supervised", *long, *_seed(100 + seed))),
        Planned(
            _of_chain(group.generations),
            chain,
            taught,
            ("--method", "ban", *generations, *long, *_seed(seed)),
            (teacher,),
        ),
        *(
            _one(
                objective,
                f"{name}-{objective.replace('+', '')}-s{seed}",
                taught,
                # with the same seed, student and teacher would start from the same weights
                ("--method", "ban", *_set(**{"method.objective": objective}), *long, *_seed(1000 + seed)),
                needs=(teacher,),
            )
            for objective in group.objectives
        ),
        *([hydra] if group.hydra else []),
    ]


def _of_chain(generations: int) -> dict[str, str]:
    """The arms of a chain: each generation, and the averages of the first two or more."""
    born = range(1, generations + 1)
    return {f"ban-{k}": f"generation-{k}" for k in born} | {f"bane-{k}": f"bane-{k}" for k in born[1:]}


def _cross(seed: int) -> list[Planned]:
    """Students of other families than their teachers, which the families' own groups train."""
    wrn, densenet = (f"{name}-teacher-s{seed}" for name in ("wrn", "densenet"))
    # separate caches, which no other process writes
    of_wrn = _cached(f"runs/{wrn}", f"cache-cross-wrn-s{seed}")
    of_densenet = _cached(f"runs/{densenet}", f"cache-cross-densenet-s{seed}")
    ban = ("--method", "ban", *_seed(1000 + seed))
    shared = ("--share", "stem=stem", "--share", "head=head")
    resnet = of_densenet + BAN_RESNET.student()
    plain = ("--method", "supervised", *_seed(1000 + seed))
    return [
        _one("densenet-from-wrn", f"densenet-from-wrn-s{seed}", of_wrn + FAMILIES["densenet"].student(), ban, lent=wrn),
        _one("wrn-from-densenet", f"wrn-from-densenet-s{seed}", of_densenet + FAMILIES["wrn"].student(), ban, densenet),
        _one("ban-resnet", f"ban-resnet-s{seed}", resnet, (*ban, *shared), lent=densenet),
        _one("ban-resnet-plain", f"ban-resnet-plain-s{seed}", resnet, plain, lent=densenet),
    ]


def _one(
    arm: str,
    name: str,
    settings: tuple[str, ...],
    flags: tuple[str, ...],
    lent: str | None = None,
    needs: tuple[str, ...] = (),
) -> Planned:
    return Planned({arm: STUDENT}, name, settings, flags, needs, () if lent is None else (lent,))


def _folder(name: str, model: str) -> str:
    return name if model == STUDENT else f"{name}/{model.replace('bane', 'generation')}"


def _cached(teachers: str, cache: str) -> tuple[str, ...]:
    return _set(**{"teachers.path": teachers, "output.cache": cache})


def _seed(seed: int) -> tuple[str, str]:
    return "--seed", str(seed)


def _set(**values: str) -> tuple[str, ...]:
    return tuple(part for key, value in values.items() for part in ("--set", f"{key}={value}"))
