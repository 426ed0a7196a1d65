"""Texts as rows: of a column, of JSON lines, of a file's lines; what they become, and what views make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_helpers import CLASSES, LENGTH, SPECIAL, texts, tokenizer, write_table

from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.digests import texts_digest
from ensemble_distill.data.rows import ViewedRows, plain_input
from ensemble_distill.data.source import Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.texts import Texts
from ensemble_distill.data.views import open_view, require_kind
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Tokenization, Tokenizer

COLUMNS = Columns(text="text", labels=("label",), classes=CLASSES)
ODD = ["", "ünïcode 猫 \U0001f989", "two\nlines", '"quoted", and a comma', "  spaces  "]


def text_of(source: Source, row: int) -> str:
    return source.item(row).x.tobytes().decode()


def test_a_column_of_a_table_is_texts(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", 7)
    source = open_source(tmp_path / "t.csv", columns=COLUMNS)
    wanted, labels = texts(7)
    assert [text_of(source, row) for row in range(7)] == wanted
    assert source.labels is not None
    assert [CLASSES[k] for k in source.labels] == labels
    assert (source.kind, source.classes, len(source)) == ("text", CLASSES, 7)
    assert source.item(0).x.dtype == np.uint8
    assert not source.item(0).x.flags.writeable


def test_json_lines_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [{"text": text, "label": CLASSES[at % 3]} for at, text in enumerate(ODD)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    fields = [",".join('"' + row[key].replace('"', '""') + '"' for key in ("text", "label")) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *fields]) + "\n", encoding="utf-8")
    names = ["t.jsonl", "t.csv"]
    try:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
        names.append("t.parquet")
    except ImportError:
        pass
    found = [open_source(tmp_path / name, columns=COLUMNS) for name in names]
    assert len({source.digest for source in found}) == 1
    for source in found:
        assert [text_of(source, row) for row in range(len(ODD))] == ODD


def test_lines_of_a_file_are_texts_without_labels(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("one cat\r\n\nthe öwl\n".encode())
    source = open_source(tmp_path / "t.txt")
    assert [text_of(source, row) for row in range(len(source))] == ["one cat", "", "the öwl"]
    assert source.labels is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.jsonl", b'{"text": "a", "label": "cat"}\n[1]\n', ("row 1", "list")),
        ("t.jsonl", b'{"text": "a", "label": "cat"}\n{"text": "b"\n', ("row 1", "not valid JSON")),
        ("t.jsonl", b'{"text": "a", "label": "cat"}\n{"label": "cat"}\n', ("None", "row 1", "text")),
        ("t.jsonl", b'{"text": 7, "label": "cat"}\n', ("7", "row 0", "not text")),
        ("t.jsonl", b'{"text": "\\ud800", "label": "cat"}\n', ("row 0", "surrogate")),
        ("t.jsonl", b"", ("no rows",)),
        ("t.jsonl", b'{"txt": "a", "label": "cat"}\n', ("'text'", "'txt'", "data.columns.text")),
        ("t.csv", b"text,label\na,cow\n", ("'cow'", "row 0", "data.columns.classes")),
        ("t.csv", b"text,label\n\xff,cat\n", ("UTF-8",)),
        ("t.txt", b"", ("no lines",)),
        ("t.txt", b"\xff\n", ("UTF-8", "byte 0")),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, told: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdistillError) as error:
        open_source(tmp_path / name, columns=COLUMNS)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_a_digest_knows_where_each_text_ends_and_its_label() -> None:
    first = Texts(["ab", "c"], np.array([0, 1]), ("x", "y"))
    others = [
        Texts(["a", "bc"], np.array([0, 1]), ("x", "y")),
        Texts(["ab", "c"], np.array([1, 1]), ("x", "y")),
        Texts(["ab", "c"], np.array([0, 1]), ("y", "x")),
        Texts(["ab", "c"], None, None),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    whole = np.frombuffer(b"abc", np.uint8)
    assert first.digest == texts_digest(whole, np.array([0, 2, 3]), np.array([0, 1]), ("x", "y"))
    assert text_of(Subset(first, np.array([1])), 0) == "c"


# --- what they become -----------------------------------------------------------------------------------------------


def tokenization(**others: Any) -> Tokenization:
    pytest.importorskip("tokenizers", reason="needs tokenizers, an optional extra")
    fields = ("input_ids", "attention_mask")
    return Tokenization(
        **{"tokenizer": Tokenizer.of(tokenizer().to_str()), "length": LENGTH, "fields": fields} | others
    )


def wanted(text: str, length: int) -> list[list[int]]:
    """Ids and mask, by a loop over the words."""
    vocabulary = tokenizer().get_vocab()
    words = text.lower().split()[: length - 2]
    ids = [2, *(vocabulary.get(word, SPECIAL.index("[UNK]")) for word in words), 3]
    return [ids + [0] * (length - len(ids)), [1] * len(ids) + [0] * (length - len(ids))]


def test_a_text_becomes_ids_beside_their_mask() -> None:
    to = tokenization()
    rows = [*texts(9)[0], "", "The cat", "a dog " * 40]
    source = Texts(rows, None, None)
    for row, text in enumerate(rows):
        x = plain_input(source.item(row), to)
        assert x.dtype == np.int64
        assert x.tolist() == wanted(text, LENGTH)


def test_fields_stand_in_their_order_and_padding_has_its_id() -> None:
    to = tokenization(fields=("token_type_ids", "attention_mask", "input_ids"), pad=9)
    x = plain_input(Texts(["the cat"], None, None).item(0), to)
    ids, mask = wanted("the cat", LENGTH)
    assert x[0].tolist() == [0] * LENGTH
    assert x[1].tolist() == mask
    assert x[2].tolist() == [*ids[:4], *[9] * (LENGTH - 4)]


def test_what_a_file_says_of_padding_and_truncation_is_not_what_counts() -> None:
    made = tokenizer()
    made.enable_padding(length=30)
    made.enable_truncation(4)
    to = tokenization(tokenizer=Tokenizer.of(made.to_str()))
    text = "the cat naps in the sun"
    assert plain_input(Texts([text], None, None).item(0), to).tolist() == wanted(text, LENGTH)


def test_texts_without_a_tokenizer_are_refused() -> None:
    item = Texts(["the cat"], None, None).item(0)
    with pytest.raises(EdistillError, match=r"teachers\.preprocessing = \{ tokenizer"):
        plain_input(item, None)
    with pytest.raises(EdistillError, match="none that tokenizers"):
        plain_input(item, tokenization(tokenizer=Tokenizer.of("{}")))
    with pytest.raises(EdistillError, match="not at hand"):
        plain_input(item, tokenization(tokenizer=Tokenizer("0" * 64)))
    with pytest.raises(EdistillError, match=r"cut to 2 tokens.*adds 2.*to 3 or more"):
        plain_input(item, tokenization(length=2))


def test_a_tokenizer_is_told_by_its_text() -> None:
    one = Tokenizer.of("text")
    assert one == Tokenizer(one.sha256)
    assert one != Tokenizer.of("other")
    with pytest.raises(ValueError, match="a tokenizer is"):
        Tokenizer(one.sha256, "other")


# --- views ----------------------------------------------------------------------------------------------------------


def dropped(text: str, view: int, row: int = 0, seed: int = 0) -> str:
    source = Texts(["x"] * row + [text], None, None)
    plan: Any = open_view("token-dropout").plan(seed, view, row, row + 1)
    x = source.item(row).x
    for change in plan.changes[0]:
        x = change.apply(x, "text")
    return str(x.tobytes().decode())


def test_words_are_left_out_in_their_order_and_one_at_least_stays() -> None:
    words = [f"word{at}" for at in range(400)]
    found = dropped(" ".join(words), 1).split()
    assert found == [word for word in words if word in set(found)]
    assert 0.10 < 1 - len(found) / 400 < 0.20
    assert {dropped("one", view) for view in range(50)} == {"one"}
    assert "" not in {dropped("one two", view) for view in range(200)}
    assert dropped("", 1) == ""
    assert dropped(" \n ", 1) == " \n "


def test_a_view_of_a_text_is_pure_in_seed_view_and_row() -> None:
    text = " ".join(f"word{at}" for at in range(60))
    assert dropped(text, 3) == dropped(text, 3)
    assert len({dropped(text, 3), dropped(text, 4), dropped(text, 3, row=1), dropped(text, 3, seed=1)}) == 4


def test_members_of_other_tokenizers_see_the_same_words() -> None:
    one, other = tokenization(), tokenization(tokenizer=Tokenizer.of(tokenizer(("extra", "words")).to_str()))
    rows = ViewedRows(Texts([" ".join(texts(12)[0])], None, None), open_view("token-dropout"), 0)
    names = [
        {at: word for word, at in made.get_vocab().items()} for made in (tokenizer(), tokenizer(("extra", "words")))
    ]
    for view in range(5):
        first, second = rows.inputs(0, [view], [one, other])
        assert (first[0] != second[0]).any()
        said = [[name[at] for at in x[0]] for name, x in zip(names, (first, second), strict=True)]
        assert said[0] == said[1]


def test_views_of_other_rows_do_not_act_on_texts() -> None:
    require_kind(open_view("token-dropout"), "text", "token-dropout")
    with pytest.raises(EdistillError, match=r"acts on .*holds text.*use none, token-dropout"):
        require_kind(open_view("mixup"), "text", "mixup")
    with pytest.raises(EdistillError, match=r"'token-dropout', which acts on text.*holds pixels"):
        require_kind(open_view("token-dropout"), "pixels", "token-dropout")
