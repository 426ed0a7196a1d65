"""Keys that differ by a prefix, tensors of several names, and buffers that nobody has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from teachers_helpers import assert_equal_outputs, context, follow, net
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers import fit, open_teachers
from ensemble_distill.teachers.states import digest, prefixes, renamings
from ensemble_distill.teachers.teacher import Teacher

States = dict[str, Tensor]


def under(prefix: str, state: States) -> States:
    return {prefix + name: tensor for name, tensor in state.items()}


def state_of(module: nn.Module) -> States:
    return dict(module.state_dict())


class Wrapped(nn.Module):
    """A single logit z as (0, z), as our own message asks for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return torch.cat([torch.zeros_like(z), z], 1)


BUILT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda module: module,
    "DataParallel": nn.DataParallel,
    "compiled": lambda module: torch.compile(module, backend="eager"),  # type: ignore[dict-item, return-value]
    "averaged": AveragedModel,
    "wrapped": Wrapped,
    "wrapped twice": lambda module: Wrapped(nn.DataParallel(module)),
}


@pytest.mark.parametrize("built", BUILT)
def test_one_prefix_on_either_side_is_no_misfit(built: str) -> None:
    for prefix in ("", "module.", "model.", "timm_model.", "backbone.net.", "_orig_mod.model."):
        original = net()
        module = BUILT[built](net())
        told = fit.load_weights(module, under(prefix, state_of(original)), "m")
        loaded = next(part for part in module.modules() if isinstance(part, nn.Sequential))
        assert digest(loaded.state_dict()) == digest(original.state_dict()), prefix
        assert len(told) == ({"": 0}.get(prefix, 1) if built == "as it is" else told != [])


def test_what_a_prefix_did_is_told() -> None:
    state = state_of(net())
    assert fit.load_weights(net(), under("model.", state), "m") == [
        "m: names begin with 'model.' in the checkpoint and not in the module; they fit without it."
    ]
    assert fit.load_weights(Wrapped(net()), state, "m") == [
        "m: names begin with 'inner.' in the module and not in the checkpoint; they fit with it."
    ]
    assert fit.load_weights(Wrapped(net()), under("model.", state), "m") == [
        "m: names begin with 'model.' in the checkpoint and with 'inner.' in the module; else they are the same."
    ]
    assert fit.load_weights(net(), state, "m") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("model.3.bias"),
        lambda s: s.update({"other.0.weight": torch.ones(4, 5)}),
        lambda s: s.update({"model.0.weight": torch.ones(2, 2)}),
        lambda s: s.update({"0.bias": s.pop("model.0.bias")}),
        lambda s: s.update({"model.model.0.bias": s.pop("model.0.bias")}),
    ],
    ids=["missing", "left over", "another shape", "one without", "one with two"],
)
def test_nothing_loads_where_one_key_differs(change: Callable[[States], Any]) -> None:
    state = under("model.", state_of(net()))
    change(state)
    with pytest.raises(EdistillError, match="does not fit its module"):
        fit.load_weights(net(), state, "m")


@pytest.mark.parametrize("names", [("model.", "criterion."), ("model.", "ema_model.")])
def test_a_module_beside_others_is_named_and_the_remedy_works(
    tmp_path: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = state_of(net()), state_of(net())
    state = under(names[0], first) | under(names[1], second if names[1] == "ema_model." else {"weight": torch.ones(3)})
    with pytest.raises(EdistillError, match=r"(?i)those that begin with 'model\.'") as error:
        fit.load_weights(net(), state, "m")
    assert ("both fit" in str(error.value)) == (names[1] == "ema_model.")
    follow(str(error.value), r"state dict: (.*)\. Put member", tmp_path, monkeypatch, state=state)
    saved = torch.load(tmp_path / "member.pth", weights_only=True)
    fit.load_weights(net(), saved, "m")


def test_branches_alike_take_no_weights_of_one() -> None:
    module = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 2)})
    with pytest.raises(EdistillError, match="does not fit"):
        fit.load_weights(module, state_of(nn.Linear(2, 2)), "m")


def test_prefixes_and_renamings() -> None:
    assert prefixes(["a.b.c", "a.b.d"]) == ["", "a.", "a.b."]
    assert prefixes(["a.b", "ab.c"]) == [""]
    assert prefixes([]) == [""]
    assert list(renamings([], ["a"])) == []
    assert list(renamings(["a.x"], ["x", "b.x"])) == [{"a.x": "x"}, {"a.x": "b.x"}]
    assert list(renamings(["x"], ["y", "zx"])) == []


# --- files ------------------------------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

def net():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

def parallel():
    return nn.DataParallel(net())

def averaged():
    return AveragedModel(net())

def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight
        def forward(self, x):
            return self.second(self.first(x))
    return Tied()
"""


def opened(folder: Path, name: str, factory: str) -> tuple[Teacher, Silent, list[str]]:
    (folder / "model.py").write_text(FACTORY)
    told, notes = Silent(), []
    told.note = notes.append  # type: ignore[method-assign]
    asked = context(model=f"{folder / 'model.py'}:{factory}")
    (teacher,) = open_teachers(folder / name, type(asked)(asked.settings, progress=told))
    return teacher, told, notes


@pytest.mark.parametrize(
    ("name", "factory"), [("a.ckpt", "net"), ("a.pth", "parallel"), ("a.safetensors", "averaged"), ("a.bin", "net")]
)
def test_a_lightning_modules_prefix_in_every_file(tmp_path: Path, name: str, factory: str) -> None:
    original = net().eval()
    state = under("model.", state_of(original))
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        torch.save(
            {"state_dict": state, "pytorch-lightning_version": "2.6", "hyper_parameters": {"lr": 1}}, tmp_path / name
        )
    teacher, _, notes = opened(tmp_path, name, factory)
    assert_equal_outputs(teacher.build(), original, (2, 5))
    assert len(notes) == 1
    assert "names begin with 'model.'" in notes[0]


def test_the_same_weights_under_a_prefix_are_no_other_member(tmp_path: Path) -> None:
    state = state_of(net())
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": under("model.", state)}, tmp_path / "b.ckpt")
    (tmp_path / "model.py").write_text(FACTORY)
    with pytest.raises(EdistillError, match="a and b hold the same weights"):
        open_teachers(tmp_path, context(model=f"{tmp_path / 'model.py'}:net"))


def test_a_digest_is_of_the_names_in_the_file(tmp_path: Path) -> None:
    """Caches of before depend on it."""
    state = under("model.", state_of(net()))
    torch.save(state, tmp_path / "a.pth")
    assert opened(tmp_path, "a.pth", "net")[0].member.sha256 == digest(state)


# --- tied tensors -----------------------------------------------------------------------------------------------


def test_a_tensor_of_two_names_may_stand_in_the_file_once(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FACTORY)
    space: dict[str, Any] = {}
    exec(FACTORY, space)
    original = space["tied"]().eval()
    safetensors.torch.save_model(original, str(tmp_path / "a.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "a.safetensors")) == 3
    teacher, _, _ = opened(tmp_path, "a.safetensors", "tied")
    assert_equal_outputs(teacher.build(), original, (2, 5))
    wrapped = Wrapped(space["tied"]())
    fit.load_weights(wrapped, safetensors.torch.load_file(tmp_path / "a.safetensors"), "m")
    assert torch.equal(wrapped.inner.second.weight, original.second.weight)


def test_two_values_of_one_tensor_are_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    state = state_of(module) | {"1.weight": torch.ones(2, 2)}
    with pytest.raises(EdistillError, match=r"0\.weight and 1\.weight are one tensor in the module, and differ"):
        fit.load_weights(module, state, "m")


def test_an_untied_tensor_is_still_missing() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = state_of(module)
    del state["1.weight"]
    with pytest.raises(EdistillError, match=r"missing from the checkpoint: 1\.weight"):
        fit.load_weights(module, state, "m")


# --- buffers that nobody has ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_profilers_counts_are_passed_over_and_told(prefix: str) -> None:
    original = net()
    counts = {f"{place}{name}": torch.zeros(1) for place in ("", "0.", "3.") for name in ("total_ops", "total_params")}
    module = net()
    told = fit.load_weights(module, under(prefix, state_of(original) | counts), "m")
    assert digest(module.state_dict()) == digest(original.state_dict())
    assert "total_ops" in told[0]
    with pytest.raises(EdistillError, match=r"not in the module: .*other"):
        fit.load_weights(module, state_of(original) | counts | {"other": torch.ones(1)}, "m")


def test_a_module_that_has_such_buffers_gets_them() -> None:
    module = net()
    module.register_buffer("total_ops", torch.zeros(1))
    assert fit.load_weights(module, state_of(net()) | {"total_ops": torch.ones(1)}, "m") == []
    assert module.total_ops.item() == 1


def test_imaginary_parts_are_not_dropped() -> None:
    state = state_of(net()) | {"0.bias": torch.ones(4, dtype=torch.complex64)}
    with pytest.raises(EdistillError, match=r"0\.bias is complex in the checkpoint, and real in the module"):
        fit.load_weights(net(), state, "m")
