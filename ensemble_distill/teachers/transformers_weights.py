"""Load the weights of a transformers folder, from one file or several, into their module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import Member
from ensemble_distill.runtime.silence import of_its_own
from ensemble_distill.runtime.transformers import library
from ensemble_distill.teachers.names import gone
from ensemble_distill.teachers.said import json_said
from ensemble_distill.teachers.states import State
from ensemble_distill.teachers.weights import OF_FOLDERS, read_weights

INDICES = tuple(f"{name}.index.json" for name in OF_FOLDERS)
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depths")


def weight_files(folder: Path) -> list[Path]:
    """The file of weights, or the index of several, that is preferred among those there; empty if there is none."""
    names = (OF_FOLDERS[0], INDICES[0], OF_FOLDERS[1], INDICES[1])
    return [folder / name for name in names if (folder / name).is_file()][:1]


def folder_weights(folder: Path, trust: bool) -> State:
    """Read the parameters and buffers by name.

    Raises:
        EdistillError: as `read_weights` does, or an index names files that are missing or outside the folder.
    """
    found = weight_files(folder)
    if not found:
        raise gone(folder)
    if found[0].name in OF_FOLDERS:
        return dict(read_weights(found[0], trust).state)
    state: State = {}
    for part in _parts(found[0]):
        state |= dict(read_weights(part, trust).state)
    return state


def _parts(index: Path) -> list[Path]:
    record = json_said(index)
    named = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(one, str) for one in named.values()):
        raise EdistillError(f"{index} has no weight_map of names to files. Copy it again from where it came.")
    parts = sorted(set(named.values()))
    for part in parts:
        if Path(part).name != part or not (index.parent / part).is_file():
            where = "is not there" if Path(part).name == part else "is outside its folder"
            raise EdistillError(
                f"{index} takes weights from {part!r}, which {where}. Weights stand beside their index: copy the "
                "folder again."
            )
    return [index.parent / part for part in parts]


def built(folder: Path, record: Mapping[str, Any], weights: State, member: Member, trust: bool) -> nn.Module:
    """Build the classifier with its weights, in eval mode and float32; it maps x or fields to logits.

    Raises:
        EdistillError: transformers lacks the architecture or cannot read the config, or the config asks for other
            weights than there are.
    """
    transformers, file = library(f"Member {member.name}"), folder / "config.json"
    with of_its_own():
        try:
            config = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust
            )
            kind = _kind(transformers, folder, record, config, trust)
        except EdistillError:
            raise
        except Exception as error:  # a config may hold anything
            raise EdistillError(
                f"{file} is not a config that transformers {transformers.__version__} reads: {first_line(error)}. "
                "Restore it, or update transformers."
            ) from None
        _refuse_larger(file, kind, config, record, weights)
        return _filled(file, kind, config, weights, member)


def _kind(transformers: Any, folder: Path, record: Mapping[str, Any], config: Any, trust: bool) -> Any:
    name = record["architectures"][0]
    own = next((str(one) for one in (record.get("auto_map") or {}).values() if str(one).endswith(f".{name}")), None)
    if own is not None and trust:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(own, str(folder), local_files_only=True)
    kind = getattr(transformers, name, None)
    if kind is None:
        raise EdistillError(
            f"{folder / 'config.json'} names {name}, which transformers {transformers.__version__} does not have. "
            "Update transformers, or export the member to ONNX."
        )
    return kind


def _refuse_larger(file: Path, kind: Any, config: Any, record: Mapping[str, Any], weights: State) -> None:
    """Raise EdistillError for a config that asks for more weights than there are, before they are allocated."""
    there = sum(tensor.numel() for tensor in weights.values())
    for key in LAYERS:
        count = record.get(key)
        if isinstance(count, int) and count > len(weights):
            raise EdistillError(
                f"{file} says {key} = {count:,}, and there are {len(weights):,} tensors of weights. Restore the one "
                "that belongs to them."
            )
    try:
        with torch.device("meta"):
            wanted = sum(tensor.numel() for tensor in kind(config).parameters())
    except Exception as error:  # a config may hold anything
        raise EdistillError(f"{file} builds no module: {first_line(error)}. Restore it.") from None
    if wanted > 2 * there + 1000:
        raise EdistillError(
            f"{file} asks for {wanted:,} weights, and there are {there:,}. Restore the config that belongs to them."
        )


def _filled(file: Path, kind: Any, config: Any, weights: Mapping[str, Tensor], member: Member) -> nn.Module:
    """Load the weights with transformers itself, which knows the tensor names of its older versions."""
    if (
        getattr(config, "pad_token_id", None) is None
        and (pad := getattr(member.preprocessing, "pad", None)) is not None
    ):
        config.pad_token_id = pad  # classifiers of the last token find the text's end by it
    try:
        # the module draws initial weights that are overwritten at once; the caller's random state must not change
        with torch.random.fork_rng(devices=[]):
            module, told = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below instead
            )
    except Exception as error:  # and so may the weights
        raise EdistillError(
            f"{member.name} does not fit its module: {first_line(error)}. Check {file}, and the weights beside it."
        ) from None
    problems = [
        f"{what}: {first_few(sorted(str(one[0] if isinstance(one, tuple) else one) for one in told[key]))}"
        for key, what in (
            ("missing_keys", "missing from the weights"),
            ("unexpected_keys", "not in the module"),
            ("mismatched_keys", "of another shape"),
        )
        if told[key]
    ]
    if problems:
        raise EdistillError(
            f"{member.name} does not fit its module. {'; '.join(problems)}. Check {file}, and the weights beside it."
        )
    module.register_forward_hook(_logits)
    answered: nn.Module = module.eval().requires_grad_(False)
    return answered


def _logits(module: nn.Module, args: Any, returned: Any) -> Any:
    """Forward hook that keeps only the logits of what a classifier returns."""
    return getattr(returned, "logits", returned)
