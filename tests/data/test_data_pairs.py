"""Rows that are two texts each: from tables, through the members' own tokenizers, and in views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from text_helpers import LENGTH, tokenizer
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.encoding import tells_texts_apart
from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.several import held
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import FIELDS, Tokenization, Tokenizer
from ensemble_distill.settings import settings_from

DECLARED = Columns(text=("premise", "hypothesis"), labels=("label",))
PAIRS = [
    ("the cat naps", "a dog barks"),
    ("owls hunt mice by night from high old trees and the cat naps", "the cat"),
    ("", "the sun"),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = [f"{at % 2},{other},{one}" for at, (one, other) in enumerate(PAIRS)]
    (tmp_path / "pairs.csv").write_text("\n".join(["label,hypothesis,premise", *lines]) + "\n")
    return tmp_path / "pairs.csv"


def tokenization(**others: Any) -> Tokenization:
    return Tokenization(
        **{"tokenizer": Tokenizer.of(tokenizer().to_str()), "length": LENGTH, "fields": FIELDS} | others
    )


def test_pairs_are_encoded_as_the_tokenizer_itself_joins_them(table: Path) -> None:
    source = open_source(table, columns=DECLARED)
    assert (source.kind, held(source), source.labels.tolist()) == ("text", "pairs of texts", [0, 1, 0])  # type: ignore[union-attr]
    own = tokenizer()
    own.enable_truncation(LENGTH)
    for row, (one, other) in enumerate(PAIRS):
        wanted = own.encode(one, other)
        found = plain_input(source.item(row), tokenization())
        for values, said in zip(found, (wanted.ids, wanted.attention_mask, wanted.type_ids), strict=True):
            assert_array_equal(values, np.pad(said, (0, LENGTH - len(said))))
    assert 1 in plain_input(source.item(0), tokenization())[2]


def test_whether_a_tokenizer_tells_texts_apart() -> None:
    from tokenizers import processors

    assert tells_texts_apart(Tokenizer.of(tokenizer().to_str()))
    plain = tokenizer()
    plain.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    assert not tells_texts_apart(Tokenizer.of(plain.to_str()))


def test_pairs_swapped_or_run_together_are_other_data(tmp_path: Path) -> None:
    found = set()
    for one, other in (("the cat", "a dog"), ("a dog", "the cat"), ("the cat a", "dog"), ("the cat a dog", "")):
        (tmp_path / "pairs.csv").write_text(f"premise,hypothesis\n{one},{other}\n")
        found.add(open_source(tmp_path / "pairs.csv", columns=DECLARED).digest)
    assert len(found) == 4


def test_words_are_left_out_of_both_texts_and_one_at_least_stays(table: Path) -> None:
    source = open_source(table, columns=DECLARED)
    view = open_view("token-dropout")
    ids = np.array([0, 0])
    for seen in range(60):
        for row, (one, other) in enumerate(PAIRS):
            x = source.item(row)
            for change in view.plan(0, seen, row, 3).changes[0]:  # type: ignore[attr-defined]
                kept = change.apply(x.x, "text").tobytes().split(b"\xff")
                assert len(kept) == 2
                for text, whole, at in zip(kept, (one, other), range(2), strict=True):
                    words = text.decode().split()
                    assert bool(words) == bool(whole)
                    assert [word for word in whole.split() if word in words][: len(words)] == words
                    ids[at] += len(whole.split()) - len(words)
    assert (ids > 0).all()


def test_what_is_no_pair_is_refused(table: Path, tmp_path: Path) -> None:
    with refused("no column 'claim'", "data.columns.text"):
        open_source(table, columns=Columns(text=("premise", "claim")))
    (tmp_path / "odd.jsonl").write_text('{"premise": "the cat", "hypothesis": null}\n')
    with refused("column hypothesis is None at row 0"):
        open_source(tmp_path / "odd.jsonl", columns=DECLARED)
    source = open_source(table, columns=DECLARED)
    with refused("Two texts are cut to 2 tokens", "adds 3", "4 or more"):
        plain_input(source.item(0), tokenization(length=2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (["premise", "premise"], ("'premise' twice",)),
        (["premise"], ("data.columns.text",)),
        (["a", "b", "c"], ("data.columns.text",)),
        (["premise", "label"], ("'label'", "in text and in labels")),
    ],
)
def test_settings_of_no_pair_are_refused(text: list[str], words: tuple[str, ...]) -> None:
    with refused(*words):
        settings_from({"data": {"columns": {"text": text, "labels": ["label"]}}}, Path())
