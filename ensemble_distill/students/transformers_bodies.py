"""Bodies from the transformers library: any of its classifiers without the last layer.

Arguments are those of its configuration, so that a run's `config.json` suffices to build the body again. The remaining
layers keep the names that they have in a member's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_line, nearest
from ensemble_distill.runtime.silence import of_its_own
from ensemble_distill.runtime.transformers import library

PREFIX = "transformers/"
OUTPUTS = 7919  # width that identifies the last layer: a prime that no other layer has


def is_transformers(model: str) -> bool:
    """Whether a model is `transformers/TYPE`."""
    return model.startswith(PREFIX)


def transformers_body(model: str, kwargs: Mapping[str, Any], input_shape: tuple[int, ...], texts: bool) -> nn.Module:
    """The classifier of that type without its last layer: ids and mask, or pixels, to features (B, F).

    Args:
        model: `transformers/TYPE`, with the type as in a `config.json`: bert, distilbert, roberta, vit.
        kwargs: arguments of its configuration.
        input_shape: shape of one example; (C, H, W) for images.
        texts: whether rows are texts.

    Raises:
        EdistillError: transformers is not installed, has no such classifier, or refuses the arguments; or the
            classifier has no single linear last layer.
    """
    transformers, name = library(f"student.model {model}"), model.removeprefix(PREFIX)
    auto = transformers.AutoModelForSequenceClassification if texts else transformers.AutoModelForImageClassification
    if not texts and len(input_shape) != 3:
        raise EdistillError(
            f"student.model is {model!r}, whose classifiers are of texts and of pictures, and a row of the data has "
            f'shape {input_shape}. Give a factory for such rows (student.model = "model.py:make_body").'
        )
    known = sorted(config.model_type for config in auto._model_mapping)
    if name not in known:
        close = nearest(name, known, 3)
        raise EdistillError(
            f"student.model is {model!r}, and transformers {transformers.__version__} has no such classifier of these "
            f"rows{f' (near it: {PREFIX}' + f', {PREFIX}'.join(close) + ')' if close else ''}."
        )
    try:
        with of_its_own():
            config = transformers.AutoConfig.for_model(name, **{**kwargs, "num_labels": OUTPUTS})
            body: nn.Module = auto.from_config(config)
    except Exception as error:  # its models check arguments by failing on them, each in its own way
        raise EdistillError(
            f"student.model {model} cannot be built with student.kwargs {dict(kwargs)}: {first_line(error)}."
        ) from error
    _without_last(body, model)
    body.register_forward_hook(_features)
    return body


def _without_last(body: nn.Module, model: str) -> None:
    last = [name for name, one in body.named_modules() if isinstance(one, nn.Linear) and one.out_features == OUTPUTS]
    if len(last) != 1:
        raise EdistillError(
            f"student.model {model} has {len(last)} last layers ({', '.join(last) or 'none'}), and a body is a "
            'classifier without its one. Give a factory of features (student.model = "model.py:make_body").'
        )
    body.set_submodule(last[0], nn.Identity())


def _features(module: nn.Module, args: Any, returned: Any) -> Tensor:
    """A forward hook that returns the last layer's input in place of its output."""
    features: Tensor = returned.logits
    return features
