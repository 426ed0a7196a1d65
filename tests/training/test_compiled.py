"""A compiled body learns as it is written, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_folder, refused, settings, with_cache
from torch import Tensor, nn

from ensemble_distill.workflows.train import train

COMPILED = {"train.torchcompile": "eager"}
Wrong = Callable[[Tensor], Tensor]  # what a compiler makes of a gradient


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(make_folder(tmp_path_factory.mktemp("compiled") / "tiny"))


@pytest.fixture
def folder(cached: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cached, tmp_path / "tiny"))


def errs(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """Compiled modules say what they said, and have other gradients."""

    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return wrong(gradients[0])

    def compiled(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        self._compiled_call_impl = lambda *given: Other.apply(self._call_impl(*given))

    monkeypatch.setattr(nn.Module, "compile", compiled)


@pytest.mark.parametrize(
    "wrong", [lambda g: g * torch.nan, lambda g: g * 1.2, torch.zeros_like], ids=["nan", "larger", "lost"]
)
def test_other_gradients_are_refused_before_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    errs(monkeypatch, wrong)
    with refused(
        "train.torchcompile = 'eager'", "learns otherwise", "the gradient of ", "Leave out train.torchcompile"
    ):
        train(settings(folder, {**COMPILED, "student.kwargs": {"dropout": 0.0}}))
    assert not list((folder / "runs").glob("*/student.safetensors"))
    train(settings(folder))  # the remedy


def test_in_lower_precision_what_it_loses_is_allowed_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = {**COMPILED, "student.kwargs": {"dropout": 0.0}, "train.amp": True, "train.epochs": 1}
    train(settings(folder, {**lower, "output.name": "as-written"}))
    errs(monkeypatch, lambda g: g * 2)
    with refused("learns otherwise"):
        train(settings(folder, lower))


def test_of_a_body_that_draws_random_numbers_gradients_are_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = {**COMPILED, "student.kwargs": {"dropout": 0.5}, "train.epochs": 1}
    errs(monkeypatch, lambda g: g * 2)  # which nothing tells from other draws
    train(settings(folder, {**dropping, "output.name": "other-draws"}))
    errs(monkeypatch, lambda g: g / 0)
    with refused("learns otherwise"):
        train(settings(folder, dropping))
