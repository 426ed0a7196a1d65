"""A folder with a text, a vocabulary and an ensemble of LSTMs, trained by the recipe of the born-again paper.

Run python examples/language/make.py wikipedia ../shared/data/text, where that folder contains WikiText-2's validation
and test texts: the first becomes training and validation text, half of the second becomes the test text.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

UNROLL, CLIP = 35, 5.0
TOML = """task = "language-modelling"
tokens = {{ vocabulary = "vocabulary.txt", window = 35, context = 35 }}

[teachers]
path = "teachers"
model = "model.py:make_teacher"
model-kwargs = {{ width = {width}, network = "{network}" }}

[data]
train = "train.txt"
validation = "validation.txt"
test = "test.txt"

[student]
model = "model.py:{network}"
kwargs = {{ width = {width} }}
{tied}heads = [{width}]                       # each head has a layer of its own before its output layer

[train]
batch-size = 16                     # windows of 35 tokens
lr = 0.004
clip-grad = 0.5
epochs = {epochs}
"""


TIED = """tied = "embedding"                  # of every head the output layer is the body's embedding
"""


@dataclass(frozen=True)
class Recipe:
    """Section 5 of the paper: SGD whose rate drops when the validation perplexity does not fall far enough.

    Attributes:
        network: a body of model.py.
        batch: lanes that the text is divided into; each lane's state is carried from one step to the next.
        rate: for the loss summed over the 35 steps and averaged over the lanes.
        fall: the factor on the rate.
        threshold: the fall of the perplexity that is far enough.
    """

    network: str = "lstm"
    batch: int = 8
    rate: float = 1.0
    fall: float = 0.25
    threshold: float = 0.0
    epochs: int = 12


PAPER = {"lstm": Recipe(batch=20), "cnn_lstm": Recipe("cnn_lstm", batch=20, rate=2.0, fall=0.5, threshold=0.5)}


def split_texts(texts: Path, folder: Path, share: float, most: int) -> None:
    """Write the train, validation and test texts, and the most frequent tokens of the first, one per line."""
    first = (texts / "wikitext2-valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    second = (texts / "wikitext2-test.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    cut = int(0.85 * len(first))
    parts = {"train": first[: int(share * cut)], "validation": first[cut:], "test": second[: len(second) // 2]}
    for name, lines in parts.items():
        kept = lines if name == "train" else lines[: int(max(share, 0.3) * len(lines))]
        (folder / f"{name}.txt").write_text("".join(kept), encoding="utf-8")
    counts = Counter(token for line in parts["train"] for token in line.split())
    counts.pop("<unk>", None)
    tokens = ["<unk>", "<eos>", *sorted(counts, key=lambda token: (-counts[token], token))][:most]
    (folder / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def read_ids(folder: Path, name: str) -> NDArray[np.int64]:
    vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    at = {token: index for index, token in enumerate(vocabulary)}
    lines = (folder / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return np.array([at.get(token, 0) for line in lines for token in (*line.split(), "<eos>")])


def lanes(ids: NDArray[np.int64], batch: int) -> Tensor:
    """The text as `batch` parts side by side, (batch, T)."""
    return torch.from_numpy(ids[: len(ids) // batch * batch].reshape(batch, -1))


@torch.no_grad()
def perplexity(network: nn.Module, ids: NDArray[np.int64]) -> float:
    """The perplexity of a text, with the state carried from its first token to its last."""
    network.eval()
    text, state, nll = torch.from_numpy(ids)[None], None, 0.0
    for start in range(0, text.shape[1] - 1, 500):
        chunk = text[:, start : start + 501]
        out, state = network(chunk[:, :-1], state)
        nll += cross_entropy(out[0], chunk[0, 1:], reduction="sum").item()
    return math.exp(nll / (text.shape[1] - 1))


def train_member(network: nn.Module, folder: Path, seed: int, recipe: Recipe) -> float:
    """Train a member in place to the weights of its best epoch; returns their validation perplexity."""
    torch.manual_seed(seed)
    text, validation = lanes(read_ids(folder, "train"), recipe.batch), read_ids(folder, "validation")
    rate, best, kept = recipe.rate, math.inf, copy.deepcopy(network.state_dict())
    for _ in range(recipe.epochs):
        network.train()
        state = None
        offset = int(torch.randint(UNROLL, ()))  # otherwise every epoch would cut the text at the same tokens
        for start in range(offset, text.shape[1] - 1, UNROLL):
            chunk = text[:, start : start + UNROLL + 1]
            out, state = network(chunk[:, :-1], state)
            state = tuple(part.detach() for part in state)
            loss = cross_entropy(out.flatten(0, 1), chunk[:, 1:].flatten()) * (chunk.shape[1] - 1)
            network.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= rate * parameter.grad
        found = perplexity(network, validation)
        if found >= best - recipe.threshold:
            rate *= recipe.fall
        if found < best:
            best, kept = found, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return best


def make(folder: Path, texts: Path, members: int, share: float, most: int, width: int, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent / "model.py", folder)
    split_texts(texts, folder, share, most)
    (folder / "edistill.toml").write_text(toml(width, recipe), encoding="utf-8")
    (folder / "teachers").mkdir(exist_ok=True)
    for seed in range(members):
        path = folder / "teachers" / f"member-{seed}.safetensors"
        if not path.exists():
            member = new_member(folder, width, seed, recipe.network)
            found = train_member(member, folder, seed, recipe)
            save_member(member, path)
            print(f"{path.name}: validation perplexity {found:.1f}", flush=True)


def toml(width: int, recipe: Recipe) -> str:
    tied = TIED if recipe.network == "lstm" else ""
    return TOML.format(width=width, network=recipe.network, tied=tied, epochs=recipe.epochs)


def save_member(member: nn.Module, path: Path) -> None:
    """Save a member; of tied weights, only the embedding."""
    state = member.state_dict()
    if member.tied:
        del state["decoder.weight"]
    save_file(state, path)


def new_member(folder: Path, width: int, seed: int, network: str = "lstm") -> nn.Module:
    """An untrained member, from the folder's own model.py and vocabulary."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(seed)
    made: nn.Module = module.make_teacher(width, network=network)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A text, its vocabulary, and an ensemble of LSTMs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, help="holds wikitext2-valid.txt and wikitext2-test.txt")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.25, help="of the training text")
    parser.add_argument("--tokens", type=int, default=500, help="of the vocabulary; the rest is <unk>")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--network", choices=PAPER, default="lstm")
    given = parser.parse_args()
    recipe = replace(PAPER[given.network], batch=8, epochs=given.epochs)
    make(given.folder, given.texts, given.members, given.share, given.tokens, given.width, recipe)
