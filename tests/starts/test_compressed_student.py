"""Students made of compressed members: what they keep, and how they are trained, resumed, exported and refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from trusted import EVERYTHING

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.run import Run, load_student
from ensemble_distill.starts.compress import Compression, Piece, compress
from ensemble_distill.starts.ranks import Budget
from ensemble_distill.students.student import Student
from ensemble_distill.training import loop
from ensemble_distill.training.forward import Forward
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough


def count(body: nn.Module) -> int:
    return sum(p.numel() for p in body.parameters())


BODY = """
from torch import nn

def make_teacher():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def make_body():
    return make_teacher()[:5]
"""
VIEWS = {"cache.dtype": "float32", "views.count": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutional members of unlike weights."""
    made = tiny.make_folder(tmp_path_factory.mktemp("compressed") / "f", members=0, rows={"train": 120, "test": 60})
    modules = []
    for index in range(3):
        torch.manual_seed(20 + index)
        module = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            nn.Linear(144, 3),
        )
        module[5].weight.data *= 8
        modules.append(module)
    tiny.put_members(made, BODY, modules)
    cache_logits(tiny.settings(made, VIEWS))
    return made


def trained(folder: Path, name: str, **more: object) -> Run:
    chosen = {"student.init": ["member-*"], "output.name": name, "train.epochs": 0, **VIEWS}
    chosen |= {key.replace("__", "."): value for key, value in more.items()}
    return Run.open(train(tiny.settings(folder, chosen)).folder)


def diversity(folder: Path, run: Run) -> float:
    document = evaluate(tiny.settings(folder, VIEWS), run.folder.name).to_json()
    return float(document["fidelity"]["diversity_explained"])


def test_heads_on_a_body_each_read_that_one_alone(folder: Path) -> None:
    run = trained(folder, "whole", student__init=["member-2", "member-0", "member-1"], method__ridge=1e-8)
    assert (run.architecture.own_body, run.architecture.bodies, run.architecture.compressed) == (True, 3, ())
    student = run.student(trust=EVERYTHING)
    assert student.heads.last.weight.shape == (3, 144, 3)
    theirs = load_file(folder / "teachers/member-1.safetensors")
    assert_close(student.body.bodies[1].state_dict()["2.weight"], theirs["2.weight"])
    assert diversity(folder, run) > 0.999  # it is the ensemble


def test_compressed_members_keep_what_their_share_allows(folder: Path) -> None:
    runs = [trained(folder, f"kept-{share}", student__compress=share) for share in (0.3, 0.8)]
    less, more = (diversity(folder, run) for run in runs)
    assert 0.2 < less < more < 0.999
    assert more > 0.9
    for run, share in zip(runs, (0.3, 0.8), strict=True):
        whole = sum(
            t.numel() for name, t in load_file(folder / "teachers/member-0.safetensors").items() if name[0] < "5"
        )
        assert all(count(body) <= share * whole for body in run.student(trust=EVERYTHING).body.bodies)


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_kept_is_measured_on_rows_that_no_view_was_solved_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """All views of a row are alike here, and each row is of its own."""
    from ensemble_distill.starts import compressing

    sets: list[list[set[bytes]]] = []

    def noted(
        pieces: list[Piece], budget: Budget, inputs: list[Tensor], held_out: list[Tensor], *more: Any
    ) -> list[Compression]:
        sets.append([{x.numpy().tobytes() for batch in some for x in batch} for some in (inputs, held_out)])
        return compress(pieces, budget, inputs, held_out, *more)

    monkeypatch.setattr(compressing, "compress", noted)
    views = {"views.count": count, "views.transform": "none", "output.cache": f"plain-{count}"}
    cache_logits(tiny.settings(folder, {**VIEWS, **views}))
    ways = {"student.init": ["member-*"], "student.compress": 0.4, "train.epochs": 0, "output.name": f"plain-{count}"}
    train(tiny.settings(folder, {**VIEWS, **views, **ways}))
    for solved_from, held_out in sets:
        assert len(solved_from | held_out) == 120
        assert len(held_out) == 13 + 3  # the first of nine batches and the first of the next nine
        assert not solved_from & held_out


def test_such_a_run_is_trained_on_exported_and_loaded(folder: Path) -> None:
    run = trained(folder, "on", student__compress=0.2, train__epochs=8, train__lr=1e-3)
    rows = csv.DictReader((run.folder / "summary.csv").read_text().splitlines())
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[0] / 2
    assert export(tiny.settings(folder, VIEWS), "on", onnx=True).files[0].is_file()
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        assert_close(load_student(run.folder, trust=True)(x), run.student(trust=EVERYTHING)(x))


def kill(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the training end at a step, as a killed process does."""
    step = loop.Training._step

    def dies(self: loop.Training, state: Any, rows: Any) -> None:
        if state.step == at:
            raise tiny.Killed
        step(self, state, rows)

    monkeypatch.setattr(loop.Training, "_step", dies)


def test_an_interrupted_training_has_the_ranks_it_began_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(folder, "straight", student__compress=0.4, train__epochs=2)

    ways = {"student__compress": 0.4, "train__epochs": 2, "train__checkpoint_minutes": 1e-9}
    kill(monkeypatch, at=20)
    with pytest.raises(tiny.Killed):
        trained(folder, "killed", **ways)
    monkeypatch.undo()
    monkeypatch.setattr("ensemble_distill.starts.compressing.compress", None)  # the checkpoint holds what it found
    resumed = trained(folder, "killed", **ways)
    assert (resumed.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()


def test_overwriting_an_interrupted_training_finds_ranks_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"train__epochs": 2, "train__checkpoint_minutes": 1e-9}
    fresh = trained(folder, "fresh", student__compress=0.6, **ways)
    kill(monkeypatch, at=20)
    with pytest.raises(tiny.Killed):
        trained(folder, "over", student__compress=0.3, **ways)
    monkeypatch.undo()
    chosen = {"student.init": ["member-*"], "student.compress": 0.6, "output.name": "over", **VIEWS}
    chosen |= {key.replace("__", "."): value for key, value in ways.items()}
    over = train(tiny.settings(folder, chosen), overwrite=True).folder
    assert (over / "student.safetensors").read_bytes() == (fresh.folder / "student.safetensors").read_bytes()


def test_channels_last_is_the_same_student_and_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"student__compress": 0.4, "train__epochs": 2, "train__model_ema": True, "train__checkpoint_minutes": 1e-9}
    first = load_file(trained(folder, "channels-first", **ways).folder / "student.safetensors")
    ways["train__channels_last"] = True

    laid_out: set[tuple[str, bool]] = set()
    raw = Forward.raw

    def noting(self: Forward, student: Student, x: torch.Tensor, *more: Any) -> torch.Tensor:
        def note(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen = {"kernel": student.body.bodies[0][2].expand.weight, "x": given[0]}
            last = torch.channels_last
            laid_out.update((name, t.is_contiguous(memory_format=last)) for name, t in seen.items())

        handle = student.body.register_forward_pre_hook(note)
        try:
            return raw(self, student, x, *more)
        finally:
            handle.remove()

    with monkeypatch.context() as watched:
        watched.setattr(Forward, "raw", noting)
        whole = trained(folder, "channels-last", **ways)
    assert laid_out == {("kernel", True), ("x", True)}
    last = load_file(whole.folder / "student.safetensors")
    assert last.keys() == first.keys()
    for name in last:
        assert_close(last[name], first[name], rtol=1e-3, atol=1e-4)

    with monkeypatch.context() as killed:
        kill(killed, at=20)
        with pytest.raises(tiny.Killed):
            trained(folder, "channels-killed", **ways)
    resumed = trained(folder, "channels-killed", **ways)
    assert (resumed.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()


def test_a_body_that_cannot_be_laid_out_is_told_why(folder: Path) -> None:
    code = (folder / "model.py").read_text().replace("nn.Flatten()", "Rows()")
    more = "\n\nclass Rows(nn.Module):\n    def forward(self, x):\n        return x.view(len(x), -1)\n"
    (folder / "rows.py").write_text(code + more)
    chosen: dict[str, object] = {"student.init": None, "student.model": "rows.py:make_body", "output.name": "rows"}
    chosen |= {**VIEWS, "train.epochs": 2, "train.channels-last": True}
    with pytest.raises(EdistillError, match=r"view.*or leave out train\.channels-last"):
        train(tiny.settings(folder, {key: value for key, value in chosen.items() if value is not None}))


def test_one_body_from_one_member_is_compressed_too(folder: Path) -> None:
    run = trained(folder, "single", student__init="member-0", student__compress=0.4, train__epochs=1)
    assert (run.architecture.own_body, run.architecture.bodies, len(run.architecture.compressed)) == (False, 1, 1)


@pytest.mark.parametrize("method", ["kd", "ban", "endd", "proxy-endd", "batch-ensemble", "supervised"])
def test_methods_with_fewer_heads_than_bodies_read_all_of_them(folder: Path, method: str) -> None:
    run = trained(folder, method, student__compress=0.5, train__method=method, train__epochs=1)
    assert (run.architecture.own_body, run.architecture.bodies, len(run.architecture.compressed)) == (False, 3, 3)
    with torch.no_grad():
        assert run.student(trust=EVERYTHING)(torch.randn(2, 1, 6, 6)).isfinite().all()


def test_where_training_begins_with_one_head_the_heads_read_all_bodies(folder: Path) -> None:
    run = trained(folder, "hinton", student__compress=0.5, train__epochs=2, method__hinton_share=0.5)
    assert run.architecture.own_body is False
    assert run.student(trust=EVERYTHING).heads.last.weight.shape == (3, 3 * 144, 3)


def test_the_ranks_of_other_bodies_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"student__compress": 0.4, "train__epochs": 2, "train__checkpoint_minutes": 1e-9}
    kill(monkeypatch, at=20)
    with pytest.raises(tiny.Killed):
        trained(folder, "cut", **ways)
    monkeypatch.undo()
    config = folder / "runs/cut/config.json"
    document = json.loads(config.read_text())
    document["student"] |= {"bodies": 1, "own_body": False, "compressed": document["student"]["compressed"][:1]}
    document.pop("sha256")
    config.write_text(json.dumps({**document, "edistill": "0.1.0"}))
    with pytest.raises(EdistillError, match=r"config.json is damaged: it has the ranks of 1 bodies, and 3"):
        trained(folder, "cut", **ways)


def test_the_first_of_a_chain_alone_starts_from_a_member(folder: Path) -> None:
    chosen = {"student.init": "member-1", "student.compress": 0.4, "train.teacher": "member-1", **VIEWS}
    chosen |= {"train.method": "ban", "train.generations": 2, "output.name": "chain", "train.epochs": 1}
    chain = train_chain(tiny.settings(folder, chosen)).folder
    assert [len(Run.open(chain / f"generation-{g}").architecture.compressed) for g in (1, 2)] == [1, 0]


def test_what_does_not_go_together_is_refused(folder: Path) -> None:
    for more, told in [
        ({"train.method": "kd", "student.heads": "last-stage"}, "student.compress is 0.4, and student.heads begin at"),
        (
            {"student.init": "member-*"},
            r"student.init is 'member-\*', and the members are.*make it a list: \[\"member-\*\"\]",
        ),
        ({"student.init": None}, r"student.compress is 0.4.*student.init = \[\"member-\*\"\] for all"),
        ({"student.heads": "last-stage"}, "student.compress is 0.4, and student.heads begin at"),
        ({"student.compress": 0.01}, r"student.compress is 0.01.*member-0.s body keeps 0\.\d+ of its"),
        ({"student.compress": 1.0}, "less than 1"),
        ({"student.init": ["nobody-*"]}, "student.init is 'nobody-\\*', and the members are member-0"),
        ({"student.init": ["member-*", "member-1"]}, "names member-1 2 times"),
    ]:
        chosen = {"student.init": ["member-*"], "student.compress": 0.4, "output.name": "refused", **VIEWS, **more}
        with pytest.raises(EdistillError, match=told):
            train(tiny.settings(folder, {key: value for key, value in chosen.items() if value is not None}))
        assert not (folder / "runs" / "refused" / "student.safetensors").exists()


def test_too_few_steps_are_refused_before_anything_is_compressed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compressed(*given: object) -> None:
        raise AssertionError("compressed")

    monkeypatch.setattr("ensemble_distill.starts.compressing.compress", compressed)
    with pytest.raises(EdistillError, match=r"train\.epochs is 0, and the method begins with stage hinton"):
        trained(folder, "none", student__compress=0.4, student__init="member-0", train__epochs=0)
    with pytest.raises(AssertionError, match="compressed"):
        trained(folder, "none", student__compress=0.4, student__init="member-0", train__epochs=2)


def test_a_damaged_record_of_ranks_is_refused_by_name(folder: Path) -> None:
    run = trained(folder, "damaged", student__compress=0.4)
    config = tiny.unseal(run.folder)
    good = config.read_text()
    rank = re.search(r'"2": \d+', good)
    assert rank is not None
    for old, new in (
        ('"compressed": [', '"compressed": [{}, '),
        *((rank[0], f'"2": {wrong}') for wrong in ("-1", "0", "2.5", "[4, 4]", "true")),
        ('"own_body": true', '"own_body": 3'),
    ):
        assert old in good
        config.write_text(good.replace(old, new))
        with pytest.raises(EdistillError, match=r"config\.json is damaged"):
            Run.open(run.folder)
