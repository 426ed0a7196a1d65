"""What silently went wrong once: changed code under the same weights, disguised outputs, users' prints and exits,
folders that were not ours."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from asking_helpers import forward, to_outputs
from tiny import contents, make_folder, refused, settings
from torch import nn
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app
from ensemble_distill.data.views import open_view
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.settings import load_settings
from ensemble_distill.settings.assignments import parse_assignment
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


def edistill(*line: str) -> Result:
    return CliRunner().invoke(app, list(line))


# --- the members ------------------------------------------------------------------------------------------------


def as_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' files are imported once a process."""
    for name in [name for name in sys.modules if name.startswith("_edistill_")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_member_whose_code_changed_under_the_same_weights_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_logits(settings(folder))
    before = contents(folder / "cache")
    code = (folder / "model.py").read_text()
    (folder / "model.py").write_text(code.replace("return x.mean(1)", "return -x.mean(1)"))
    as_a_new_process(monkeypatch)
    with refused("member-0 answers row 0 of train otherwise", "a probability differs by", "--overwrite"):
        cache_logits(settings(folder))
    assert contents(folder / "cache") == before
    (folder / "model.py").write_text(code + "\n# a remark\n")
    as_a_new_process(monkeypatch)
    assert cache_logits(settings(folder)).added == 0


def test_probabilities_that_are_called_logits_are_refused() -> None:
    shares = torch.randn(8, 3).softmax(1)
    member = Member("m", "0" * 64, "logits")
    with pytest.raises(EdistillError, match=r'rows 10 to 17 of test .* teachers\.output = "probabilities"'):
        to_outputs(shares, member, "test", range(10, 18))
    to_outputs(shares - 0.1, member, "test", range(8))
    to_outputs(shares, Member("m", "0" * 64, "probabilities"), "test", range(8))


def test_a_member_with_one_output_is_no_classifier(folder: Path) -> None:
    code = (folder / "model.py").read_text()
    (folder / "model.py").write_text(
        code.replace("nn.Linear(36, classes))", "nn.Linear(36, classes), First())")
        + "\nclass First(nn.Module):\n    def forward(self, x):\n        return x[:, :1]\n"
    )
    with refused("member-0 returns 1 number a row", "two at least", "model.py", "out * out.new_tensor([0, 1])"):
        cache_logits(settings(folder))


@pytest.mark.parametrize("error", [AssertionError, KeyError, AttributeError, ZeroDivisionError])
def test_whatever_a_member_raises_is_one_message(folder: Path, error: type[Exception]) -> None:
    code = (folder / "model.py").read_text()
    (folder / "model.py").write_text(code.replace("return x.mean(1)", f"raise {error.__name__}('too small')"))
    with refused("Member member-0 fails on train", "too small"):
        cache_logits(settings(folder))


# --- users' own code --------------------------------------------------------------------------------------------


def test_what_a_users_module_prints_is_not_the_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.py").write_text("print('HELLO')\n" + (folder / "model.py").read_text())
    monkeypatch.chdir(folder)
    result = edistill("cache-logits", "--json", "--set", "train.device=cpu")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["added"] > 0
    assert "HELLO" in result.stderr


def test_a_module_that_exits_is_a_mistake_and_not_a_success(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(folder)
    result = edistill("cache-logits", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")


VIEW = """
class Shifted:
    kinds = frozenset({"pixels"})
    def plan(self, seed, view, row, total):
        from ensemble_distill.data.views import open_view
        return open_view("none").plan(seed, view, (row + self.by) % total, total)
def make(by=0):
    made = Shifted(); made.by = by
    return made
def wrong():
    return make(1)
"""


def test_a_users_view_answers_for_its_own_row_and_crosses_processes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(VIEW)
    view = pickle.loads(pickle.dumps(open_view(f"{tmp_path / 'mine.py'}:make")))
    assert view.plan(0, 0, 3, 5).rows == (3,)
    with pytest.raises(EdistillError, match=r"plans rows \(4,\) for row 3 of 5"):
        open_view(f"{tmp_path / 'mine.py'}:wrong").plan(0, 0, 3, 5)


# --- folders and names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", "a/b", "x" * 200])
def test_names_stay_in_their_folder(folder: Path, name: str) -> None:
    for key, value in (("output.name", name), ("data.ood", {name: "data/test.npz"})):
        with pytest.raises(EdistillError, match="names files"):
            load_settings(folder / "edistill.toml", {key: value})


@pytest.mark.thorough
def test_overwriting_removes_nothing_of_the_users(folder: Path) -> None:
    cache_logits(settings(folder))
    train(settings(folder))
    kept = [folder / "cache/notes.txt", folder / "runs/hydra-s0/analysis.ipynb"]
    for path in kept:
        path.write_text("mine")
    cache_logits(settings(folder), overwrite=True)
    train(settings(folder), overwrite=True)
    assert [path.read_text() for path in kept] == ["mine", "mine"]


def test_a_cache_is_no_run(folder: Path) -> None:
    cache_logits(settings(folder))
    before = contents(folder / "cache")
    with refused("is a cache", "another --name"):
        train(settings(folder, {"output.runs": ".", "output.name": "cache"}), overwrite=True)
    assert contents(folder / "cache") == before


def test_a_finished_run_needs_no_cache_to_be_up_to_date(folder: Path) -> None:
    import shutil

    cache_logits(settings(folder))
    train(settings(folder))
    shutil.rmtree(folder / "cache")
    assert not train(settings(folder)).fresh


# --- values -----------------------------------------------------------------------------------------------------


def test_free_tables_take_finite_numbers(folder: Path) -> None:
    told = "input should be a finite number. Set it to a number."
    for key in ("teachers.model-kwargs", "student.kwargs", "method"):
        with pytest.raises(EdistillError, match=f"^{re.escape(f'{key}.a is inf: {told}')}$"):
            load_settings(folder / "edistill.toml", {key: {"a": float("inf")}})


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    toml = folder / "edistill.toml"
    toml.write_bytes(b"\xef\xbb\xbf" + toml.read_bytes())
    assert load_settings(toml).teachers.model is not None


def test_one_assignment_sets_one_key() -> None:
    with pytest.raises(EdistillError, match="one key at a time"):
        parse_assignment("train.epochs=3\nviews.count=9")


def test_a_sparse_or_tracked_output_is_an_output() -> None:

    class Sparse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to_sparse()

    x = torch.eye(3)
    assert torch.equal(forward(Sparse(), x, Member("m", "0" * 64), "here"), x)
