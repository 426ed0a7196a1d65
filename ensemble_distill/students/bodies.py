"""Building a student's body: a timm or transformers model without its classifier, or a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_line, nearest, quoted
from ensemble_distill.facts import Named, Several, Tokenization
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.parts import parts
from ensemble_distill.students.fields import nothing, refuse_other_names, shown
from ensemble_distill.students.positions import at_positions
from ensemble_distill.students.side_by_side import SideBySide
from ensemble_distill.students.transformers_bodies import is_transformers, transformers_body

BodyFactory = Callable[..., nn.Module]


def build_body(
    model: str,
    kwargs: Mapping[str, Any],
    input_shape: tuple[int, ...],
    factory: BodyFactory | None = None,
    positions: int | None = None,
    encoding: Named | None = None,
) -> nn.Module:
    """Build a module from an input (B, *input_shape) to features (B, F).

    Args:
        model: a timm name, `transformers/TYPE`, `file.py:factory` or `package.module:factory`.
        kwargs: arguments of the model or factory.
        input_shape: shape of one example: (C, H, W), (F,), or (fields, L) for texts. A timm model gets its `in_chans`
            from it.
        factory: used in place of `model` if given.
        positions: number of positions with an answer; ids (B, C + L) then become features (B, C + L, F). None for one
            answer per row.
        encoding: how texts or several arrays become the input, as named arguments of the module; None for one array.

    Raises:
        EdistillError: there is no such model, it is not a module, or its output is not (B, F).
    """
    if factory is None and ":" not in model:
        _refuse_several(model, encoding)
        if is_transformers(model):
            body = transformers_body(model, kwargs, input_shape, encoding is not None)
        else:
            body = _timm_body(model, kwargs, input_shape)
    else:
        make = factory or load_factory(model, "student.model")
        try:
            body = make(**kwargs)
        except TypeError as error:
            raise EdistillError(
                f"student.model {model} does not take student.kwargs {dict(kwargs)}: {first_line(error)}."
            ) from error
        if not isinstance(body, nn.Module):
            raise EdistillError(f"student.model {model} returned {type(body).__name__}, not a torch.nn.Module.")
    body = body.float()  # students are trained in float32, whatever their factory makes
    shown(body, encoding)
    refuse_other_names(body, encoding, f"student.model {model}", "Arrays that it does not need, as **others.")
    feature_count(body, input_shape, model, positions, encoding)
    return body


def build_bodies(
    count: int,
    model: str,
    kwargs: Mapping[str, Any],
    input_shape: tuple[int, ...],
    factory: BodyFactory | None = None,
    positions: int | None = None,
    encoding: Named | None = None,
) -> nn.Module:
    """One body as `build_body` makes it, or several side by side."""
    bodies = [build_body(model, kwargs, input_shape, factory, positions, encoding) for _ in range(count)]
    return bodies[0] if count == 1 else SideBySide(bodies)


def each(body: nn.Module) -> list[nn.Module]:
    """The bodies that are side by side in `body`; `body` itself if it is a single one."""
    return list(body.bodies) if isinstance(body, SideBySide) else [body]


def _timm_body(model: str, kwargs: Mapping[str, Any], input_shape: tuple[int, ...]) -> nn.Module:
    import timm

    if not timm.is_model(model):
        close = nearest(model, timm.list_models(), 3)
        raise EdistillError(
            f"student.model is {model!r}, which timm does not know"
            + (f" (near it: {', '.join(close)})" if close else "")
            + ". Give a timm name, file.py:factory or package.module:factory."
        )
    if len(input_shape) != 3:
        raise EdistillError(
            f"student.model {model} is a timm image model, but a row of the data has shape {input_shape}. Give a "
            'factory for such rows (student.model = "model.py:make_body").'
        )
    for key, reason in (("num_classes", "a body has no classifier"), ("in_chans", "the data decides it")):
        if key in kwargs:
            raise EdistillError(f"student.kwargs has {key} = {kwargs[key]!r}, but {reason}. Leave {key} out.")
    try:
        body: nn.Module = timm.create_model(model, num_classes=0, in_chans=input_shape[0], **dict(kwargs))
    except Exception as error:  # timm and its models raise many kinds
        raise EdistillError(
            f"student.model {model} cannot be built with student.kwargs {dict(kwargs)}: {first_line(error)}."
        ) from error
    return body


def feature_count(
    body: nn.Module,
    input_shape: tuple[int, ...],
    model: str,
    positions: int | None = None,
    encoding: Named | None = None,
) -> int:
    """F of a body's output (B, F), or (B, L, F) with positions, found by running two rows of zeros.

    Raises:
        EdistillError: the body fails on them, or its output has another shape.
    """
    training = body.training
    body.eval()
    try:
        with torch.no_grad():
            features = body(nothing(2, input_shape, positions is not None or isinstance(encoding, Tokenization)))
            features = features if positions is None else at_positions(features, positions)
    except Exception as error:  # the body is anyone's code; timm's transformers assert their input's size
        raise EdistillError(
            f"student.model {model} fails on {_told(input_shape, encoding)}: {quoted(error)}."
        ) from error
    finally:
        body.train(training)
    wanted = (2,) if positions is None else (2, positions)
    if not isinstance(features, Tensor) or features.shape[:-1] != wanted or features.shape[-1] == 0:
        raise _other_features(features, model, input_shape, positions)
    if features.dtype != torch.float32:
        raise EdistillError(
            f"student.model {model} returns features of {features.dtype} for rows of torch.float32. End its forward "
            "with .float()."
        )
    return int(features.shape[-1])


def _told(shape: tuple[int, ...], encoding: Named | None) -> str:
    if encoding is None:
        return f"an input of shape (2, {_shape(shape)})"
    if isinstance(encoding, Several):
        taken = [(slot.name, _shape(slot.shape)) for slot in encoding.slots]
    else:
        taken = [(field, str(encoding.length)) for field in encoding.fields]
    return f"{', '.join(f'{name} (2, {sizes})' for name, sizes in taken)}, by these names"


def _refuse_several(model: str, encoding: Named | None) -> None:
    """Raise EdistillError for a timm or transformers model, which takes one array, if rows are several."""
    if isinstance(encoding, Several):
        raise EdistillError(
            f"student.model is {model}, which takes one array, and rows are {', '.join(encoding.fields)}. Give a "
            f"factory of a module whose forward({', '.join(encoding.fields)}) returns features (B, F): student.model = "
            '"model.py:make_body".'
        )


def _other_features(features: Any, model: str, shape: tuple[int, ...], positions: int | None) -> EdistillError:
    got = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
    if positions is not None:
        return EdistillError(
            f"student.model {model} returns {got} for ids (2, {_shape(shape)}); a body returns features (2, "
            f"{_shape(shape)}, F), or a pair of them and a state. Leave the classifier out, and pool nothing."
        )
    return EdistillError(
        f"student.model {model} returns {got} for 2 rows; a body returns features (2, F). {_of_several(features)}"
        "Pool and flatten in it, and leave the classifier out."
    )


def _of_several(returned: Any) -> str:
    """Advice on which tensor to return, if the body returned a tuple, a table or an object; "" if there is none."""
    found = [] if isinstance(returned, Tensor) else list(parts(returned))
    fitting = [part for part in found if part.tensor.dim() == 2 and len(part.tensor) == 2]
    if not fitting:
        return ""
    listed = " or ".join(f"out{part.path} {tuple(part.tensor.shape)}" for part in fitting)
    return f"Let its forward, whose result is now called out, return {listed} alone. "


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)
