"""One member of each kind of teacher, small and made at once, for the suite that all kinds pass."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from teachers_helpers import small_model
from text_helpers import LENGTH, a_text_folder
from torch import Tensor, nn

FACTORY = "from torch import nn\ndef make():\n    return nn.Linear(5, 3)\n"
FEATURES, CLASSES, ROWS = 5, 3, 11


@dataclass(frozen=True)
class Example:
    """How a kind's member is made.

    Attributes:
        make: writes it into a folder, of a seed, and returns its path.
        file: what of it holds the weights, below that path; empty where it is one file.
        settings: of `[teachers]`.
        shape: of a row.
        trust: whether it needs `--trust-checkpoints`.
        lacking: a package without which it cannot be tried.
        ids: how many there are, of rows that are whole numbers; 0 for floats.
    """

    make: Callable[[Path, int], Path]
    file: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (FEATURES,)
    trust: bool = False
    lacking: str = ""
    ids: int = 0

    def inputs(self, rows: int = 0, wider: int = 0) -> Tensor:
        """Rows as it takes them; `wider` by so many on every side."""
        shape, rows = tuple(side + wider for side in self.shape), rows or ROWS
        if not self.ids:
            return inputs(shape, rows)
        x = torch.from_numpy(np.random.default_rng(9).integers(4, self.ids, (rows, *shape)))
        x[:, 1] = torch.arange(shape[1]) < 3 + torch.arange(rows)[:, None] % (shape[1] - 3)  # the mask
        x[:, 0] *= x[:, 1]  # and what is padded
        return x


def linear(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A weight (3, 5) and a bias (3,)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(CLASSES, FEATURES)).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)


def inputs(shape: tuple[int, ...] = (FEATURES,), rows: int = ROWS) -> Tensor:
    return torch.from_numpy(np.random.default_rng(9).normal(size=(rows, *shape)).astype(np.float32))


def a_checkpoint(folder: Path, seed: int) -> Path:
    (folder / "model.py").write_text(FACTORY)
    weight, bias = map(torch.from_numpy, linear(seed))
    save_file({"weight": weight, "bias": bias}, folder / "m.safetensors")
    return folder / "m.safetensors"


def a_timm_run(folder: Path, seed: int) -> Path:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m/args.yaml").write_text(yaml.safe_dump({"model": "test_resnet", "num_classes": 3}))
    save_file(small_model(seed).state_dict(), folder / "m/last.safetensors")
    return folder / "m"


def an_hf_folder(folder: Path, seed: int) -> Path:
    (folder / "m").mkdir(exist_ok=True)
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"mean": [0.5] * 3}}
    (folder / "m/config.json").write_text(json.dumps(config))
    save_file(small_model(seed).state_dict(), folder / "m/model.safetensors")
    return folder / "m"


def linear_graph(seed: int, rows: int | str = "N", kind: int = TensorProto.FLOAT, name: str = "logits") -> Any:
    """x (rows, 5) to three logits."""
    weight, bias = linear(seed)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], [name], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", kind, [rows, FEATURES])],
        [helper.make_tensor_value_info(name, kind, [rows, CLASSES])],
        [numpy_helper.from_array(weight.astype(dtype), "w"), numpy_helper.from_array(bias.astype(dtype), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def an_onnx_graph(folder: Path, seed: int) -> Path:
    onnx.save_model(linear_graph(seed), folder / "m.onnx")
    return folder / "m.onnx"


def a_table(folder: Path, seed: int) -> Path:
    weight, bias = linear(seed)
    np.savez(folder / "m.npz", train=inputs().numpy() @ weight.T + bias)
    return folder / "m.npz"


class Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        weight, bias = map(torch.from_numpy, linear(seed))
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


def exported(path: Path, seed: int, dynamic: bool = True) -> Path:
    shapes = {"x": {0: torch.export.Dim.AUTO if dynamic else None}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        torch.export.save(
            torch.export.export(Linear(seed).eval(), (torch.zeros(4, FEATURES),), dynamic_shapes=shapes), path
        )
    return path


def scripted(path: Path, seed: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        torch.jit.save(torch.jit.trace(Linear(seed).eval(), torch.zeros(4, FEATURES)), path)  # type: ignore[no-untyped-call]
    return path


def an_exported_program(folder: Path, seed: int) -> Path:
    return exported(folder / "m.pt2", seed)


def a_transformers_folder(folder: Path, seed: int) -> Path:
    return a_text_folder(folder / "m", seed)


def fitted(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    weight, bias = linear(seed)
    x = np.random.default_rng(seed).normal(size=(60, FEATURES))
    return LogisticRegression().fit(x, (x @ weight.T + bias).argmax(1))


def an_estimator(folder: Path, seed: int) -> Path:
    from skops import io

    io.dump(fitted(seed), folder / "m.skops")
    return folder / "m.skops"


EXAMPLES: dict[str, Example] = {
    "checkpoint": Example(a_checkpoint, settings={"model": "model.py:make"}),
    "hf_folder": Example(an_hf_folder, "model.safetensors", {"preprocessing": {"size": [32, 32]}}, (3, 32, 32)),
    "estimator": Example(an_estimator, lacking="skops"),
    "onnx_file": Example(an_onnx_graph),
    "program": Example(an_exported_program, trust=True),
    "ready_made": Example(a_table),
    "transformers_folder": Example(
        a_transformers_folder, "model.safetensors", shape=(2, LENGTH), lacking="transformers", ids=30
    ),
    "timm_run": Example(a_timm_run, "last.safetensors", shape=(3, 32, 32)),
}


def copied_run(session: Path) -> Example:
    """Runs of edistill take a training: those of the session are copied."""

    def make(folder: Path, seed: int) -> Path:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        shutil.copy(session / "model.py", folder)
        return Path(shutil.copytree(session / "runs" / ("hydra-s0", "other")[seed], folder / "runs/m"))

    return Example(make, "student.safetensors", shape=(1, 6, 6))
