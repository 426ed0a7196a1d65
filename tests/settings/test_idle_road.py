"""Settings that do nothing, from end to end: what the commands, the quickstart, examples and users' methods tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from idle_helpers import GRAY, source, teacher
from tiny import CLASSES, ROWS, examples, make_folder, refused, save_data, settings

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.idle import Caching, tell_idle_caching
from ensemble_distill.data.texts import Texts
from ensemble_distill.facts import InputColumns, Preprocessing
from ensemble_distill.methods import open_method
from ensemble_distill.methods.method import Options
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.settings.idle import is_given
from ensemble_distill.training.budget import settled
from ensemble_distill.training.idle import IdleFacts, tell_idle_training
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train
from ensemble_distill.workspace import Workspace

ROOT = Path(__file__).parents[2]


# --- the whole road ---------------------------------------------------------------------------------------------


def tensors(folder: Path) -> Path:
    """A folder whose rows are tensors (3, 6, 6), as they are, and whose file still says how pixels are prepared."""
    make_folder(folder, rows={"train": 40, "validation": 12})
    for split in ("train", "validation"):
        x, y = examples(ROWS[split], 3)
        save_data(folder, split, ROWS[split], x=np.repeat(x[:, None] / np.float32(255), 3, axis=1), y=y)
    return folder


QUICK = {"views.transform": "mixup", "train.epochs": 1}


def test_tensors_under_preprocessing_are_refused_and_go_on_without_it(tmp_path: Path) -> None:
    folder = tensors(tmp_path / "tiny")
    with refused("teachers.preprocessing is set and does nothing", "Leave it out"):
        cache_logits(settings(folder, QUICK))
    progress = Silent()
    without = settings(folder, {**QUICK, "teachers.preprocessing": None})
    cache_logits(without, progress=progress)
    train(without, progress=progress)
    assert not progress.warnings


def test_a_cache_that_recorded_such_preprocessing_is_read_when_it_is_left_out(tmp_path: Path) -> None:
    """Version 0.1.0 recorded it, though it did nothing."""
    folder = tensors(tmp_path / "tiny")
    without = settings(folder, {**QUICK, "teachers.preprocessing": None})
    cache_logits(without)
    manifest = Manifest.load(folder / "cache")
    members = tuple(replace(member, preprocessing=GRAY) for member in manifest.members)
    replace(manifest, members=members).save(folder / "cache")
    with refused("teachers.preprocessing is set and does nothing"):
        train(settings(folder, QUICK))
    assert cache_logits(without).added == 0
    assert train(without).heads == 3
    assert Manifest.load(folder / "cache").members[0].preprocessing == GRAY


def test_the_quickstart_warns_of_nothing(digits: Path, settings_of: Callable[..., Settings]) -> None:
    progress, asked = Silent(), settings_of(digits, {"train.epochs": 1})
    cache_logits(asked, progress=progress)
    train(asked, overwrite=True, progress=progress)
    assert progress.warnings == []


TOMLS = [*ROOT.glob("examples/**/edistill.toml"), *ROOT.glob("ensemble_distill/**/edistill.toml")]


def test_no_shipped_file_sets_what_does_nothing() -> None:
    assert len(TOMLS) > 5
    for path in TOMLS:
        asked = load_settings(path)
        kind = "features" if asked.task == "regression" else "pixels"
        texts = asked.data.columns is not None and asked.data.columns.text is not None
        rows: Any = Texts(["a text"], None, None, InputColumns(text="text")) if texts else source(kind)
        sources = dict.fromkeys(asked.splits(), rows)
        given = asked.teachers.preprocessing
        preprocessing = None if given is None else Preprocessing(**given.model_dump(exclude_none=True))
        progress = Silent()
        members = [teacher(asked.teachers.model is not None, "x", preprocessing)]
        tell_idle_caching(Caching(asked, sources, members), progress)
        method, options = Workspace(asked).method
        stages = method.stages(options, CLASSES)
        facts = IdleFacts(settled(asked.train, lambda: 1000, False), sources, method, options, stages, True, 1000)
        tell_idle_training(facts, partial(is_given, asked), progress)
        assert progress.warnings == progress.notes == []


def test_a_user_s_own_method_may_say_what_is_idle() -> None:
    class Mine(Options):
        depth: int = 1

    assert dict(open_method("kd").idle(Mine())) == {}
