"""Ready-made outputs alone, of rows of which no member says how they become an input: texts, and several arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_helpers
from numpy.testing import assert_allclose, assert_array_equal
from several_helpers import rows, write_arrays
from tiny import refused

from ensemble_distill import cache_logits, evaluate, export, predict, train, views_of
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data import rendition
from ensemble_distill.data.rendering import render
from ensemble_distill.data.views import token_dropout
from ensemble_distill.settings import Settings, settings_from

N, V, M = 30, 2, 2
BODIES = """
import torch
from torch import nn

class Arrays(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.layer = nn.Linear(sum(sizes), 8)

    def forward(self, pixel_values=None, x=None, a=None, b=None):
        there = [one.flatten(1) for one in (pixel_values, x, a, b) if one is not None]
        return self.layer(torch.cat(there, 1))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(99, 8)

    def forward(self, input_ids, attention_mask, **others):
        return (self.layer(input_ids) * attention_mask.unsqueeze(-1)).sum(1)
"""


def made(folder: Path, kind: str, transform: str) -> Settings:
    """Members are to be written yet."""
    (folder / "model.py").write_text(BODIES)
    student: dict[str, Any] = {"model": "model.py:Arrays", "kwargs": {}}
    columns: dict[str, Any] = {}
    for seed, (split, count) in enumerate({"train": N, "test": 12}.items()):
        if kind in ("text", "pair"):
            texts, labels = text_helpers.texts(count, seed)
            others = [f"ä {text}" for text in reversed(texts)]
            lines = [f"{text},{other},{label}" for text, other, label in zip(texts, others, labels, strict=True)]
            (folder / f"{split}.csv").write_text("\n".join(["text,other,label", *lines]) + "\n", encoding="utf-8")
        elif kind == "picture and numbers":
            write_arrays(folder / f"{split}.npz", count, seed)
        else:
            _, numbers, y = rows(count, seed)
            np.savez(folder / f"{split}.npz", a=numbers, b=-2 * numbers[:, :2], y=y)
    if kind in ("text", "pair"):
        text_helpers.tokenizer().save(str(folder / "tokenizer.json"))
        student = {"model": "model.py:Words", "preprocessing": {"tokenizer": "tokenizer.json", "length": 12}}
        columns = {"text": "text" if kind == "text" else ["text", "other"], "labels": ["label"]}
        data: dict[str, Any] = {split: f"{split}.csv" for split in ("train", "test")}
        data["columns"] = columns | {"classes": ["cat", "dog", "owl"]}
    elif kind == "picture and numbers":
        names = ["pixel_values", "x"]
        student["model"] = "model.py:make"
        (folder / "model.py").write_text(BODIES + "\ndef make():\n    return Arrays(108, 3)\n")
        student["preprocessing"] = {"size": [6, 6], "mean": [0.5], "std": [0.5]}
        data = {split: {"source": f"{split}.npz", "x": names} for split in ("train", "test")}
    else:
        (folder / "model.py").write_text(BODIES + "\ndef make():\n    return Arrays(3, 2)\n")
        student["model"] = "model.py:make"
        data = {split: {"source": f"{split}.npz", "x": ["a", "b"]} for split in ("train", "test")}
    given = {
        "data": data,
        "views": {"transform": transform, "count": V},
        "student": student,
        "train": {"epochs": 2, "batch-size": 8, "device": "cpu", "workers": 0},
        "cache": {"dtype": "float32", "batch-size": 7},
    }
    return settings_from(given, folder)


def write(folder: Path, views: int) -> Any:
    """Members that say anything; returns it, (M, V, N, 3)."""
    said = np.random.default_rng(0).normal(size=(M, views, N, 3)).astype(np.float32)
    (folder / "teachers").mkdir()
    for member in range(M):
        test = np.random.default_rng(9 + member).normal(size=(12, 3)).astype(np.float32)
        train_said = said[member] if views > 1 else said[member, 0]
        np.savez(folder / "teachers" / f"m-{member}.npz", train=train_said, test=test)
    return said


KINDS = {
    "text": "token-dropout",
    "pair": "token-dropout",
    "picture and numbers": "crop-flip+noise",
    "numbers twice": "mixup+noise",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("viewed", [False, True], ids=["plain", "viewed"])
def test_they_are_cached_and_learned_from(tmp_path: Path, kind: str, viewed: bool) -> None:
    asked = made(tmp_path, kind, KINDS[kind] if viewed else "none")
    views = V if viewed else 1
    said = write(tmp_path, views)
    cache_logits(asked)
    records = Cache(tmp_path / "cache").open("train", views)
    for view in range(views):
        z = records.read(range(N), view) - said[:, view].swapaxes(0, 1)
        assert_allclose(z - z[..., :1], 0, atol=1e-5)  # but for a constant of each row and member
    assert cache_logits(asked).added == 0
    train(asked)
    assert evaluate(asked).rows == 12
    if viewed:
        return
    (file,) = export(asked, onnx=True).files
    test = str(tmp_path / ("test.csv" if kind in ("text", "pair") else "test.npz"))
    assert len(predict(file, [test]).rows) == 12


def test_a_transform_of_texts_that_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made(tmp_path, "text", "token-dropout")
    write(tmp_path, V)
    cache_logits(asked)
    monkeypatch.setattr(token_dropout, "SHARE", 0.6)
    with refused("of train", "The transform or the tokenizer has changed", "--overwrite"):
        train(asked)


def test_a_picture_that_has_changed_on_the_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made(tmp_path, "picture and numbers", "crop-flip+noise")
    write(tmp_path, V)
    cache_logits(asked)
    monkeypatch.setattr(rendition, "render", lambda x, to: 1 - render(x, to))
    with refused("of train differs by", "--overwrite"):
        train(asked)


# --- what is asked elsewhere ------------------------------------------------------------------------------------


def test_views_of_several_arrays_are_each_by_its_name(tmp_path: Path) -> None:
    (plain,) = views_of(made(tmp_path, "picture and numbers", "none"))
    pixels, numbers, _ = rows(N)
    assert list(plain) == ["pixel_values", "x"]
    assert_allclose(plain["pixel_values"], pixels.transpose(0, 3, 1, 2) / np.float32(255), atol=1e-6)
    assert_array_equal(plain["x"], numbers)
    first, second = views_of(made(tmp_path, "picture and numbers", "mixup"))
    for view in (first, second):
        assert view["x"].shape == (N, 3)
        assert 0 <= view["pixel_values"].min() < view["pixel_values"].max() <= 1
        apart = view["x"] - numbers  # both of a row are mixed with the same other, by the same weight
        mixed = np.abs(apart).max(1) > 1e-6
        assert mixed.any()
        assert (np.abs(view["pixel_values"] - plain["pixel_values"]).max((1, 2, 3)) > 1e-6)[mixed].all()


def test_views_of_two_arrays_of_numbers(tmp_path: Path) -> None:
    (plain,) = views_of(made(tmp_path, "numbers twice", "none"))
    _, numbers, _ = rows(N)
    assert_array_equal(plain["a"], numbers)
    assert_array_equal(plain["b"], -2 * numbers[:, :2])
    first, second = views_of(made(tmp_path, "numbers twice", "swap"))
    assert any((first[name] != second[name]).any() for name in ("a", "b"))


def test_views_of_texts_are_texts(tmp_path: Path) -> None:
    texts, _ = text_helpers.texts(N)
    (plain,) = views_of(made(tmp_path, "text", "none"))
    assert plain.tolist() == texts
    (pairs,) = views_of(made(tmp_path, "pair", "none"))
    assert pairs.tolist() == [[text, f"ä {other}"] for text, other in zip(texts, reversed(texts), strict=True)]
    for view in views_of(made(tmp_path, "text", "token-dropout")):
        assert view.tolist() != texts
        for left, text in zip(view.tolist(), texts, strict=True):
            words = iter(text.split())
            assert all(word in words for word in left.split()), "the same words, in their order"


def test_views_of_long_texts_are_whole(tmp_path: Path) -> None:
    asked = made(tmp_path, "text", "none")
    long = " ".join(f"wört{at}" for at in range(300))
    (tmp_path / "train.csv").write_text(f"text,other,label\n{long},b,cat\nshort,b,dog\na,b,owl\n", encoding="utf-8")
    (found,) = views_of(asked)
    assert found.tolist() == [long, "short", "a"]
    (tmp_path / "train.csv").write_text(f"text,other,label\n{'ab ' * 30000},b,cat\ns,b,dog\na,b,owl\n")
    with refused("65,536 bytes or more", "Cut it"):
        list(views_of(asked))
