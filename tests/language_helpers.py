"""A tiny language: texts, members of them, and the folder of a user who has both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ensemble_distill import load_settings
from ensemble_distill.settings import Settings
from ensemble_distill.tasks.checks.positions import IGNORED

WINDOW, CONTEXT, MEMBERS = 5, 4, 4
TOKENS = {"train": 131, "validation": 62, "test": 107}
VOCABULARY = ("<unk>", "<eos>", *"abcdefgh")
MODEL = """
import torch
from torch import nn


class Body(nn.Module):
    def __init__(self, tokens=10, width=6):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.rnn = nn.LSTM(width, width, batch_first=True)

    def forward(self, ids, state=None):
        return self.rnn(self.embedding(ids), state)


class Model(nn.Module):
    def __init__(self, tokens=10, width=6):
        super().__init__()
        self.body, self.decoder = Body(tokens, width), nn.Linear(width, tokens)

    def forward(self, ids, state=None):
        features, state = self.body(ids, state)
        return 4 * self.decoder(features), state


class Seen(nn.Module):
    # the sum of all that it has seen so far, in the first of its numbers
    def __init__(self, numbers=10):
        super().__init__()
        self.numbers, self.scale = numbers, nn.Parameter(torch.rand(1).mul(8).ceil())

    def forward(self, ids):
        seen = ids.cumsum(1).float() * self.scale
        return torch.nn.functional.pad(seen.unsqueeze(-1), (0, self.numbers - 1))


class Tagger(nn.Module):
    # no state and no context: a class for each position
    def __init__(self, tokens=20, classes=3):
        super().__init__()
        self.table = nn.Embedding(tokens, classes)

    def forward(self, ids):
        return self.table(ids)


def make_features(width=4):
    return nn.Embedding(20, width)
"""
TOML = f"""
task = "language-modelling"
tokens = {{ vocabulary = "vocabulary.txt", window = {WINDOW}, context = {CONTEXT} }}
teachers.model = "model.py:Model"
student.model = "model.py:Body"
data.train = "train.txt"
data.validation = "validation.txt"
data.test = "test.txt"
train.epochs = 1
train.batch-size = 8
train.device = "cpu"
train.workers = 0
"""


def words(count: int, seed: int) -> str:
    """A text of so many tokens, the ends of its lines among them."""
    drawn, tokens = np.random.default_rng(seed), []
    while len(tokens) < count - 2:
        tokens += ["\n"] if tokens and drawn.random() < 0.15 else ["abcdefgh"[drawn.integers(8)]]
    return " ".join([*tokens, "a", "\n"])


def make_language(folder: Path) -> None:
    """Texts, four random members and an edistill.toml."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "edistill.toml").write_text(TOML)
    (folder / "vocabulary.txt").write_text("\n".join(VOCABULARY) + "\n")
    for seed, (name, count) in enumerate(TOKENS.items()):
        (folder / f"{name}.txt").write_text(words(count, seed))
    save_members(folder, "Model")


def save_members(folder: Path, model: str, count: int = MEMBERS, **kwargs: Any) -> None:
    """Members of one of the models above, each with weights of its own."""
    made: dict[str, Any] = {}
    exec(MODEL, made)
    (folder / "teachers").mkdir(exist_ok=True)
    for seed in range(count):
        torch.manual_seed(seed)
        save_file(made[model](**kwargs).state_dict(), folder / "teachers" / f"member-{seed}.safetensors")


def settings(folder: Path, **sets: Any) -> Settings:
    """What the folder's file says, with other values under keys with __ for dots."""
    return load_settings(folder / "edistill.toml", {key.replace("__", "."): value for key, value in sets.items()})


def make_tagged(folder: Path, ignored: float = 0.3, labels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_language(folder / "x")
    (folder / "model.py").write_text((folder / "x" / "model.py").read_text())
    drawn = np.random.default_rng(3)
    for split, rows in {"train": 20, "validation": 12, "test": 12}.items():
        x = drawn.integers(0, 20, (rows, 6))
        y = np.where(drawn.random(x.shape) < ignored, IGNORED, x % labels)
        np.savez(folder / f"{split}.npz", x=x, y=y)
    save_members(folder, "Tagger", classes=3)
    splits = "\n".join(f'data.{split} = "{split}.npz"' for split in ("train", "validation", "test"))
    (folder / "edistill.toml").write_text(
        'task = "language-modelling"\nteachers.model = "model.py:Tagger"\nstudent.model = "model.py:make_features"\n'
        f'{splits}\ntrain.epochs = 2\ntrain.batch-size = 4\ntrain.device = "cpu"\ntrain.workers = 0\n'
    )
