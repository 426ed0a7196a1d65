"""Small texts, a tokenizer of their words, and networks of them: made at once, without a download."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

LENGTH = 12
CLASSES = ("cat", "dog", "owl")
WORDS = {
    "cat": "the cat purrs and naps in the warm sun all day",
    "dog": "a dog barks and digs holes in our yard",
    "owl": "owls hunt mice by night from high old trees",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def needs_transformers() -> Any:
    """The library; the test is skipped without it."""
    pytest.importorskip("tokenizers", reason="needs tokenizers, an optional extra")
    with quiet():
        return pytest.importorskip("transformers", reason="needs transformers, an optional extra")


@contextmanager
def quiet() -> Iterator[None]:
    """What the library warns of and draws."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def texts(rows: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences of two to nine words, each mostly of its class, and the classes."""
    rng = np.random.default_rng(seed)
    found, labels = [], []
    for row in range(rows):
        label = CLASSES[row % len(CLASSES)]
        words = WORDS[label].split() * 3 + " ".join(WORDS.values()).split()
        found.append(" ".join(rng.choice(words, int(rng.integers(2, 10)))))
        labels.append(label)
    return found, labels


def tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """Of the `tokenizers` library: words, with a beginning and an end.

    Args:
        extra: words that come first, so that all ids are others.
    """
    pytest.importorskip("tokenizers", reason="needs tokenizers, an optional extra")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [*SPECIAL, *extra, *sorted(set(" ".join(WORDS.values()).split()))]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def save_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> int:
    """As transformers saves one; returns how many tokens there are."""
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    made = tokenizer(extra)
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **names).save_pretrained(folder)
    return int(made.get_vocab_size())


def bert(tokens: int, seed: int, **others: Any) -> Any:
    """A sequence classifier of three classes, of a few thousand weights that are not all but 0."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "initializer_range": 0.3}
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: k for k, name in enumerate(CLASSES)}}
    config = BertConfig(vocab_size=tokens, max_position_embeddings=16, **{**sizes, **names, **others})
    return BertForSequenceClassification(config).eval()


def a_text_folder(path: Path, seed: int, extra: tuple[str, ...] = (), **others: Any) -> Path:
    """A folder of transformers with its tokenizer."""
    with quiet():
        tokens = save_tokenizer(path, extra)
        bert(tokens, seed, **others).save_pretrained(path)
    return path


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """CSV with a text and a label."""
    found, labels = texts(rows, seed)
    lines = [f"{text},{label}" for text, label in zip(found, labels, strict=True)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
