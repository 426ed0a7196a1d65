"""A folder of the transformers library, an image or a sequence classifier: `config.json`, weights, and a tokenizer.

`model.save_pretrained` writes it, together with `tokenizer.save_pretrained` or `processor.save_pretrained`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import FIELDS, AnyPreprocessing, Member, Tokenization
from ensemble_distill.runtime.transformers import library
from ensemble_distill.students.fields import shown
from ensemble_distill.tasks.checks.class_order import Order
from ensemble_distill.teachers.encodings import (
    SAVED,
    VOCABULARIES,
    encoding,
    own_tokenizer,
    pad_of,
    refuse_other_tokenizer,
)
from ensemble_distill.teachers.image_processors import from_processor
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.preprocessing import from_settings, from_timm, settled
from ensemble_distill.teachers.said import json_said, refuse_other_kinds
from ensemble_distill.teachers.states import digest
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.transformers_weights import built, folder_weights, weight_files
from ensemble_distill.teachers.whole_files import PIECE

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
OF_TEXTS, OF_PICTURES = "ForSequenceClassification", "ForImageClassification"
KINDS = {"id2label": "a table", "auto_map": "a table", "model_type": "a text", "pretrained_cfg": "a table"}
TOKENIZER = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
MOST = 512  # tokens of a text if the tokenizer sets no limit


def claims(path: Path) -> bool:
    """Whether a folder has weights and a config with `architectures`; timm's own configs have `architecture`."""
    if not (path / CONFIG).is_file() or not weight_files(path):
        return False
    try:
        return is_of_transformers(json_said(path / CONFIG))
    except EdistillError:
        return False  # another kind reports the error


def is_of_transformers(config: Any) -> bool:
    return isinstance(config, dict) and "edistill" not in config and bool(config.get("architectures"))


def load(path: Path, context: Context) -> Teacher:
    """Load a member.

    Raises:
        EdistillError: it is not a classifier, has code of its own and is not trusted, or lacks a tokenizer.
    """
    config, name = _read_config(path, context), member_name(path)
    transformers = library(f"{path}, a folder of transformers,")
    architecture = config["architectures"][0]
    weights = folder_weights(path, context.trust)
    whole = _digest(path, digest(weights))
    preprocessing = (_encoding if OF_TEXTS in architecture else _pictures)(path, config, context, transformers)
    member = Member(
        name=name,
        sha256=whole,
        **context.stated,
        class_order=_class_order(path, config, context),
        preprocessing=preprocessing,
        model=f"transformers {architecture}",
    )
    origin = Origin(file=weight_files(path)[0].name, fingerprint=digest(weights))
    return Teacher(member, partial(_build, member, path, context), origin)


def _build(member: Member, path: Path, context: Context) -> nn.Module:
    weights = folder_weights(path, context.trust)
    if (now := _digest(path, digest(weights))) != member.sha256:
        raise EdistillError(
            f"{path} has changed since it was listed: it was {member.sha256[:12]}…, now {now[:12]}…. Run the command "
            "again when nothing writes to the teachers."
        )
    module = shown(built(path, _read_config(path, context), weights, member, context.trust), member.preprocessing)
    refuse_other_tokenizer(module, member.preprocessing, member.name, SAVED)
    return module


def _digest(path: Path, weights: str) -> str:
    """The digest of the weights and of every other file that affects the answers, code included."""
    sha = hashlib.sha256(weights.encode())
    others = [name for name in (CONFIG, PROCESSOR, *TOKENIZER) if (path / name).is_file()]
    for name in [*others, *sorted(file.name for file in path.glob("*.py"))]:
        sha.update(f"\0{name}\0{(path / name).stat().st_size}\0".encode())
        with (path / name).open("rb") as file:
            while piece := file.read(PIECE):
                sha.update(piece)
    return sha.hexdigest()


# --- config.json ----------------------------------------------------------------------------------------------------


def _read_config(path: Path, context: Context) -> dict[str, Any]:
    file = path / CONFIG
    config: Any = json_said(file)
    if not is_of_transformers(config):
        raise EdistillError(f"{file} names no architectures. Restore it: model.config.save_pretrained(folder).")
    refuse_other_kinds(file, config, KINDS)
    named = config["architectures"]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise EdistillError(f"{file} has architectures {named!r}, and those are a list of names. Fix it.")
    if OF_TEXTS not in named[0] and OF_PICTURES not in named[0]:
        raise EdistillError(
            f"{file} names {named[0]}, and of transformers those members load that classify texts or pictures "
            f"(…{OF_TEXTS}, …{OF_PICTURES}). For another model give its weights file and teachers.model, a factory "
            "that builds the module."
        )
    if config.get("auto_map") and not context.trust:
        raise EdistillError(
            f"{file} names code of its own ({first_few([str(one) for one in config['auto_map'].values()], 3)}), and "
            "loading the member would run it. --trust-checkpoints is the only way in, for files whose origin you trust."
        )
    _refuse_other_problem(file, config.get("problem_type"), context.task)
    return {**config, "architectures": named}


MEANT = {"single_label_classification": "classification", "multi_label_classification": "multi-label"}


def _refuse_other_problem(file: Path, problem: Any, task: str) -> None:
    """Raise EdistillError if the config's problem type is not that of the task."""
    wanted = {**MEANT, "regression": "regression"}.get(problem)
    if wanted is not None and wanted != task:
        raise EdistillError(
            f'{file} has problem_type {problem!r}, and the task is {task}. Set task = "{wanted}", or take the member '
            "out of teachers.path."
        )


def _class_order(path: Path, config: Mapping[str, Any], context: Context) -> Order | None:
    """The class order by `id2label`; names that only number the outputs, such as LABEL_0, say nothing."""
    labels, name, file = config.get("id2label"), member_name(path), path / CONFIG
    if not labels:
        return context.order(name)
    if sorted(labels) != sorted(map(str, range(len(labels)))):
        raise EdistillError(
            f"{file} has id2label for {first_few(sorted(labels), 5)}, and outputs are numbered from 0. Name each once."
        )
    names = [labels[str(index)] for index in range(len(labels))]
    if not all(isinstance(one, str) for one in names):
        raise EdistillError(f"{file} has id2label {first_few([repr(one) for one in names], 5)}. Give texts.")
    if all(re.fullmatch(r"LABEL_\d+", one) for one in names):
        return context.order(name)
    return context.order(name, names, f"id2label in {file}")


# --- what it is shown -----------------------------------------------------------------------------------------------


def _encoding(path: Path, config: Mapping[str, Any], context: Context, transformers: Any) -> Tokenization:
    opened, tokenizer = own_tokenizer(path, transformers)
    said, name = context.settings.preprocessing, member_name(path)
    pad = next((one for one in (opened.pad_token_id, config.get("pad_token_id")) if isinstance(one, int)), None)
    length = (None if said is None else said.length) or _longest(opened, config)
    kind = getattr(transformers, config["architectures"][0], None)
    taken = FIELDS[:2] if kind is None else [f for f in FIELDS if f in inspect.signature(kind.forward).parameters]
    second = any(opened.backend_tokenizer.encode("a").type_ids)  # otherwise all are 0, the default
    if context.pairs:  # as the library itself calls the model
        second = FIELDS[2] in opened.model_input_names
    fields = tuple(field for field in taken if field != FIELDS[2] or second)
    import json

    return encoding(
        name, tokenizer, length, fields, pad_of(json.loads(tokenizer.content or "{}")) if pad is None else pad
    )


def _longest(tokenizer: Any, config: Mapping[str, Any]) -> int:
    """The greatest number of tokens: the tokenizer's limit, `MOST` without one, or the positions if those are fewer."""
    positions = next(
        (n for key in ("max_position_embeddings", "n_positions") if isinstance(n := config.get(key), int)), MOST
    )
    if "roberta" in str(config.get("model_type")):  # its positions begin after the padding id
        positions -= 1 + (config.get("pad_token_id") or 0)
    said = tokenizer.model_max_length
    return max(1, min(positions, MOST if said > 10**6 else int(said)))


def _pictures(path: Path, config: Mapping[str, Any], context: Context, transformers: Any) -> AnyPreprocessing:
    name, given = member_name(path), from_settings(context.settings.preprocessing)
    if isinstance(config.get("pretrained_cfg"), dict):  # a timm model in a wrapper
        return settled(name, given, from_timm(config["pretrained_cfg"]))
    file = path / PROCESSOR
    own = from_processor(file, json_said(file)) if file.is_file() else {}
    size = config.get("image_size")
    square = {"size": (size, size)} if isinstance(size, int) else {}
    return settled(name, given, own, square)
