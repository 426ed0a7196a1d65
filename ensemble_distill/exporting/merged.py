"""A student with one timm body and linear heads, as one plain timm model whose classifier is the heads' mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import MadeFrom, Preprocessing
from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import WEIGHTS_SHA
from ensemble_distill.runs.folder import CONFIG, MADE_FROM, SAFETENSORS
from ensemble_distill.runtime.files import read_whole, scratch, sha256_file, write_all
from ensemble_distill.runtime.jsons import json_text, parse_json
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.students.transformers_bodies import is_transformers

APART = 1e-4  # of a logit, between the mean of the heads and timm's model


def refuse_unmergeable(what: Architecture, named: str, body: str) -> None:
    """Raise EdistillError if a student cannot be a plain timm model.

    Args:
        named, body: the names of the student and its body, for the message.
    """
    reasons = {
        f"its body is {body}, and no timm model": what.names_code or is_transformers(what.model),
        f"it has {what.bodies} bodies side by side": what.bodies > 1,
        "its body is compressed": bool(what.compressed),
        "its members share a body by rank-one factors": what.form != "heads",
        "each head has its own last stage": what.last_stage is not None,
        f"its heads have hidden layers of {list(what.hidden)}": bool(what.hidden),
        f"its task is {what.task.key}, and timm's is classification": not what.task.one_class or what.kind != "pixels",
        "its head is not a classifier, but the doubt about one": not isinstance(what.family, CategoricalFamily),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise EdistillError(
            f"--merge-heads makes one plain timm model, and {named} is none: {reason}. Leave it out, or use --onnx."
        )


@torch.no_grad()
def mean_logits(student: Student, raw: Tensor) -> Tensor:
    """The weighted mean (B, K) of the heads' logits (B, H, K), divided by the student's temperature."""
    temperature = 1.0 if student.calibration is None else student.calibration.temperature
    weights = torch.full((raw.shape[1],), 1 / raw.shape[1]) if student.weights is None else student.weights
    return (weights.to(raw).view(1, -1, 1) * raw).sum(1) / temperature


@torch.no_grad()
def merged(student: Student, what: Architecture) -> nn.Module:
    """The timm model in eval mode; raises EdistillError if the body plus one linear classifier is not the whole
    model."""
    heads = student.heads
    assert isinstance(heads, Heads)
    kwargs = {name: value for name, value in what.kwargs.items() if name not in ("pretrained", "checkpoint_path")}
    model: nn.Module = timm.create_model(
        what.model, num_classes=len(what.task.names), in_chans=what.shape[0], **kwargs
    ).eval()
    missing, unknown = model.load_state_dict(student.body.state_dict(), strict=False)
    classifier: Any = model.get_classifier()  # type: ignore[operator]  # timm's, unknown to torch's types
    own = {f"{name}.{part}" for name, one in model.named_modules() if one is classifier for part in ("weight", "bias")}
    layer: Any = heads.layers[0]
    if not isinstance(classifier, nn.Linear) or set(missing) != own or unknown:
        other = ", ".join([type(classifier).__name__, *missing, *unknown][:3])
        raise EdistillError(
            f"--merge-heads puts one linear classifier on {what.model}, and that has another ({other}). Leave it out, "
            "or use --onnx."
        )
    classifier.weight.copy_(mean_logits(student, layer.weight.permute(1, 0, 2)).T)
    classifier.bias.copy_(mean_logits(student, layer.bias.unsqueeze(0))[0])
    return model


def write_merged(
    model: nn.Module, student: Student, config: StudentConfig, x: Tensor, folder: Path, made_from: MadeFrom
) -> Path:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, after loading it that way.

    Args:
        x: real rows (B, *shape) to compare on.
        made_from: the weights and the calibration of its run, which the folder records.

    Raises:
        EdistillError: the outputs of timm's model differ from the mean of the heads' logits.
    """
    what = config.architecture
    to = what.preprocessing
    assert isinstance(to, Preprocessing)
    channels = what.shape[0]
    data = {
        "input_size": list(what.shape),
        "mean": list(to.mean) * (channels // len(to.mean)),
        "std": list(to.std) * (channels // len(to.std)),
        "interpolation": to.interpolation,
        "crop_pct": to.crop_pct,
        "crop_mode": to.crop_mode,
    }
    said = {"pretrained_cfg": data, "label_names": list(what.task.names), MADE_FROM: made_from.to_json()}
    with scratch() as there:
        try:
            timm.models.save_for_hf(model, there, model_config=said, safe_serialization=True)
            back = timm.create_model(f"local-dir:{there}", pretrained=True).eval()
        except Exception as error:  # timm's models raise many kinds of errors
            raise EdistillError(f"timm cannot keep it: {first_line(error)}. Leave --merge-heads out.") from error
        with torch.no_grad():
            found, wanted = back(x), mean_logits(student, student(x))
        apart = float((found - wanted).abs().max())
        if not apart <= APART * max(1.0, float(wanted.abs().max())):
            raise EdistillError(
                f"The merged model's logits differ from the mean of the heads' by {apart:.2e}, so nothing was written. "
                "Leave --merge-heads out, and report the body."
            )
        config_of_it = {**parse_json(read_whole(there / CONFIG)), WEIGHTS_SHA: sha256_file(there / SAFETENSORS)}
        content = [(folder / SAFETENSORS, read_whole(there / SAFETENSORS))]
        content.append((folder / CONFIG, json_text(config_of_it).encode()))
    write_all(content, within=folder.parents[1])  # within the run, since the folder of exports may be new
    return folder
