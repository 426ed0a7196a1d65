"""No setting is dropped without a word: every key either acts, or it is told why it does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from idle_helpers import source, teacher
from timm.utils import ModelEmaV3
from tiny import refused
from torch import nn

from ensemble_distill.caching.idle import CACHING, Caching, tell_idle_caching
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.subset import Subset
from ensemble_distill.methods import method_names, open_method
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.settings.idle import is_given
from ensemble_distill.settings.keys import settings_keys
from ensemble_distill.tasks import open_task
from ensemble_distill.teachers.run import MODEL as RUN
from ensemble_distill.training.budget import settled
from ensemble_distill.training.idle import TRAINING, IdleFacts, tell_idle_training
from ensemble_distill.training.state import highest_decay
from ensemble_distill.workspace import Workspace

ROOT = Path(__file__).parents[2]


# --- every key is in a table ------------------------------------------------------------------------------------

# keys that act wherever they are set, or are refused where they cannot


ALWAYS = frozenset(
    {
        "task",
        "limit",
        "teachers.path",
        "teachers.hub",
        "teachers.average",  # of one member it is that member
        # a split is read by whichever command asks for it; names of arrays are refused where there are none
        *(f"data.{split}" for split in ("train", "validation", "test", "calibration", "ood")),
        *(f"data.train.{key}" for key in ("source", "rows", "x", "y", "root", "split")),
        *(f"tokens.{key}" for key in ("unit", "window", "context", "vocabulary", "size")),  # refused of other tasks
        # one without the other is refused
        "data.all",
        "data.split",
        *(f"data.split.{key}" for key in ("validation", "test", "calibration", "seed")),
        *(
            f"data.columns.{key}"
            for key in ("inputs", "images", "text", "array", "categories", "encoding", "labels", "classes")
        ),
        "cache.check-labels",
        "student.model",
        "student.kwargs",
        "student.init",
        # refused where heads, or what they start from, have no such thing
        "student.heads",
        *(f"student.heads.{key}" for key in ("last-stage", "adapt-from", "rank", "compress")),
        "student.compress",
        "student.share",
        "student.tied",  # refused where heads do not read one body
        "cache.dtype",
        "cache.records",
        "cache.batch-size",
        "train.method",
        "train.generations",
        *(
            f"train.{key}"
            for key in ("epochs", "effort", "batch-size", "workers", "opt", "lr", "sched", "weight-decay")
        ),
        *(
            f"train.{key}"
            for key in (
                "clip-grad",
                "amp",
                "torchcompile",
                "model-ema",
                "device",
                "seed",
                "checkpoint-minutes",
                "peer-timeout",
            )
        ),
        "method",  # its options: each method says itself which of them do nothing
        *(f"output.{key}" for key in ("cache", "runs", "name", "log")),
        # parts of tables whose own key stands in another table here
        *(f"teachers.standardized.{key}" for key in ("mean", "std")),
        *(f"teachers.preprocessing.{key}" for key in ("size", "mean", "std")),
        *(
            f"teachers.preprocessing.{key}"
            for key in ("interpolation", "crop-pct", "crop-mode", "channels", "tokenizer", "length")
        ),
        "teachers.members",  # a table that holds for no member is refused
        # the keys of such a table go by the rules of [teachers]; these two act wherever they are set
        *(f"teachers.members.NAME.{key}" for key in ("classes", "weight")),
        *(f"teachers.members.NAME.{key}" for key in ("model", "model-kwargs", "output", "standardized")),
        *(f"teachers.members.NAME.{key}" for key in ("variance", "preprocessing", "inputs")),
    }
)


def test_every_key_of_the_file_is_known_to_act_or_has_a_rule_that_tells() -> None:
    keys = {key.key for key in settings_keys()}
    assert keys == ALWAYS | CACHING.keys() | TRAINING.keys()
    assert not ALWAYS & (CACHING.keys() | TRAINING.keys())


# an option of a method that does nothing beside which others; a new option stands here or in ACTING
IDLE_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "hydra": {"ridge": {"closed-form": False, "ridge": 0.1}},
    **{
        name: {option: {"closed-form": False} for option in ("ridge", "solve-after")}
        for name in ("kd", "ban", "supervised")
    },
    "endd": {"anneal-share": {"first-temperature": 1, "anneal-share": 0.5}},
}
REFUSED_OPTIONS = {"hydra": {"deviation-weight"}, "ban": {"label-weight"}}  # where they do nothing: see their own tests
ACTING = {
    "hydra": {"temperature", "hinton-share", "loss", "row-weight", "label-weight", "closed-form"},
    "batch-ensemble": {"temperature", "hinton-share", "spread"},
    "kd": {"temperature", "closed-form"},
    "supervised": {"closed-form"},
    "endd": {"first-temperature", "smoothing"},
    "proxy-endd": {"divisor", "max-precision"},
    "ban": {"objective", "closed-form"},
}


def test_every_option_of_a_method_acts_or_is_told() -> None:
    for name in method_names():
        method = open_method(name)
        options = {field.replace("_", "-") for field in method.Options.model_fields}
        cases = IDLE_OPTIONS.get(name, {})
        assert options == ACTING.get(name, set()) | cases.keys() | REFUSED_OPTIONS.get(name, set())
        for option, given in cases.items():
            assert option in method.idle(method.Options.model_validate(given))
        defaults = method.settled(method.Options(), open_task("classification"), False)
        assert set(method.idle(defaults)) <= options


# --- each rule --------------------------------------------------------------------------------------------------


def of(values: Mapping[str, Any]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        table, _, last = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[last] = value
    return Settings.model_validate(nested, context={"root": ROOT})


def told_caching(values: Mapping[str, Any], sources: Mapping[str, Any], teachers: list[Any]) -> Silent:
    progress = Silent()
    tell_idle_caching(Caching(of(values), sources, teachers), progress)
    return progress


def told_training(
    values: Mapping[str, Any], sources: Mapping[str, Any], normalizes: bool = True, steps: int = 3000
) -> Silent:
    asked, progress = of(values), Silent()
    method, options = Workspace(asked).method
    stages = method.stages(options, 2)
    facts = IdleFacts(settled(asked.train, lambda: 1000, False), sources, method, options, stages, normalizes, steps)
    tell_idle_training(facts, partial(is_given, asked), progress)
    return progress


PIXELS = {"train": source(), "test": source()}
TENSORS = {"train": source("tensor")}
FOLDER = teacher(bare=False, model="resnet18")
MEAN = {"task": "regression", "teachers.output": "mean", "teachers.variance": 0.1}
CACHING_CASES: dict[str, tuple[dict[str, Any], Mapping[str, Any], list[Any]]] = {
    "teachers.model": ({"teachers.model": "resnet18"}, PIXELS, [FOLDER]),
    "teachers.model-kwargs": ({"teachers.model-kwargs": {"a": 1}}, PIXELS, [FOLDER]),
    "teachers.output": ({"teachers.output": "probabilities"}, PIXELS, [teacher(False, RUN)]),
    "teachers.standardized": (
        {**MEAN, "teachers.standardized": {"mean": 1.0, "std": 2.0}},
        PIXELS,
        [teacher(False, RUN)],
    ),
    "teachers.variance": (MEAN, PIXELS, [teacher(False, RUN)]),
    "teachers.preprocessing": ({"teachers.preprocessing": {"mean": (0.25,)}}, PIXELS, [FOLDER]),
    "teachers.inputs": ({"teachers.inputs": {"x": "image"}}, PIXELS, [teacher()]),
    "cache.samples": ({"cache.records": "dense", "cache.samples": 5}, PIXELS, [teacher()]),
    "cache.decoded": ({"cache.decoded": True}, {"train": source("text")}, [teacher()]),
    "data.columns": ({"data.columns": {"inputs": ["a"]}}, PIXELS, [teacher()]),
    "teachers.as": ({"teachers.as": "heads"}, PIXELS, [teacher()]),
    "teachers.folds": ({"teachers.folds": "folds.npy"}, {"test": source()}, [teacher()]),
    "views.count": ({"views.count": 8}, PIXELS, [teacher()]),
    "views.seed": ({"views.seed": 8, "views.transform": "mixup"}, {"test": source()}, [teacher()]),
    "views.transform": ({"views.transform": "mixup"}, {"test": source()}, [teacher()]),
}


def test_every_rule_of_caching_has_a_case() -> None:
    assert CACHING_CASES.keys() == CACHING.keys()


def test_a_setting_of_members_or_views_that_does_nothing_is_told() -> None:
    for key in CACHING_CASES:
        values, sources, teachers = CACHING_CASES[key]
        told = told_caching(values, sources, teachers)
        assert any(text.startswith(f"{key} is set and does nothing: ") for text in told.warnings + told.notes)
        rest = {name: value for name, value in values.items() if name != key}
        if key not in ("teachers.variance",):  # which the task's output asks for
            again = told_caching(rest, sources, teachers)  # the remedy: leave it out
            assert not any(text.startswith(f"{key} ") for text in again.warnings + again.notes)


def test_a_table_of_members_goes_by_the_same_rules() -> None:
    tables = {"teachers": {"members": {"wide-*": {"model": "m.py:wide"}}}}
    wide, other = teacher(name="wide-0"), teacher(name="member-0")
    folder = teacher(False, "resnet18", name="wide-0")

    def told(settings: dict[str, Any], *members: Any) -> list[str]:
        progress = Silent()
        asked = Settings.model_validate(settings, context={"root": ROOT})
        tell_idle_caching(Caching(asked, PIXELS, members), progress)
        return progress.warnings

    assert told(tables, wide, other) == []
    assert told(tables, folder, other)[0].startswith('teachers.members."wide-*".model is set and does nothing: it is')
    tables["teachers"]["model"] = "m.py:make"
    assert told(tables, wide, other) == []
    assert told(tables, wide)[0].startswith("teachers.model is set and does nothing: every member has its own")


def test_of_members_that_are_runs_it_is_only_noted_what_describes_others() -> None:
    told = told_caching({"teachers.model": "m.py:make"}, PIXELS, [teacher(False, RUN)])
    assert not told.warnings
    assert told.notes[0].startswith("teachers.model is set and does nothing")


def test_of_what_is_not_stored_decoded_it_is_told_by_name() -> None:
    arrays = Arrays(np.zeros((3, 4, 4, 3), np.uint8), None, "pixels")
    of_an_npz = "the pictures of an .npz are decoded already"
    for rows, told in (
        (arrays, of_an_npz),
        (Subset(arrays, np.array([2, 0])), of_an_npz),
        (source("several"), "rows are several arrays, whose pictures are decoded as they are read"),
        *((source(kind), f"rows are {kind}, and nothing is decoded") for kind in ("features", "series", "volume")),
        *((source(kind), f"rows are {kind}, and nothing is decoded") for kind in ("tensor", "tokens", "text")),
    ):
        heard = told_caching({"cache.decoded": True}, {"train": rows}, [teacher()])
        assert heard.warnings == [f"cache.decoded is set and does nothing: {told}. Leave it out."]
    both = {"train": source(), "test": arrays}  # the one is stored, and of the other nothing is to be
    assert told_caching({"cache.decoded": True}, both, [teacher()]).warnings == []


def test_what_acts_is_not_told() -> None:
    given = {"mean": (0.5,), "std": (0.5,), "size": (6, 6)}
    values = {"teachers.model": "m.py:make", "teachers.model-kwargs": {"a": 1}, "teachers.preprocessing": given}
    told = told_caching({**values, "views.transform": "mixup", "views.count": 9}, PIXELS, [teacher(), FOLDER])
    assert told.warnings == told.notes == []


TRAINING_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "teachers.weights": ({"teachers.weights": (1.0, 2.0), "train.teacher": "member-0", "train.method": "kd"}, {}),
    "data.transfer": (
        {"data.transfer": "t.npz", "train.method": "supervised"},
        {"sources": {**PIXELS, "transfer": source(labels=False)}},
    ),
    "train.momentum": ({"train.momentum": 0.5}, {}),  # of adamw
    "train.decay-rate": ({"train.decay-rate": 0.25}, {}),
    "train.patience-epochs": ({"train.patience-epochs": 0}, {}),
    "train.plateau-threshold": ({"train.plateau-threshold": 0.5}, {}),
    "train.warmup-epochs": ({"train.warmup-epochs": 5.0, "train.epochs": 10}, {}),  # hydra's first stage has three
    "train.freeze-bn": ({"train.freeze-bn": True}, {"normalizes": False}),
    "train.channels-last": ({"train.channels-last": True}, {"sources": {"train": source("features")}}),
    "train.amp-dtype": ({"train.amp-dtype": "float16"}, {}),
    "train.model-ema-decay": ({"train.model-ema-decay": 0.9}, {}),
    "method.ridge": ({"method": IDLE_OPTIONS["hydra"]["ridge"]}, {}),
    "method.anneal-share": ({"method": IDLE_OPTIONS["endd"]["anneal-share"], "train.method": "endd"}, {}),
}
REFUSED = ("teachers.preprocessing", "student.preprocessing", "train.teacher")


def test_every_rule_of_training_has_a_case() -> None:
    assert {key for key in TRAINING_CASES if not key.startswith("method.")} | set(REFUSED) == TRAINING.keys()


def test_a_setting_of_the_training_that_does_nothing_is_warned_of() -> None:
    for key in TRAINING_CASES:
        values, more = TRAINING_CASES[key]
        sources = more.get("sources", PIXELS)
        told = told_training(values, sources, more.get("normalizes", True))
        assert [text for text in told.warnings if text.startswith(f"{key} is set and does nothing: ")]


def test_of_what_acts_in_training_nothing_is_told() -> None:
    values = {
        "train.amp": True,
        "train.amp-dtype": "float16",
        "train.model-ema": True,
        "train.model-ema-decay": 0.9,
        "train.warmup-epochs": 2.0,
        "train.opt": "sgd",
        "train.momentum": 0.5,
        "train.sched": "plateau",
        "train.decay-rate": 0.25,
        "train.patience-epochs": 0,
        "train.plateau-threshold": 0.5,
        "train.freeze-bn": True,
        "train.channels-last": True,
        "data.transfer": "t.npz",
        "method": {"ridge": 0.1},
    }
    assert told_training(values, {**PIXELS, "transfer": source(labels=False)}).warnings == []


def test_a_decay_that_its_warm_up_does_not_reach_does_nothing() -> None:
    key = "train.model-ema-decay"
    for decay, steps, reached in ((0.9999, 3000, "0.9939"), (0.95, 60, "0.9159"), (0.9, 0, "0 in the 0 steps")):
        told = told_training({"train.model-ema": True, key: decay}, PIXELS, steps=steps)
        assert told.warnings[0].startswith(f"{key} is set and does nothing: its warm-up reaches {reached}")
    assert told_training({"train.model-ema": True, key: 0.99}, PIXELS).warnings == []
    for steps in (1, 2, 3, 60, 2100):
        average = ModelEmaV3(nn.Linear(1, 1), decay=0.99999, use_warmup=True)
        assert highest_decay(steps) == average.get_decay(steps - 1)


def test_preprocessing_of_what_is_no_pixels_is_refused() -> None:
    for key in REFUSED[:2]:
        values = {key: {"mean": (0.3,), "std": (0.2,), "size": (6, 6)}}
        with refused(f"{key} is set and does nothing", "uint8 pixels", "the data holds tensor"):
            told_training(values, TENSORS)
        told_training({}, TENSORS)


def test_a_member_that_is_not_listened_to_is_refused() -> None:
    """Results would differ: evaluate compares with that member alone."""
    named = {"train.teacher": "member-0", "train.method": "supervised"}
    with refused("train.teacher is set and does nothing", "supervised learns from labels alone", "--method kd"):
        told_training(named, PIXELS)
    told_training({**named, "train.method": "kd"}, PIXELS)
    told_training({**named, "train.method": "ban", "method": {"objective": "cwtm"}}, PIXELS)


def test_a_value_that_is_the_default_is_not_given() -> None:
    assert not is_given(of({"train.model-ema-decay": 0.999}), "train.model-ema-decay")
    assert is_given(of({"train.model-ema-decay": 0.9}), "train.model-ema-decay")
    assert not is_given(of({}), "method.ridge")
