"""A folder with sentences of 20 articles, and an ensemble of small BERTs that recognize the article of each.

Run python examples/text/make.py articles ../shared/data/text, where that folder contains WikiText-2's validation and
test texts: 20 long articles of the first are the classes, and sentences of the second are out-of-distribution. Each
member has a tokenizer of its own, one of them with more tokens. It takes a few minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

HERE = Path(__file__).parent
LENGTH, SHORTEST = 48, 8  # tokens that a sentence is truncated to, and fewest words of a sentence
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = (1000, 1000, 1000, 2000)  # tokens of each member
Rows = list[tuple[str, str]]  # a sentence and its article


def articles(text: Path) -> dict[str, list[str]]:
    """The sentences of each article, by its title."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.read_text(encoding="utf-8").splitlines():
        heading = re.fullmatch(r" = ([^=].*[^=]) = ", line)
        if heading:
            title = heading[1]
        elif line.strip() and not line.startswith(" = ") and title:
            sentences = re.split(r"(?<= [.?!]) (?=[A-Z])", line.strip().replace("<unk>", "_"))
            found.setdefault(title, []).extend(s for s in sentences if len(s.split()) >= SHORTEST)
    return found


def write(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sentence", "article"), *rows])


def data(folder: Path, texts: Path) -> tuple[dict[str, Rows], list[str]]:
    """Write the splits; returns them by name, and the articles in the order of the classes."""
    known = articles(texts / "wikitext2-valid.txt")
    toml = tomllib.loads((HERE / "edistill.toml").read_text(encoding="utf-8"))
    classes: list[str] = toml["data"]["columns"]["classes"]
    rows = [(sentence, title) for title in classes for sentence in known[title]]
    order = np.random.default_rng(0).permutation(len(rows))
    splits, start = {}, 0
    for name, share in SHARES.items():
        stop = start + round(share * len(rows))
        splits[name] = [rows[at] for at in order[start:stop]]
        start = stop
        write(folder / "data" / f"{name}.csv", splits[name])
    others = [s for sentences in articles(texts / "wikitext2-test.txt").values() for s in sentences]
    (folder / "data" / "other-articles.txt").write_text("\n".join(others[::8]) + "\n", encoding="utf-8")
    return splits, classes


def new_tokenizer(sentences: list[str], size: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer like BERT's, trained on these sentences."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **names)


def train_member(seed: int, rows: Rows, classes: list[str], size: int, epochs: int, folder: Path) -> None:
    tokenizer = new_tokenizer([sentence for sentence, _ in rows], size)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
        id2label=dict(enumerate(classes)),
        label2id={name: k for k, name in enumerate(classes)},
    )
    model = BertForSequenceClassification(config)
    y = torch.tensor([classes.index(article) for _, article in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-len(rows) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for at in torch.randperm(len(rows)).split(64):
            given = tokenizer([rows[i][0] for i in at], padding=True, truncation=True, return_tensors="pt")
            logits: Tensor = model(**given).logits
            optimizer.zero_grad()
            cross_entropy(logits, y[at]).backward()
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sentences of articles, and an ensemble that tells them apart.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, help="holds wikitext2-valid.txt and wikitext2-test.txt")
    parser.add_argument("--members", type=int, default=len(VOCABULARY))
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()
    (given.folder / "data").mkdir(parents=True, exist_ok=True)
    splits, classes = data(given.folder, given.texts)
    for name in ("edistill.toml", "model.py"):
        shutil.copy(HERE / name, given.folder)
    for seed, size in enumerate(VOCABULARY[: given.members]):
        path = given.folder / "teachers" / f"member-{seed}"
        if not path.exists():
            train_member(seed, splits["train"], classes, size, given.epochs, path)
            print(f"{path.name}: {size:,} tokens", flush=True)


if __name__ == "__main__":
    main()
