"""Members whose code has changed since they were cached, wherever they are opened again: weights tell nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_folder, refused, settings
from torch import nn

from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

MODEL = """
from pathlib import Path

from torch import nn


def layers():
    kind = Path(__file__).with_name("kind.txt").read_text()
    return [nn.Flatten(), nn.Linear(36, 5), getattr(nn, kind)()]


def make_teacher():
    return nn.Sequential(*layers(), nn.Linear(5, 3))


def make_body():
    return nn.Sequential(*layers())


def make_other():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
"""
USES: dict[str, Callable[[Settings], Any]] = {
    "start from one": lambda now: train(with_keys(now, {"student.init": "member-0", "train.method": "kd"})),
    "start from all": lambda now: train(with_keys(now, {"student.init": ["member-*"], "student.compress": 0.5})),
    "share": lambda now: train(
        with_keys(now, {"student.share": {"body.1": "1"}, "train.method": "kd", "train.teacher": "member-0"})
    ),
    "export": lambda now: export(now, ensemble=True, onnx=True),
    "ask about other rows": lambda now: evaluate(now, "plain"),
}


def with_keys(now: Settings, keys: dict[str, Any]) -> Settings:
    return settings(Path(now.output.runs).parent, {**keys, "output.name": "used"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("changed") / "tiny")
    (folder / "model.py").write_text(MODEL)
    (folder / "kind.txt").write_text("ReLU")
    for at in range(3):
        torch.manual_seed(at)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
        save_file(module.state_dict(), folder / f"teachers/member-{at}.safetensors")
    cache_logits(settings(folder, {"cache.check-labels": False}))
    train(settings(folder, {"output.name": "plain", "student.model": "model.py:make_other"}))
    return folder


@pytest.mark.parametrize("use", list(USES))
def test_a_member_whose_code_changed_is_refused_wherever_it_is_used(folder: Path, use: str) -> None:
    now = settings(folder)
    (folder / "kind.txt").write_text("Tanh")
    with refused("Member member-", "answers row 0 of validation otherwise", "code or arguments have changed"):
        USES[use](now)
    assert not (folder / "runs/used").exists()
    assert not (folder / "ensemble/export").exists()


def test_a_cache_of_other_rows_says_nothing_about_members(folder: Path, tmp_path: Path) -> None:
    (folder / "kind.txt").write_text("Tanh")
    other = make_folder(tmp_path / "tiny", rows={"validation": 11})
    keys = {"data.validation": str(other / "data/validation.npz"), "output.runs": str(tmp_path / "runs")}
    assert export(settings(folder, keys), ensemble=True, onnx=True)
