"""Outputs of views, made elsewhere: each is that of its own view and row, and of none that was made otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import make_folder, refused, settings

from ensemble_distill import cache_logits, evaluate, train, views_of
from ensemble_distill.cache.reader import Cache
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings, settings_from

N, V, M = 30, 3, 2


def said_of(x: Any, member: int) -> Any:
    w = np.random.default_rng(member).normal(size=(4, 3))
    return (np.abs(x) @ w).astype(np.float32)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 8)\n")
    rng = np.random.default_rng(0)
    for split, rows in (("train", N), ("test", 12)):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.abs(x[:, :3]).argmax(1))
    found = settings_from(
        {
            "data": {"train": "train.npz", "test": "test.npz"},
            "views": {"transform": "noise", "count": V, "seed": 5},
            "student": {"model": "model.py:body"},
            "train": {"epochs": 2, "batch-size": 8, "device": "cpu", "workers": 0},
            "cache": {"dtype": "float32", "batch-size": 7},
        },
        tmp_path,
    )
    write(found, tmp_path)
    return found


def write(asked: Settings, folder: Path, views: int = V, **said: Any) -> None:
    (folder / "teachers").mkdir(exist_ok=True)
    test = np.load(folder / "test.npz")["x"]
    for member in range(M):
        of_views = np.stack([said_of(x, member) for x in views_of(asked)][:views])
        np.savez(folder / "teachers" / f"m-{member}.npz", train=of_views, test=said_of(test, member), **said)


def test_each_view_is_cached_as_its_own_and_learned_from(made: Settings, tmp_path: Path) -> None:
    heard = Silent()
    cache_logits(made, progress=heard)
    assert any("does not say the transform and the seed of its views" in text for text in heard.notes)
    records, rendered = Cache(tmp_path / "cache").open("train", V), list(views_of(made))
    assert not np.allclose(rendered[0], rendered[1])
    for view in range(V):
        for member in range(M):
            said = records.read(range(N), view)[:, member]
            assert_allclose(said, said_of(rendered[view], member), rtol=1e-5, atol=1e-5)
    assert cache_logits(made).added == 0
    train(made)
    assert evaluate(made).models["student"]
    with refused("Member m-0 has outputs of 3 views of train", "none of its rows as they are"):
        evaluate(made, split="train")


def with_views(made: Settings, **views: Any) -> Settings:
    return made.model_copy(update={"views": made.views.model_copy(update=views)})


def test_views_that_were_made_otherwise_are_refused_with_both_values(made: Settings, tmp_path: Path) -> None:
    with refused("of count 3, and views.count is 2", "Set views.count to that"):
        cache_logits(with_views(made, count=2))
    with refused("outputs of 3 views of train", "is shown as it is", "views.transform"):
        cache_logits(with_views(made, transform="none"))
    write(made, tmp_path, transform="noise", seed=5)
    heard = Silent()
    cache_logits(made, progress=heard)
    assert not any("does not say" in text for text in heard.notes)
    write(made, tmp_path, transform="noise", seed=6)
    with refused("of seed 6, and views.seed is 5"):
        cache_logits(made, overwrite=True)
    write(made, tmp_path, transform="swap", seed=5)
    with refused("of transform swap, and views.transform is noise"):
        cache_logits(made, overwrite=True)


def test_views_of_pictures_are_in_unit_range(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    views = list(views_of(settings(folder)))
    assert [view.shape for view in views] == [(40, 1, 6, 6)] * 2
    assert all(0 <= view.min() < view.max() <= 1 for view in views)
    assert len(list(views_of(settings(folder), "test"))) == 1
