"""A bare checkpoint file (.safetensors .pth .pt .bin .ckpt .pth.tar), whose module `teachers.model` builds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import AnyPreprocessing, Member
from ensemble_distill.runtime.factories import is_factory, load_factory, portable
from ensemble_distill.students.fields import refuse_other_names, shown
from ensemble_distill.teachers import timm_models
from ensemble_distill.teachers.encodings import from_tokenizer
from ensemble_distill.teachers.fit import BARE, deferred
from ensemble_distill.teachers.names import is_weights_file, member_name
from ensemble_distill.teachers.preprocessing import from_settings, from_timm, settled
from ensemble_distill.teachers.several import several_of
from ensemble_distill.teachers.states import digest
from ensemble_distill.teachers.teacher import Context, Teacher
from ensemble_distill.teachers.weights import is_torchscript, read_weights

OTHERWISE = "Or say which of the data's arrays it takes, and what it calls them: teachers.inputs."


def claims(path: Path) -> bool:
    return is_weights_file(path) and path.is_file() and not is_torchscript(path)


def load(path: Path, context: Context) -> Teacher:
    spec, kwargs, name = context.settings.model, dict(context.settings.model_kwargs), member_name(path)
    given = from_settings(context.settings.preprocessing)
    if spec is None:
        raise EdistillError(
            f"{path} is a bare checkpoint: weights without the module they belong to. Say what builds it, "
            'teachers.model = "resnet50" (a timm name), "model.py:make_teacher" or "package.module:factory", '
            "and its arguments in teachers.model-kwargs."
        )
    spec = timm_models.plain_name(spec, "teachers.model", context.progress)
    preprocessing: AnyPreprocessing | None
    if is_factory(spec):
        weights = read_weights(path, context.trust)
        preprocessing = several_of(name, context)
        if preprocessing is None:
            preprocessing = from_tokenizer(name, context.settings.preprocessing, context.pairs)
            preprocessing = settled(name, given) if given else preprocessing
        construct = partial(_from_factory, spec, kwargs, preprocessing)
    else:
        config = timm_models.default_config(spec, "teachers.model")
        weights = read_weights(path, context.trust)
        if (count := timm_models.class_count(weights.state, config)) is not None:
            kwargs.setdefault("num_classes", count)
        preprocessing = settled(name, given, from_timm(timm_models.with_inputs(config, kwargs)))
        construct = partial(timm_models.create, spec, kwargs, BARE)
    member = Member(
        name=name,
        sha256=digest(weights.state),
        **context.stated,
        class_order=context.order(name),
        preprocessing=preprocessing,
        model=portable(spec),
    )
    return replace(deferred(member, path, weights, context, construct), bare=True)


def _from_factory(spec: str, kwargs: dict[str, Any], to: AnyPreprocessing | None) -> nn.Module:
    module = load_factory(spec, "teachers.model")(**kwargs)
    if not isinstance(module, nn.Module):
        raise EdistillError(
            f"teachers.model {portable(spec)} returned a {type(module).__name__}, not a torch.nn.Module. "
            f"Return the module; edistill loads the weights into it."
        )
    refuse_other_names(module, to, f"teachers.model {portable(spec)}", OTHERWISE)
    return shown(module, to)
