"""How texts become a member's input: its tokenizer, and the number of tokens a text is cut to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ensemble_distill.data.encoding import tells_texts_apart, vocabulary_size
from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import FIELDS, LONGEST, AnyPreprocessing, Preprocessing, Tokenization, Tokenizer
from ensemble_distill.runtime.files import DOCUMENT
from ensemble_distill.runtime.silence import of_its_own
from ensemble_distill.settings import PreprocessingSettings
from ensemble_distill.students.embeddings import fewer_embeddings, refuse_fewer_embeddings, text_in
from ensemble_distill.teachers.said import json_said, read_said

# files with a tokenizer's vocabulary; without any, the library silently makes an empty tokenizer
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
PADS = ("[PAD]", "<pad>", "<|pad|>")
DEFAULT = FIELDS[:2]  # for a user's own module: forward(input_ids, attention_mask)


def from_tokenizer(
    name: str, said: PreprocessingSettings | None, pairs: bool = False, fields: tuple[str, ...] | None = None
) -> Tokenization | None:
    """The tokenization that `preprocessing.tokenizer` and `preprocessing.length` set; None without a tokenizer.

    Args:
        name: the member's, for messages.
        said: the preprocessing settings that apply to the member.
        pairs: whether each row is a pair of texts.
        fields: the fields the member takes, in its order. By default ids and mask, and for pairs also the token types
            if the tokenizer tells the two texts apart.

    Raises:
        EdistillError: the settings mix texts and pictures, the file is not a tokenizer, or no length is given.
    """
    if said is None or said.tokenizer is None:
        return None
    if mixed := next((key for key, value in said if value is not None and key not in ("tokenizer", "length")), None):
        raise EdistillError(
            f"{name}: preprocessing has a tokenizer, which is of texts, and {mixed}, which is of pictures. Leave one "
            "of them out."
        )
    path = Path(said.tokenizer)
    if not path.is_file():
        raise EdistillError(f"{name}: preprocessing.tokenizer is {path}, which is not a file. Give a tokenizer.json.")
    content, record = read_said(path), json_said(path)
    tokenizer = Tokenizer.of(content)
    vocabulary_size(tokenizer)  # raises for a file that is not a tokenizer
    length = said.length or _within(record, "truncation", "max_length")
    if not isinstance(length, int):
        raise EdistillError(
            f"{name}: nothing says how many tokens a text is cut to. Set it as in training: preprocessing = {{ "
            f'tokenizer = "{path.name}", length = 128 }}.'
        )
    taken = fields or (FIELDS if pairs and tells_texts_apart(tokenizer) else DEFAULT)
    return encoding(name, tokenizer, length, taken, pad_of(record))


def as_used(key: str, value: Any) -> Any:
    """The value of a `preprocessing` setting as a member's record holds it: a path becomes the tokenizer there."""
    return Tokenizer.of(read_said(Path(value))) if key == "tokenizer" and Path(value).is_file() else value


def encoding(name: str, tokenizer: Tokenizer, length: int, fields: tuple[str, ...], pad: int) -> Tokenization:
    """Build a `Tokenization`; raises EdistillError for a length or a padding id out of range."""
    if not 1 <= length <= LONGEST:
        raise EdistillError(f"{name}: texts are cut to {length} tokens. Set preprocessing.length to 1 to {LONGEST}.")
    try:
        return Tokenization(tokenizer, length, fields, pad)  # type: ignore[arg-type]  # some of FIELDS
    except ValueError as error:
        raise EdistillError(f"{name}: {error}.") from None


GIVEN = "Give the tokenizer that it was trained with, preprocessing.tokenizer."
SAVED = "Save the one that it was trained with beside it: tokenizer.save_pretrained(folder)."


def refuse_other_tokenizer(network: nn.Module, to: AnyPreprocessing | None, name: str, remedy: str = GIVEN) -> None:
    """Raise EdistillError if a member has fewer embeddings than its tokenizer has tokens.

    Args:
        network: the member's module in eval mode, called with (B, fields, L) for texts.
        to: the member's preprocessing; without texts nothing is checked.
        name: the member's, for the message.
        remedy: what to do, for the message.
    """
    if to is not None and (text := text_in(to)) is not None:
        assert not isinstance(to, Preprocessing)  # that is for pictures
        refuse_fewer_embeddings(network, to, vocabulary_size(text.tokenizer), f"Member {name}", remedy)


def refuse_fewer_rows(rows: int | None, to: AnyPreprocessing | None, name: str) -> None:
    """Raise EdistillError if a graph's embedding has fewer `rows` than its tokenizer has tokens; None is unknown."""
    text = text_in(to)
    if rows is not None and text is not None and rows < (tokens := vocabulary_size(text.tokenizer)):
        raise fewer_embeddings(f"Member {name}", tokens, rows, GIVEN)


def pad_of(record: Any) -> int:
    """The padding id of a tokenizer.json: as it states, else the id of a token in `PADS`, else 0."""
    said = _within(record, "padding", "pad_id")
    if isinstance(said, int):
        return said
    added = record.get("added_tokens") if isinstance(record, dict) else None
    ids = {one.get("content"): one.get("id") for one in added or [] if isinstance(one, dict)}
    known = [ids[token] for token in PADS if token in ids]
    return next((one for one in known if isinstance(one, int)), 0)


def _within(record: Any, table: str, key: str) -> Any:
    inner = record.get(table) if isinstance(record, dict) else None
    return inner.get(key) if isinstance(inner, dict) else None


def own_tokenizer(folder: Path, transformers: Any) -> tuple[Any, Tokenizer]:
    """Open the tokenizer of a transformers folder.

    Returns:
        The tokenizer as transformers opens it, and its tokenizer.json. The folder's own file is kept if it means the
        same, since another version of the library may serialize the same tokenizer differently.

    Raises:
        EdistillError: there is no tokenizer that can be opened, or it is implemented in Python alone.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise _no_tokenizer(folder, f"there is no {first_few(VOCABULARIES, 3)}")
    for file in sorted(folder.iterdir()):  # the library would read each of them whole, several times
        said = file.name in VOCABULARIES or file.suffix in (".json", ".txt")
        if said and file.is_file() and (size := file.stat().st_size) > DOCUMENT:
            raise _no_tokenizer(folder, f"{file.name} has {size:,} bytes, and {DOCUMENT:,} are read at most")
    try:
        with of_its_own():
            opened = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # damaged files raise almost anything
        raise _no_tokenizer(folder, f"transformers {transformers.__version__} says, {first_line(error)}") from None
    backend = getattr(opened, "backend_tokenizer", None)
    if backend is None:
        raise EdistillError(
            f"{folder} has the tokenizer {type(opened).__name__}, which is code and no tokenizer.json, and rows are "
            "cut without code. Save a fast one beside the member: AutoTokenizer.from_pretrained(...).save_pretrained("
            "folder)."
        )
    content, file = _plain(backend), folder / "tokenizer.json"
    if file.is_file() and file.stat().st_size <= DOCUMENT:
        own = read_said(file)
        try:
            from tokenizers import Tokenizer as Library

            if _plain(Library.from_str(own)) == content:
                content = own
        except Exception:  # transformers opened it in some other way, and its result counts
            pass
    return opened, Tokenizer.of(content)


def _no_tokenizer(folder: Path, why: str) -> EdistillError:
    return EdistillError(
        f"{folder} has no tokenizer that can be opened: {why}. Save the one that the member was trained with beside "
        "it: tokenizer.save_pretrained(folder)."
    )


def _plain(tokenizer: Any) -> str:
    """The serialized tokenizer without padding and truncation, which edistill applies itself."""
    record = json.loads(tokenizer.to_str())
    return json.dumps({**record, "padding": None, "truncation": None}, ensure_ascii=False)
