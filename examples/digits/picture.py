"""Each member and its head on three rows of the quickstart: python examples/digits/picture.py digits

`digits` is the folder made by `edistill quickstart digits`. Writes `heads.png` beside this file. The rows are not
picked by eye: they are those with the median and the highest model uncertainty of the ensemble among the test rows, and
with the highest among the quarter-turned rows.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

matplotlib.use("agg")
from matplotlib import pyplot as plt

Array = NDArray[np.float64]
HERE = Path(__file__).parent


def main(folder: Path) -> None:
    test, turned = (np.load(folder / f"data/{name}.npz")["x"] for name in ("test", "quarter-turned"))
    ordered = np.argsort(model_uncertainty(members(folder, test)))
    turned_row = int(np.argmax(model_uncertainty(members(folder, turned))))
    rows = {
        "an ordinary test row": test[ordered[len(ordered) // 2]],
        "the test row they differ most on": test[ordered[-1]],
        "a digit lying on its side": turned[turned_row],
    }
    draw(rows, folder)


def members(folder: Path, pictures: Array) -> Array:
    """Each member's probabilities (B, M, K) for pictures (B, 8, 8) with levels from 0 to 255."""
    make = runpy.run_path(str(folder / "model.py"))["make_teacher"]
    said = []
    for file in sorted((folder / "teachers").glob("*.safetensors")):
        network = make(classes=10)
        network.load_state_dict(load_file(file))
        with torch.no_grad():
            said.append(network.eval()(torch.from_numpy(_normalized(pictures))).softmax(-1).double().numpy())
    return np.stack(said, axis=1)


def heads(folder: Path, pictures: Array) -> Array:
    """Each head's probabilities (B, M, K), from the exported student."""
    session = onnxruntime.InferenceSession(folder / "runs/hydra-s0/export/model.onnx")
    (logits,) = session.run(["head_logits"], {"pixel_values": _normalized(pictures)})
    exponentials: Array = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _normalized(pictures: Array) -> NDArray[np.float32]:
    return ((pictures[:, None].astype(np.float32) / 255) - np.float32(0.5)) / np.float32(0.5)


def model_uncertainty(p: Array) -> Array:
    """Entropy of the mean minus the mean entropy, in nats, (B,)."""
    entropy = lambda q: -(q * np.log(q.clip(1e-12))).sum(-1)  # noqa: E731
    difference: Array = entropy(p.mean(1)) - entropy(p).mean(1)
    return difference


def draw(rows: dict[str, Array], folder: Path) -> None:
    figure = plt.figure(figsize=(10.5, 2.5))
    for column, (title, picture) in zip(figure.subfigures(1, 3), rows.items(), strict=True):
        column.suptitle(title, fontsize=10, y=0.99)
        shown, left, right = column.subplots(1, 3, width_ratios=[0.62, 1, 1])
        shown.imshow(picture, cmap="gray_r")
        shown.axis("off")
        sides = {"8 members": members(folder, picture[None]), "the student's 8 heads": heads(folder, picture[None])}
        for axis, (who, p) in zip((left, right), sides.items(), strict=True):
            axis.imshow(p[0], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_title(who, fontsize=8.5)
            axis.set_xticks(range(10), [str(k) for k in range(10)], fontsize=7)
            axis.set_yticks([])
            axis.set_xlabel(f"MU {model_uncertainty(p)[0]:.2f} nats", fontsize=8)
            axis.set_xticks(np.arange(0.5, 9.5), minor=True)
            axis.set_yticks(np.arange(0.5, 7.5), minor=True)
            axis.grid(which="minor", color="0.9", linewidth=0.5)
            axis.tick_params(which="both", length=0)
        column.subplots_adjust(left=0.02, right=0.98, top=0.78, bottom=0.19, wspace=0.1)
    figure.savefig(HERE / "heads.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
