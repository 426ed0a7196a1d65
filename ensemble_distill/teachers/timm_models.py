"""Access to timm's registry: configs, class counts and modules, with errors a user can act on.

timm takes seconds to import, so it is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, nearest
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.students.architecture import without_fetching

Config = dict[str, Any]


def plain_name(name: str, where: str, progress: Progress) -> str:
    """The registry's name of a model that may be written `hf_hub:timm/NAME`.

    A note says that nothing is asked of the hub.

    Raises:
        EdistillError: only the hub or a local folder describes the model.
    """
    scheme, colon, place = name.partition(":")
    if not colon or scheme.replace("_", "-") not in ("hf-hub", "local-dir"):
        return name
    owner, _, architecture = place.rpartition("/")
    if scheme == "local-dir" or owner != "timm":
        raise EdistillError(
            f"{where} is {name!r}, and its architecture stands in the config.json there alone. Write that file's "
            "architecture in its place, a timm name such as resnet50."
        )
    progress.note(
        f"{where} is {name!r}: built as {architecture} of this timm, with its preprocessing where the files say none. "
        "Nothing is asked of the hub."
    )
    return architecture


def default_config(name: str, where: str) -> Config:
    """timm's config for a model name, or for its tag if it has one: input_size, mean, classifier, ….

    Args:
        name: `resnet50` or `resnet50.a1_in1k`.
        where: the setting or file that gives the name, for the message.

    Raises:
        EdistillError: timm has no such model; the nearest names are listed.
    """
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        near = nearest(name, timm.list_models(), 3)
        hint = f"The nearest are {', '.join(near)}." if near else "timm.list_models() lists them."
        raise EdistillError(f"{where} is {name!r}, which timm {timm.__version__} does not have. {hint}")
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise EdistillError(f"{where} is {name!r}: {error} Use the name without what follows the dot.") from None
    return {} if config is None else dict(config.to_dict())


def with_inputs(config: Config, kwargs: Mapping[str, Any]) -> Config:
    """The config with the input size that the model's arguments `in_chans` and `img_size` set."""
    channels, *size = config.get("input_size") or (3, 224, 224)
    asked = kwargs.get("img_size")
    if asked is not None:
        size = list(asked) if isinstance(asked, Sequence) else [asked, asked]
    return {**config, "input_size": (kwargs.get("in_chans") or channels, *size)}


def class_count(state: Mapping[str, Tensor], config: Config) -> int | None:
    """The number of classes in the classifier's weights; None if the classifier is not found."""
    classifier = config.get("classifier")
    first = classifier if isinstance(classifier, str) or not classifier else classifier[0]
    weight = state.get(f"{first}.weight")
    return None if weight is None else weight.shape[0]


def create(name: str, kwargs: Mapping[str, Any], built_from: str, config: Config | None = None) -> nn.Module:
    """Build a timm model offline and without weights, even if its arguments name some.

    Args:
        name: the model's name in timm.
        kwargs: arguments of `timm.create_model`.
        built_from: the settings the user edits to get another module, for the message.
        config: replaces the registry's config; keys unknown to this version of timm are dropped.

    Raises:
        EdistillError: timm refuses the arguments.
    """
    from dataclasses import fields

    import timm
    from timm.models import PretrainedCfg

    arguments = without_fetching(kwargs)
    if config is not None:
        known = {field.name for field in fields(PretrainedCfg)}
        arguments["pretrained_cfg"] = {key: value for key, value in config.items() if key in known}
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # models check arguments by failing on them, each in its own way
        raise EdistillError(
            f"timm cannot build {name} with {dict(kwargs)}: {str(error) or type(error).__name__}. Check {built_from}."
        ) from error
    return module
