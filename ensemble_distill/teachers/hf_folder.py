"""A Hugging Face folder of a timm model: `config.json` with `model.safetensors` or `pytorch_model.bin`.

`timm.models.save_for_hf` and `push_to_hf_hub` write such folders.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.class_order import Order
from ensemble_distill.teachers import timm_models
from ensemble_distill.teachers.fit import deferred
from ensemble_distill.teachers.names import gone, member_name
from ensemble_distill.teachers.preprocessing import from_settings, from_timm, settled
from ensemble_distill.teachers.said import json_said, refuse_other_kinds
from ensemble_distill.teachers.states import digest
from ensemble_distill.teachers.teacher import Context, Teacher
from ensemble_distill.teachers.transformers_folder import is_of_transformers
from ensemble_distill.teachers.weights import OF_FOLDERS, read_weights

CONFIG = "config.json"
KINDS = {"model_args": "a table", "label_names": "a list or a table", "labels": "a list or a table"}
PREPROCESSING = {"input_size": "a list of numbers", "mean": "a list of numbers", "std": "a list of numbers"}


def claims(path: Path) -> bool:
    """Whether `path` has a config and weights, and is neither a transformers folder nor an edistill run.

    A run's config has the key "edistill".
    """
    if not (path / CONFIG).is_file() or _weights(path) is None:
        return False
    try:
        config = json_said(path / CONFIG)
    except EdistillError:
        return True  # so that `load` can say what is wrong with it
    if is_of_transformers(config):
        return False
    return not isinstance(config, dict) or "edistill" not in config


def load(path: Path, context: Context) -> Teacher:
    config, file, name = _read_config(path / CONFIG), _weights(path), member_name(path)
    if file is None:
        raise gone(path)
    architecture = timm_models.plain_name(config["architecture"], f"architecture in {path / CONFIG}", context.progress)
    registered = timm_models.default_config(architecture, f"architecture in {path / CONFIG}")
    kwargs = dict(config.get("model_args") or {})
    kwargs["num_classes"] = config["num_classes"]
    saved = config["pretrained_cfg"]
    if saved.get("input_size"):
        saved = timm_models.with_inputs(saved, kwargs)
    weights = read_weights(file, context.trust)
    member = Member(
        name=name,
        sha256=digest(weights.state),
        **context.stated,
        class_order=_class_order(path, config, context),
        preprocessing=settled(
            name,
            from_timm(saved),
            from_settings(context.settings.preprocessing),
            from_timm(timm_models.with_inputs(registered, kwargs)),
        ),
        model=architecture,
    )
    built_from = f"architecture, num_classes and model_args in {path / CONFIG}"
    construct = partial(timm_models.create, architecture, kwargs, built_from, {**registered, **saved})
    return deferred(member, file, weights, context, construct, built_from)


def _weights(folder: Path) -> Path | None:
    return next((folder / name for name in OF_FOLDERS if (folder / name).is_file()), None)


def _read_config(file: Path) -> dict[str, Any]:
    """The config in timm's present layout; the first layout had all keys at the top level."""
    config = json_said(file)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        kind = config.get("architectures") or config.get("model_type") if isinstance(config, dict) else None
        raise EdistillError(
            f"{file} has no key architecture{f' (it describes {kind})' if kind else ''}: of Hugging Face "
            f"folders, only those of timm models load, as timm.models.save_for_hf writes them. For another "
            "model, move its weights file out and give teachers.model a factory that builds the module."
        )
    refuse_other_kinds(file, config, KINDS)
    saved = config.get("pretrained_cfg")
    if not isinstance(saved, dict):
        saved = config
    refuse_other_kinds(file, saved, KINDS | PREPROCESSING)
    count = config.get("num_classes", saved.get("num_classes"))
    if not isinstance(count, int):
        raise EdistillError(f"{file} does not say num_classes. Add the number of the model's outputs.")
    labels = config.get("label_names") or saved.get("label_names") or saved.get("labels")
    return {**config, "num_classes": count, "pretrained_cfg": saved, "label_names": labels}


def _class_order(path: Path, config: dict[str, Any], context: Context) -> Order | None:
    """The class order by `label_names`, a list or {"0": name}.

    Without names the data's order is assumed; the caching pass checks it by accuracy.
    """
    labels, count = config["label_names"], config["num_classes"]
    name = member_name(path)
    if not labels:
        return context.order(name)
    if isinstance(labels, dict):
        labels = [labels.get(str(index)) for index in range(max(count, len(labels)))]
    if len(labels) != count or not all(isinstance(label, str) for label in labels):
        named = sum(isinstance(label, str) for label in labels)
        raise EdistillError(
            f"{path / CONFIG} has {count} num_classes, but label_names names {named} of its outputs. Name "
            f"every output, or remove label_names to take the data's order."
        )
    return context.order(name, labels, f"label_names in {path / CONFIG}")
