"""A timm run folder: `args.yaml` beside `model_best`, `last` or `checkpoint-N` (.pth.tar or .safetensors).

A run is one member: its best checkpoint by its own validation, else the last, else the one with the highest N.
`args.yaml` holds all arguments of `train.py`. For null values timm used the model's config, and so does this module;
nothing is left for `teachers.preprocessing` to set.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.names import natural_key
from ensemble_distill.tasks.checks.class_order import Order
from ensemble_distill.teachers import timm_models
from ensemble_distill.teachers.fit import deferred
from ensemble_distill.teachers.names import SUFFIXES, gone, is_weights_file, member_name
from ensemble_distill.teachers.preprocessing import Said, from_timm, settled
from ensemble_distill.teachers.said import read_said, refuse_other_kinds, yaml_said
from ensemble_distill.teachers.states import digest
from ensemble_distill.teachers.teacher import Context, Teacher
from ensemble_distill.teachers.weights import read_weights

ARGS = "args.yaml"
KINDS = {"input_size": "a list of numbers", "dataset": "a text", "model_kwargs": "a table"}


def claims(path: Path) -> bool:
    return (path / ARGS).is_file() and _checkpoint(path) is not None


def load(path: Path, context: Context) -> Teacher:
    args, checkpoint, name = _read_args(path / ARGS), _checkpoint(path), member_name(path)
    if checkpoint is None:
        raise gone(path)
    model = timm_models.plain_name(args["model"], f"model in {path / ARGS}", context.progress)
    config = timm_models.default_config(model, f"model in {path / ARGS}")
    weights = read_weights(checkpoint, context.trust)
    counted = timm_models.class_count(weights.state, config)
    kwargs = _model_kwargs(args, config, counted)
    built_from = f"model, num_classes and model_kwargs in {path / ARGS}"
    member = Member(
        name=name,
        sha256=digest(weights.state),
        **context.stated,
        class_order=_class_order(path, args, kwargs.get("num_classes"), context),
        preprocessing=settled(name, _data_config(path / ARGS, args, timm_models.with_inputs(config, kwargs))),
        model=model,
    )
    construct = partial(timm_models.create, model, kwargs, built_from)
    return deferred(member, checkpoint, weights, context, construct, built_from)


def _checkpoint(folder: Path) -> Path | None:
    """The checkpoint that stands for the run; None if there is none."""
    by_stem: dict[str, Path] = {}
    for suffix in reversed(SUFFIXES):  # for a stem in two formats, safetensors wins
        by_stem |= {
            file.name.removesuffix(suffix): file
            for file in folder.glob(f"*{suffix}")
            if is_weights_file(file) and file.is_file()
        }
    numbered = [stem for stem in by_stem if re.fullmatch(r"checkpoint-\d+", stem)]
    ranked = ["model_best", "last", *sorted(numbered, key=natural_key, reverse=True)]
    return next((by_stem[stem] for stem in ranked if stem in by_stem), None)


def _read_args(file: Path) -> dict[str, Any]:
    args = yaml_said(file)
    if not isinstance(args, dict) or not isinstance(args.get("model"), str):
        raise EdistillError(
            f"{file} does not say which model was trained: it has no key model. Add it (model: resnet50), or "
            f"move the checkpoint out of the folder and use it alone with teachers.model."
        )
    refuse_other_kinds(file, args, KINDS)
    return args


def _told(error: Exception) -> str:
    return " ".join(str(error).split())


def _model_kwargs(args: dict[str, Any], config: timm_models.Config, counted: int | None) -> dict[str, Any]:
    """The arguments that `train.py` passes to `create_model`, as far as they matter after training."""
    size = args.get("input_size") or [None, args.get("img_size"), args.get("img_size")]
    named = {
        "num_classes": args.get("num_classes") or counted,
        "in_chans": args.get("in_chans") or size[0],
        "global_pool": args.get("gp"),
        "bn_eps": args.get("bn_eps"),
        # models of one input size (most transformers) are built for it
        "img_size": tuple(size[1:]) if any(size[1:]) and config.get("fixed_input_size") else None,
    }
    return {key: value for key, value in named.items() if value is not None} | (args.get("model_kwargs") or {})


def _data_config(file: Path, args: dict[str, Any], config: timm_models.Config) -> Said:
    from timm.data import resolve_data_config

    try:
        return from_timm(resolve_data_config(args, pretrained_cfg=config))
    except (AssertionError, TypeError, ValueError) as error:
        raise EdistillError(
            f"{file} gives a preprocessing timm cannot read: {_told(error) or 'input_size, mean or std'}. "
            f"Fix its input_size, img_size, mean and std."
        ) from None


def _class_order(path: Path, args: dict[str, Any], count: int | None, context: Context) -> Order | None:
    """The class order of the run: timm numbers class folders in natural order, or as the file `class_map` lists them.

    Its other kinds of datasets (hfds/, tfds/, torch/, wds/) have an order of their own, which is unknown here. It is
    taken to be the data's, which the caching pass checks by accuracy.
    """
    name, classes = member_name(path), context.classes
    if classes is None or "/" in (args.get("dataset") or ""):
        return context.order(name)
    if args.get("class_map"):
        file = _class_map(path, str(args["class_map"]))
        names = read_said(file).splitlines()
        return context.order(name, [line.strip() for line in names], str(file))
    if count is not None and count != len(classes):
        raise EdistillError(
            f"{name} has {count} classes, but the data has {len(classes)}. Members and data share their "
            f"classes: pass the data the member was trained on, or leave the member out."
        )
    return context.order(name, sorted(classes, key=natural_key), str(path / ARGS))


def _class_map(path: Path, given: str) -> Path:
    """The class map, beside `args.yaml` or where that says: runs are moved more often than edited."""
    found = next((file for file in (path / Path(given).name, Path(given)) if file.is_file()), None)
    if found is None or found.suffix != ".txt":
        problem = "is not there" if found is None else "is not a .txt file"
        raise EdistillError(
            f"{path / ARGS} takes its class order from class_map {given}, which {problem}. Put the list of "
            f"class names, one a line in the order of the outputs, at "
            f"{path / Path(given).with_suffix('.txt').name}"
            + ("." if Path(given).suffix == ".txt" else " and name it in class_map.")
        )
    return found
