"""A folder with the files that tests/tiny.py has none of: pictures, lists of rows, run folders of timm and of Hugging
Face, pickled checkpoints, stored inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")
SIDE = 16
TOML = """
[teachers]
path = "teachers"
model = "test_resnet"
preprocessing = { size = [32, 32], mean = [0.5], std = [0.25] }
[views]
transform = "crop-flip+ods"
count = 1
[student]
model = "test_resnet"
[cache]
batch-size = 8
[train]
epochs = 2
batch-size = 8
device = "cpu"
workers = 0
[data]
train = "data/train"
validation = { source = "data/more", rows = "validation.npy" }
test = "data/test"
"""


def make_pictures(folder: Path) -> Path:
    """A folder that nothing was run in yet."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "edistill.toml").write_text(TOML)
    for seed, (split, rows) in enumerate({"train": 12, "more": 12, "test": 6}.items()):
        _save_pictures(folder / "data" / split, rows, seed)
    np.save(folder / "validation.npy", np.arange(0, 12, 2))
    members = {}
    for seed in range(3):
        torch.manual_seed(seed)
        members[seed] = timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict()
    run = folder / "teachers" / "timm-run"
    run.mkdir(parents=True)
    size, mean, std = [3, 32, 32], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    (run / "args.yaml").write_text(
        f"model: test_resnet\nnum_classes: 3\ninput_size: {size}\nmean: {mean}\nstd: {std}\ncrop_pct: 1.0\n"
    )
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": members[0]}, run / "model_best.pth.tar")
    face = folder / "teachers" / "face"
    face.mkdir()
    how = {"input_size": size, "mean": mean, "std": std, "crop_pct": 1.0, "interpolation": "bilinear"}
    config = {"architecture": "test_resnet", "num_classes": 3, "label_names": list(CLASSES), "pretrained_cfg": how}
    (face / "config.json").write_text(json.dumps(config))
    save_file(members[1], face / "model.safetensors")
    torch.save(members[2], folder / "teachers" / "bare.pth")
    return folder


def _save_pictures(folder: Path, rows: int, seed: int) -> None:
    """Every other one is a JPEG, which has no checksum of its own."""
    rng = np.random.default_rng(seed)
    for row in range(rows):
        place = folder / CLASSES[row % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{row:02d}.{('png', 'jpg')[row // len(CLASSES) % 2]}")
