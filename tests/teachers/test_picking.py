"""Members that return tuples, tables and objects: what is plainly the answer is taken and told, else a line is given
that says it. And numbers that look like a sigmoid each."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import forward, tried
from numpy.testing import assert_allclose
from tiny import CLASSES, contents, linear, make_folder, refused, refused_and_kept, settings
from tiny_regression import make_folder as make_regression
from torch import Tensor, nn

from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.students.bodies import build_body
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

MEMBER = Member("m7", "sha", model="model.py:make_teacher")
Outputs = namedtuple("Outputs", "logits features")  # as torchvision writes them


@dataclass
class Said:
    hidden: Tensor
    logits: Tensor
    loss: Tensor | None = None


class ModelOutput(dict[str, Any]):
    """As transformers has it: a table whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Returning(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.own, self.form = linear(0), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.own(x), x.flatten(1))


TAKEN: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "pair": (lambda z, f: (z, f), "tuple, of which out[0] (8, 3) is taken as its logits"),
    "list": (lambda z, f: [f, z], "list, of which out[1] (8, 3) is taken as its logits"),
    "table": (lambda z, f: {"logits": z}, "dict, of which out['logits'] (8, 3) is taken as its logits"),
    "auxiliary": (lambda z, f: {"aux": -z, "logits": z}, "of which out['logits'] (8, 3) is taken as its logits"),
    "other names": (lambda z, f: {"scores": z, "features": f}, "of which out['scores'] (8, 3) is taken as its logits"),
    "named": (lambda z, f: Outputs(z, -z), "Outputs, of which out.logits (8, 3) is taken as its logits"),
    "object": (lambda z, f: Said(-z, z), "Said, of which out.logits (8, 3) is taken as its logits"),
    "namespace": (lambda z, f: SimpleNamespace(z=z, mask=f > 0), "of which out.z (8, 3) is taken as its logits"),
    "ModelOutput": (
        lambda z, f: ModelOutput(loss=None, logits=z, states=(f, f)),
        "ModelOutput, of which out['logits'] (8, 3) is",
    ),
    "nested": (lambda z, f: (f, [f, {"z": z}]), "of which out[1][1]['z'] (8, 3) is taken as its logits"),
    "weights beside": (lambda z, f: (torch.zeros(8, CLASSES), z), "of which out[1] (8, 3) is taken as its logits"),
    "whole numbers beside": (lambda z, f: (z.round().long(), z), "of which out[1] (8, 3) is taken as its logits"),
}


def test_one_obvious_set_of_logits_is_taken_and_told() -> None:
    for form in TAKEN:
        returned, told = TAKEN[form]
        x = torch.randn(8, 1, 6, 6)
        module, said = tried(Returning(returned), x, MEMBER, "train", range(8), CLASSES)
        assert said is not None
        assert said.startswith("Member m7 returns a ")
        assert told in said
        for rows in (1, 3, 8):  # whatever else has as many rows now and then
            assert torch.equal(forward(module, x[:rows], MEMBER, "here"), linear(0)(x[:rows]))


def test_without_known_classes_the_only_matrix_is_taken() -> None:
    x = torch.randn(8, 1, 6, 6)
    _, said = tried(Returning(lambda z, f: (z, f[:, None, None], f[:, 0])), x, MEMBER, "train", range(8), None)
    assert said is not None
    assert "out[0] (8, 3)" in said
    with refused("out[0] (8, 3) and out[1] (8, 36)", "each could be its logits"):
        tried(Returning(lambda z, f: (z, f)), x, MEMBER, "train", range(8), None)
    with refused("out[0] (8, 1) and out[1] (8, 36)", "each could be its logits"):  # the one logit of two classes
        tried(Returning(lambda z, f: (z[:, :1], f)), x, MEMBER, "train", range(8), 2)


def test_a_tensor_is_told_nothing_of() -> None:
    module = linear(0)
    assert tried(module, torch.randn(8, 1, 6, 6), MEMBER, "train", range(8), CLASSES) == (module, None)


def line_of(error: object) -> str:
    """The line of code that a message ends with."""
    found = re.search(r"before it returns the module[^:]*: (module\.register_forward_hook\(.*\))$", str(error))
    assert found is not None, str(error)
    return found[1]


def mended(error: object, module: nn.Module) -> nn.Module:
    """The module of a factory in which the message's line stands."""
    exec(line_of(error), {"module": module})
    return module


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], tuple[str, ...]]] = {
    "two": (
        lambda z, f: (z, 2 * z),
        ("returns a tuple with out[0] (8, 3) and out[1] (8, 3) for 8 rows", "with out[1])"),
    ),
    "two names": (
        lambda z, f: {"main": z, "aux": 2 * z},
        ("returns a dict with out['main'] (8, 3) and out['aux'] (8, 3)", "with out['aux'])"),
    ),
    "two deep": (lambda z, f: {"a": {"logits": z}, "b": {"logits": z}}, ("out['a']['logits'] (8, 3)",)),
    "two attributes": (lambda z, f: SimpleNamespace(a=z, b=2 * z), ("out.a (8, 3) and out.b (8, 3)",)),
    "maps in a tuple": (lambda z, f: (z[:, :, None, None], 1), ("(out[0] (8, 3, 1, 1))", "none of it is")),
    "maps": (lambda z, f: z[:, :, None, None], ("returns (8, 3, 1, 1) for 8 rows",)),
}


def test_else_the_message_gives_a_line_that_works() -> None:
    for form in REFUSED:
        returned, said = REFUSED[form]
        x = torch.randn(8, 1, 6, 6)
        with pytest.raises(EdistillError) as caught:
            tried(Returning(returned), x, MEMBER, "train", range(8), CLASSES)
        for part in ("Member m7", "Say it in model.py:make_teacher", *said):
            assert part in str(caught.value), str(caught.value)
        own = Returning(returned)
        module, told = tried(mended(caught.value, own), x, MEMBER, "train", range(8), CLASSES)
        assert told is None
        assert module.state_dict().keys() == Returning(returned).state_dict().keys(), "the checkpoints fit as before"
        assert torch.equal(forward(module, x, MEMBER, "here"), linear(0)(x))


@pytest.mark.parametrize("form", [lambda z, f: "text", lambda z, f: (), lambda z, f: {"z": 1}, lambda z, f: None])
def test_what_holds_nothing_is_refused(form: Callable[[Tensor, Tensor], Any]) -> None:
    with refused("Member m7 returns a", "no tensor in it", "none of it is (rows, classes)", "teachers.model"):
        tried(Returning(form), torch.randn(8, 1, 6, 6), MEMBER, "train", range(8), CLASSES)


# --- on the whole road ------------------------------------------------------------------------------------------

FACTORY = """
from torch import nn


class Own(nn.Module):
    def forward(self, z):
        return {returned}


def make_teacher():
    module = nn.Sequential(Gray(), nn.Flatten(), nn.Linear(36, 3), Own())
    {line}
    return module
"""


def told(progress: Silent) -> list[str]:
    return [note for note in progress.notes if "is taken as its" in note]


def now(folder: Path, returned: str, line: str = "pass", **more: Any) -> Settings:
    """Settings by which members return something else; a file is imported once, so that it is another."""
    file = folder / f"version-{len(list(folder.glob('version-*')))}" / "model.py"
    file.parent.mkdir()
    file.write_text((folder / "model.py").read_text() + FACTORY.format(returned=returned, line=line))
    return settings(folder, {"train.epochs": 1, "teachers.model": f"{file}:make_teacher", **more})


@pytest.mark.thorough
@pytest.mark.parametrize("transform", ["crop-flip", "crop-flip+ods"])
def test_tuples_are_cached_moved_and_asked_live(tmp_path: Path, transform: str) -> None:
    """As those are that return the logits alone, to the last bit; and it is said once a member."""
    folder = make_folder(tmp_path / "tiny", 2, {"train": 24, "validation": 24, "test": 10})
    plain = now(folder, "z", **{"views.transform": transform})
    cache_logits(plain)
    wanted = contents(folder / "cache", ["args.toml"])
    train(plain)
    document = evaluate(plain, shifts=True).to_json()
    tuples = now(folder, "(z, z.new_zeros(len(z), 5))", **{"views.transform": transform})
    progress = Silent()
    cache_logits(tuples, overwrite=True, progress=progress)
    assert contents(folder / "cache", ["args.toml"]) == wanted
    assert [note.partition(" returns")[0] for note in told(progress)] == ["Member member-0", "Member member-1"]
    progress = Silent()
    assert evaluate(tuples, shifts=True, progress=progress).to_json()["shifts"] == document["shifts"]
    assert len(told(progress)) == 2
    progress = Silent()
    live = tuples.model_copy(update={"output": tuples.output.model_copy(update={"cache": folder / "nowhere"})})
    calibrate(live, split="validation", progress=progress)
    assert len(told(progress)) == 2


def test_the_line_of_the_message_leads_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", 2)
    cache_logits(now(folder, "z"))
    wanted = contents(folder / "cache", ["args.toml"])
    with pytest.raises(EdistillError) as caught:
        cache_logits(now(folder, "(z, -z)"), overwrite=True)
    assert contents(folder / "cache", ["args.toml"]) == wanted
    cache_logits(now(folder, "(z, -z)", line_of(caught.value)), overwrite=True)
    assert contents(folder / "cache", ["args.toml"]) == wanted


def test_a_single_logit_is_made_two_as_the_message_says(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", 2)
    for returned, wanted in (("z[:, :1]", "returns 1 number a row"), ("z[:, 0]", "returns (7,) for 7 rows")):
        with pytest.raises(EdistillError, match=re.escape(wanted)) as caught:
            cache_logits(only_ood(now(folder, returned)))
        cache_logits(only_ood(now(folder, returned, line_of(caught.value))), overwrite=True)
        read = Cache(folder / "cache").open("ood/noise").read(range(7))
        assert read.shape == (7, 2, 2)
        x = torch.tensor(np.load(folder / "data/ood/noise.npz")["x"] / np.float32(255) - 0.5) / 0.5
        z = linear(0)(x)[:, 0].detach().numpy()
        assert_allclose(read[:, 0, 1] - read[:, 0, 0], z, atol=1e-2)


def only_ood(these: Settings) -> Settings:
    data = these.data.model_copy(update={"train": None, "validation": None, "test": None})
    return these.model_copy(update={"data": data})


# --- numbers ----------------------------------------------------------------------------------------------------


def test_pairs_of_regressors_keep_their_meaning(tmp_path: Path) -> None:
    folder = make_regression(tmp_path / "t", rows={"train": 9, "validation": 9})
    cache_logits(settings(folder))
    wanted = contents(folder / "cache", ["args.toml"])
    progress = Silent()
    cache_logits(settings(folder, {"teachers.model-kwargs": {"form": "pair"}}), overwrite=True, progress=progress)
    assert contents(folder / "cache", ["args.toml"]) == wanted
    assert told(progress) == []


@pytest.mark.parametrize(
    ("output", "form", "said"),
    [
        ("mean", lambda z, f: (z[:, :1], f), "tuple, of which out[0] (8, 1) is taken as its mean"),
        ("mean", lambda z, f: {"prediction": z[:, 0], "f": f}, "out['prediction'] (8,)"),
        ("mean-logvar", lambda z, f: {"logits": z[:, :2], "f": f}, "out['logits'] (8, 2)"),
    ],
)
def test_the_only_numbers_of_a_regressor_are_taken(
    output: str, form: Callable[[Tensor, Tensor], Any], said: str
) -> None:
    member = Member("m7", "sha", output=output, variance=1.0 if output == "mean" else None)
    _, told = tried(Returning(form), torch.randn(8, 1, 6, 6), member, "train", range(8), None)
    assert told is not None
    assert said in told


def test_two_numbers_of_a_regressor_are_refused() -> None:
    member = Member("m7", "sha", output="mean", variance=1.0)
    returned = Returning(lambda z, f: (z[:, :1], z[:, 1:2]))
    with pytest.raises(EdistillError, match=r"out\[0\] \(8, 1\) and out\[1\] \(8, 1\).*could be its mean") as caught:
        tried(returned, torch.randn(8, 1, 6, 6), member, "train", range(8), None)
    x = torch.randn(8, 1, 6, 6)
    module, _ = tried(mended(caught.value, returned), x, member, "train", range(8), None)
    assert torch.equal(forward(module, x, member, "here"), linear(0)(x)[:, :1])


# --- bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda z, f: (z, f), "return out[0] (2, 3) or out[1] (2, 36) alone"),
        (lambda z, f: {"features": f}, "return out['features'] (2, 36) alone"),
    ],
)
def test_bodies_are_told_what_to_return(returned: Callable[[Tensor, Tensor], Any], said: str) -> None:
    with refused("student.model m returns a", said, "a body returns features (2, F)"):
        build_body("m", {}, (1, 6, 6), lambda: Returning(returned))


# --- sigmoids ---------------------------------------------------------------------------------------------------

SIGMOIDS = "(3 * z).sigmoid()"


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_sigmoids_are_refused_and_shared_out_as_the_message_says(tmp_path: Path, output: str) -> None:
    folder = make_folder(tmp_path / "tiny", 2)
    with pytest.raises(EdistillError, match="sigmoids, one a class") as caught:
        cache_logits(now(folder, SIGMOIDS, **{"teachers.output": output}))
    assert "sum to" in str(caught.value)
    assert ('Set teachers.output = "probabilities"' in str(caught.value)) is (output == "logits")
    assert output == "logits" or "logits" not in str(caught.value)  # which would send the user in a circle
    line = line_of(caught.value)
    cache_logits(now(folder, SIGMOIDS, line, **{"teachers.output": "probabilities"}), overwrite=True)
    x = torch.tensor(np.load(folder / "data/test.npz")["x"] / np.float32(255) - 0.5) / 0.5
    p = (3 * linear(1)(x)).sigmoid()
    wanted = (p / p.sum(1, keepdim=True)).log().detach()
    assert_allclose(Cache(folder / "cache").open("test").read(range(10))[:, 1], wanted, atol=1e-2)


def test_an_honest_member_with_small_logits_goes_on_as_the_message_says(tmp_path: Path) -> None:
    folder, small = make_folder(tmp_path / "tiny", 2), "0.5 + 0.01 * z"
    with pytest.raises(EdistillError, match="sigmoids") as caught:
        cache_logits(now(folder, small))
    assert '(or with teachers.output = "logits" and out - 1, if they are logits all the same)' in str(caught.value)
    line = line_of(caught.value).replace("out / out.sum(-1, keepdim=True)", "out - 1")
    cache_logits(now(folder, small, line), overwrite=True)
    x = torch.tensor(np.load(folder / "data/test.npz")["x"] / np.float32(255) - 0.5) / 0.5
    read = Cache(folder / "cache").open("test").read(range(10))
    wanted = (0.5 + 0.01 * linear(0)(x)).softmax(1).detach()
    assert_allclose(torch.tensor(read[:, 0]).softmax(1), wanted, atol=1e-3)


@pytest.mark.parametrize(
    "returned",
    [
        lambda z, f: z,
        lambda z, f: z - z.amin(1, keepdim=True),  # above 0 alone
        lambda z, f: (z - z.amax(1, keepdim=True)).clamp_min(-1),
        lambda z, f: z.log_softmax(1),
        lambda z, f: torch.full_like(z, 0.5),  # says nothing of any class
        lambda z, f: 0.3 + 0.05 * z.sigmoid(),  # has hardly learned: sure of nothing, as no sigmoids are
        lambda z, f: 0.01 * z,
    ],
)
def test_other_logits_are_welcome(returned: Callable[[Tensor, Tensor], Any]) -> None:
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    tried(Returning(returned), 3 * x, MEMBER, "train", range(8), CLASSES)


def test_few_rows_are_no_evidence() -> None:
    x = torch.randn(7, 1, 6, 6)
    tried(Returning(lambda z, f: z.sigmoid()), x, MEMBER, "train", range(7), CLASSES)


@pytest.mark.thorough
def test_sigmoids_that_are_asked_live_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", 2)
    these = now(folder, "z")
    cache_logits(these)
    train(these)
    with refused_and_kept(folder / "runs", "sigmoids, one a class"):
        evaluate(now(folder, SIGMOIDS), shifts=True)
    evaluate(these, shifts=True)
