"""Seals: every byte of a sealed file is covered by the digest that it holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load, save

from ensemble_distill.runtime.seals import (
    BLANK,
    ONNX_KEY,
    check_comment,
    checked_metadata,
    is_whole,
    onnx_metadata,
    read_sealed_json,
    safetensors_metadata,
    seal,
    seal_safetensors,
    sealed_comment,
    sealed_metadata,
    write_sealed_json,
)


def test_the_digest_is_of_the_content_with_the_blank_in_its_place() -> None:
    content = b"before " + BLANK.encode() + b" after"
    digest = hashlib.sha256(content).hexdigest()
    assert seal(content) == b"before " + digest.encode() + b" after"
    assert is_whole(seal(content), digest)


@pytest.mark.parametrize("content", [b"none", 2 * BLANK.encode()])
def test_there_is_one_place_for_a_digest(content: bytes) -> None:
    with pytest.raises(ValueError, match="places for a digest"):
        seal(content)


def test_what_is_no_digest_of_it_fits_nothing() -> None:
    for digest in [None, 7, "", "0" * 64, "x"]:
        assert not is_whole(seal(BLANK.encode()), digest)


def test_every_flipped_bit_of_a_sealed_document_is_found_or_changes_nothing(tmp_path: Path) -> None:
    record = {"a": [1, 2.5, None], "b": {"c": "µ"}}
    file = tmp_path / "a.json"
    write_sealed_json(file, record)
    assert read_sealed_json(file) == (record, True)
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 16, 128):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found, sealed = read_sealed_json(file)
            except ValueError:
                continue
            # only the key of the digest can be hit without a word, and then it says that it has none
            assert not sealed
            assert {name: found[name] for name in record} == record


def test_a_document_of_before_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert read_sealed_json(tmp_path / "a.json") == ({"a": 1}, False)


def test_the_digest_of_safetensors_stands_in_their_metadata() -> None:
    content = seal(save({"x": np.arange(5, dtype=np.float32)}, metadata={"sha256": BLANK, "other": "µ"}))
    said = safetensors_metadata(content)
    assert said["other"] == "µ"
    assert is_whole(content, said["sha256"])
    for at in range(len(content)):
        damaged = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        try:
            said = safetensors_metadata(damaged)
        except ValueError:
            continue
        assert not is_whole(damaged, said.get("sha256"))


def test_what_is_no_safetensors_is_told_before_anything_is_allocated() -> None:
    for content in [b"", b"short", b"\xff" * 40, (10**12).to_bytes(8, "little") + b"{}"]:
        with pytest.raises(ValueError):  # noqa: PT011, any of its kinds
            safetensors_metadata(content)


def test_a_seal_of_tensors_is_the_same_in_whatever_order_their_metadata_come(tmp_path: Path) -> None:
    tensors, more = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}, {str(i): "µ" for i in range(9)}
    made = {b"".join(seal_safetensors(save(tensors, metadata={**more, **sealed_metadata()}))) for _ in range(9)}
    (content,) = made
    assert checked_metadata(content).keys() == {*more, "version", "sha256"}
    back = load(content)
    assert all((back[name] == values).all() for name, values in tensors.items())


def test_metadata_of_a_graph_are_found_without_it() -> None:
    for value in ["", "x", "µ" * 64, "long " * 100_000]:
        model = onnx.ModelProto()
        onnx.helper.set_model_props(model, {"edistill.a": value, ONNX_KEY: BLANK, "edistill.b": "b"})
        content = seal(model.SerializeToString())
        assert onnx_metadata(content, "edistill.a") == value
        assert is_whole(content, onnx_metadata(content, ONNX_KEY))
        assert onnx_metadata(content, "edistill.c") is None


def test_a_text_is_sealed_by_its_first_line() -> None:
    content = sealed_comment('a = "µ"\nb = 1\n')
    check_comment(content)
    begin = content.index(b"\n") + 1
    assert content[:1] == b"#"
    for at in range(begin, len(content)):
        with pytest.raises(ValueError, match="sha256"):
            check_comment(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        with pytest.raises(ValueError, match="sha256"):
            check_comment(content[:at])


def test_a_text_of_before_is_sealed_by_its_last_line() -> None:
    text = 'a = "µ"\n'
    content = seal(f"{text}# edistill 0.2.0, sha256 {BLANK}\n".encode())
    check_comment(content)
    for at in range(len(text.encode())):
        with pytest.raises(ValueError, match="sha256"):
            check_comment(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
