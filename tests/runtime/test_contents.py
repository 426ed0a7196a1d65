"""Tokenizers in documents: each once, and back where they were."""

from __future__ import annotations

import json

import pytest

from ensemble_distill.facts import Member, Tokenization, Tokenizer
from ensemble_distill.runtime.contents import brief, gathered, scattered
from ensemble_distill.runtime.records import parsed

FIELDS = ("input_ids", "attention_mask")


def members() -> list[Member]:
    each = [Tokenization(Tokenizer.of(text), 8, FIELDS) for text in ("one", "two", "one")]
    return [Member(f"m{at}", "0" * 64, preprocessing=to) for at, to in enumerate(each)]


def test_a_document_holds_each_tokenizer_once() -> None:
    record = {"a": 1, "members": [member.to_json() for member in members()]}
    there = gathered(record)
    assert list(there["tokenizers"].values()) == sorted(["one", "two"], key=lambda text: Tokenizer.of(text).sha256)
    assert json.dumps(there).count('"one"') == 1
    again = scattered(json.loads(json.dumps(there)))
    assert [parsed(Member, one) for one in again["members"]] == members()
    contents = [parsed(Member, one).preprocessing.tokenizer.content for one in again["members"]]  # type: ignore[union-attr]
    assert contents == ["one", "two", "one"]


def test_a_document_without_any_is_as_it_was() -> None:
    record = {"members": [Member("m", "0" * 64).to_json()], "shape": (1, 2)}
    assert gathered(record) == record
    assert scattered(record) == record


def test_people_read_the_sha256_alone() -> None:
    record = gathered({"members": [member.to_json() for member in members()]})
    told = brief(record)
    assert "tokenizers" not in told
    assert told["members"][0]["preprocessing"]["tokenizer"] == {"sha256": Tokenizer.of("one").sha256}


def test_a_table_that_is_none_or_holds_another_text_is_refused() -> None:
    record = gathered({"members": [member.to_json() for member in members()]})
    with pytest.raises(ValueError, match="no table"):
        scattered({**record, "tokenizers": ["one"]})
    other = dict.fromkeys(record["tokenizers"], "another")
    with pytest.raises(ValueError, match="a tokenizer is"):
        parsed(Member, scattered({**record, "tokenizers": other})["members"][0])
