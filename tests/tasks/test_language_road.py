"""The whole road where rows are told by position: context, cache, students, figures, graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exported_helpers import assert_every_kind_agrees
from language_helpers import (
    CONTEXT,
    MEMBERS,
    TOKENS,
    VOCABULARY,
    WINDOW,
    make_language,
    make_tagged,
    save_members,
    settings,
)
from safetensors.torch import load_file
from tiny import contents, killed_at, refused
from torch import Tensor, nn

from ensemble_distill import cache_logits, calibrate, evaluate, export, load_student, predict, train
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data import open_source
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.evaluation.calibrating import FEWEST
from ensemble_distill.exporting.onnx import UNROLLS
from ensemble_distill.exporting.tracing import Named, graph_of
from ensemble_distill.tasks.checks.positions import IGNORED
from ensemble_distill.training.rows import CachedRows, CachedSplit
from ensemble_distill.workspace import Workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cached; tests may add runs."""
    made = tmp_path_factory.mktemp("language") / "language"
    make_language(made)
    cache_logits(settings(made))
    return made


def ids(folder: Path, split: str) -> list[int]:
    """A text's tokens, by a reading of the test's own."""
    found = []
    for line in (folder / f"{split}.txt").read_text().splitlines():
        found += [VOCABULARY.index(word) for word in line.split(" ") if word] + [VOCABULARY.index("<eos>")]
    return found


# --- context ------------------------------------------------------------------------------------------------------


def test_member_and_student_see_the_same_tokens_before_every_position(tmp_path: Path) -> None:
    folder = tmp_path / "language"
    make_language(folder)
    save_members(folder, "Seen", 2, numbers=len(VOCABULARY))
    for member in (folder / "teachers").glob("member-[23]*"):
        member.unlink()
    here = settings(
        folder,
        teachers__model="model.py:Seen",
        cache__dtype="float32",
        **{"cache.batch-size": 3},
    )
    cache_logits(here)
    cached = Cache(folder / "cache").open("train").read(range(-(-TOKENS["train"] // WINDOW)))
    plan = Workspace(here).splits(["train"])["train"]
    rows = CachedRows([CachedSplit(plan.source, plan.view, plan.seed, Cache(folder / "cache").open("train"))], None)
    scale = load_file(folder / "teachers" / "member-0.safetensors")["scale"].item()
    end, stream = VOCABULARY.index("<eos>"), ids(folder, "train")
    before = [end] * (CONTEXT + 1) + stream  # what stands before token t is before[t + CONTEXT]
    for row in range(len(rows)):
        student = rows[row, 0].x.cumsum()[CONTEXT:]
        for at in range(WINDOW):
            t = row * WINDOW + at
            if t < len(stream):
                wanted = sum(before[row * WINDOW : t + CONTEXT + 1])
                assert cached[row, 0, at, 0] / scale == student[at] == wanted
                assert rows[row, 0].own[at] == stream[t]
            else:
                assert rows[row, 0].own[at] == IGNORED


def test_answers_do_not_depend_on_batches_and_a_killed_pass_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Cache(folder / "cache").open("train")
    sets = {"output.cache": str(tmp_path / "other"), "cache.batch-size": 4}
    cache_logits(settings(folder, **sets))
    every = range(len(whole))
    there = Cache(tmp_path / "other").open("train").read(every)
    np.testing.assert_allclose(there, whole.read(every), atol=2e-2)  # of float16, some units from its maximum
    killed = {**sets, "output.cache": str(tmp_path / "killed")}
    with killed_at(9, monkeypatch, tmp_path) as crashed:
        cache_logits(settings(folder, **killed))
    assert crashed
    cache_logits(settings(folder, **killed))
    records = {name: c for name, c in contents(tmp_path / "other").items() if name.endswith(".npy")}
    assert records
    assert {name: contents(tmp_path / "killed")[name] for name in records} == records


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_loop_over_tokens(folder: Path) -> None:
    train(settings(folder, train__method="hydra"))
    found = evaluate(settings(folder), "hydra-s0")
    said = Cache(folder / "cache").open("test").read(range(-(-TOKENS["test"] // WINDOW))).astype(np.float64)
    p = np.exp(said - np.logaddexp.reduce(said, axis=-1, keepdims=True))  # (N, M, L, K)
    nll, member, total, data = [], [], [], []
    for t, token in enumerate(ids(folder, "test")):
        each = p[t // WINDOW, :, t % WINDOW]
        mean = each.mean(0)
        nll.append(-np.log(mean[token]))
        member.append(-np.log(each[:, token]))
        total.append(-(mean * np.log(mean)).sum())
        data.append(-(each * np.log(each)).sum(1).mean())
    ensemble = found.models["ensemble"]
    assert ensemble is not None
    assert found.rows == TOKENS["test"]
    assert ensemble["nll"] == pytest.approx(np.mean(nll))
    assert ensemble["perplexity"] == pytest.approx(np.exp(np.mean(nll)))
    assert found.models["member"]["perplexity"] == pytest.approx(np.exp(np.mean(member, axis=0)).mean())
    assert ensemble["total_uncertainty"] == pytest.approx(np.mean(total))
    assert ensemble["model_uncertainty"] == pytest.approx(np.mean(total) - np.mean(data))
    assert found.worth is not None
    assert found.ladder.nll[-1] == pytest.approx(ensemble["nll"])
    student = load_student(folder / "runs" / "hydra-s0", trust=True)
    source = open_source(
        str(folder / "test.txt"), "language-modelling", Reading("word", WINDOW, CONTEXT, known=VOCABULARY)
    )
    x = torch.from_numpy(np.stack([source.item(row).x for row in range(len(source))]))
    with torch.no_grad():
        raw = student(x)
    assert raw.shape == (len(source), MEMBERS, WINDOW, len(VOCABULARY))
    mean = student.predictive(raw).summary().mean.reshape(-1, len(VOCABULARY))[: TOKENS["test"]]
    own = -mean[range(TOKENS["test"]), ids(folder, "test")].log().mean()
    assert found.models["student"]["nll"] == pytest.approx(float(own), abs=1e-5)
    assert calibrate(settings(folder), "hydra-s0", split="test").rows == TOKENS["test"]
    calibrate(settings(folder), "hydra-s0", remove=True)


@pytest.mark.parametrize("method", ["kd", "supervised", "ban", "ban+l", "cwtm", "dkpp"])
def test_every_method_learns_from_positions(folder: Path, method: str) -> None:
    objective = {} if method in ("kd", "supervised") else {"method.objective": method}
    named = {"train.method": "ban" if objective else method, "output.name": f"by-{method.replace('+', '-')}"}
    train(settings(folder, **objective, **named, **{"train.epochs": 30, "train.lr": 0.01}))
    summary = (folder / "runs" / named["output.name"] / "summary.csv").read_text().splitlines()
    loss = [float(dict(zip(summary[0].split(","), line.split(","), strict=True))["train_loss"]) for line in summary[1:]]
    assert loss[-1] < loss[0]


# --- graph --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(UNROLLS, reason="torch before 2.13 gives recurrences one length")
def test_a_stream_is_served_with_its_state_and_predict_says_what_evaluate_does(folder: Path) -> None:
    train(settings(folder, train__method="hydra"))
    export(settings(folder), "hydra-s0", onnx=True)
    model = folder / "runs" / "hydra-s0" / "export" / "model.onnx"
    session = onnxruntime.InferenceSession(str(model))
    ends = {end.name: (end.type, end.shape) for end in session.get_inputs()}
    assert ends["input_ids"] == ("tensor(int64)", ["batch_size", "length"])
    assert ends["state_0"] == ("tensor(float)", [1, "batch_size", 6])
    begun = {name: np.zeros((1, 1, 6), np.float32) for name in ("state_0", "state_1")}
    names = [output.name for output in session.get_outputs()]
    stream = np.array([ids(folder, "test")[:23]])
    whole = dict(zip(names, session.run(None, {"input_ids": stream, **begun}), strict=True))
    assert whole["head_logits"].shape == (1, MEMBERS, 23, len(VOCABULARY))
    state = begun
    for at in range(23):
        step = dict(zip(names, session.run(None, {"input_ids": stream[:, at : at + 1], **state}), strict=True))
        state = {f"state_{part}": step[f"new_state_{part}"] for part in (0, 1)}
        np.testing.assert_allclose(step["logits"][:, 0], whole["logits"][:, at], atol=1e-5)
    predicted = predict(model, str(folder / "test.txt"), batch_size=4).rows
    assert [row["row"] for row in predicted] == [f"token {at}" for at in range(TOKENS["test"])]
    assert [row["token"] for row in predicted] == [VOCABULARY[token] for token in ids(folder, "test")]
    student = evaluate(settings(folder), "hydra-s0").models["student"]
    assert np.mean([row["nll"] for row in predicted]) == pytest.approx(student["nll"], abs=1e-5)
    for name in ("total_uncertainty", "model_uncertainty"):
        assert np.mean([row[name] for row in predicted]) == pytest.approx(student[name], abs=1e-5)
    (folder / "short.txt").write_text("a b\n")
    assert [row["token"] for row in predict(model, str(folder / "short.txt")).rows] == ["a", "b", "<eos>"]


class Recurrent(Named):
    names = ("said", "new_state_0", "new_state_1")

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rnn = nn.Embedding(9, 6), nn.LSTM(6, 6, batch_first=True)

    def forward(self, ids: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        said, after = self.rnn(self.inner(ids), tuple(states))
        return said, *after


@pytest.mark.skipif(UNROLLS, reason="torch before 2.13 gives recurrences one length")
def test_every_graph_of_a_process_is_of_any_length() -> None:
    """torch's exporter by itself gives the second one a fixed length."""
    states = [torch.zeros(1, 2, 6)] * 2
    for _ in range(2):
        graph = graph_of(Recurrent().eval(), torch.zeros(2, 7, dtype=torch.int64), "input", states, (1, 1)).graph
        assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch_size", "length"]


# --- rows that stand alone ----------------------------------------------------------------------------------------


def test_every_kind_of_exported_file_says_the_same_of_positions(folder: Path) -> None:
    train(settings(folder, train__method="hydra", output__name="kinds"))
    assert_every_kind_agrees(settings(folder), "kinds", str(folder / "test.txt"))


def test_tags_of_rows_are_learned_and_ignored_positions_count_for_nothing(tmp_path: Path) -> None:
    make_tagged(tmp_path / "tags")
    here = settings(tmp_path / "tags")
    cache_logits(here)
    train(here)
    found = evaluate(here, "hydra-s0")
    y = np.load(tmp_path / "tags" / "test.npz")["y"]
    said = Cache(tmp_path / "tags" / "cache").open("test").read(range(12)).astype(np.float64)
    p = np.exp(said - np.logaddexp.reduce(said, axis=-1, keepdims=True)).mean(1)
    nll = [-np.log(p[row, at, y[row, at]]) for row, at in np.argwhere(y != IGNORED)]
    assert found.rows == len(nll)
    assert found.models["ensemble"]["nll"] == pytest.approx(np.mean(nll))
    export(here, "hydra-s0", onnx=True)
    model = tmp_path / "tags" / "runs" / "hydra-s0" / "export" / "model.onnx"
    rows = predict(model, str(tmp_path / "tags" / "test.npz"), batch_size=5).rows
    assert [(row["row"], row["token"]) for row in rows] == [
        (f"row {row}, position {at}", str(y[row, at])) for row, at in np.argwhere(y != IGNORED)
    ]


# --- tied weights, and what a cache takes -------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [[], [6]])
def test_heads_share_the_embedding_and_the_run_loads_as_it_was_trained(folder: Path, heads: list[int]) -> None:
    named = f"tied-{len(heads)}"
    here = settings(folder, **{"student.tied": "embedding", "student.heads": heads, "output.name": named})
    train(here)
    student = load_student(folder / "runs" / named, trust=True)
    own = sum(parameter.numel() for parameter in student.heads.parameters())
    assert own == MEMBERS * (len(VOCABULARY) + len(heads) * (6 * 6 + 6))
    x = torch.arange(2 * (CONTEXT + WINDOW)).view(2, -1) % len(VOCABULARY)
    with torch.no_grad():
        features = student.features(x)
        said = student(x)
        for head in range(MEMBERS):
            seen = features
            for layer in student.heads.layers:
                seen = (seen @ layer.weight[head] + layer.bias[head]).relu()
            wanted = seen @ student.body.embedding.weight.T + student.heads.bias[head]
            torch.testing.assert_close(said[:, head], wanted)
    export(here, named, onnx=True)


def test_weights_that_cannot_be_tied_are_refused(folder: Path) -> None:
    for tied, said in (("rnn", "embedding"), ("nothing", "embedding")):
        with refused("student.tied", tied, "(10, 6)", said):
            train(settings(folder, **{"student.tied": tied, "output.name": "never"}))
    with refused("student.tied", "closed-form"):
        sets = {"train.method": "kd", "method.closed-form": True, "student.tied": "embedding", "output.name": "never"}
        train(settings(folder, **sets))


def test_a_cache_that_the_disk_cannot_hold_is_refused_before_the_first_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10_000))
    rows = sum(-(-count // WINDOW) for count in TOKENS.values())
    least = rows * MEMBERS * WINDOW * (4 + 2 * len(VOCABULARY))
    assert least > 10_000
    with refused("tokens.size", "10.0 kB left", str(WINDOW * (4 + 2 * len(VOCABULARY)))):
        cache_logits(settings(folder, **{"output.cache": str(tmp_path / "c")}))
    assert not (tmp_path / "c" / "records").exists()


def test_calibrate_counts_positions_and_shifts_of_tokens_are_refused(folder: Path) -> None:
    train(settings(folder, **{"train.method": "hydra", "output.name": "counted"}))
    report = calibrate(settings(folder), "counted", split="test")
    assert (report.rows, report.counted) == (TOKENS["test"], "positions")
    assert -(-TOKENS["validation"] // WINDOW) < FEWEST, "windows"
    assert calibrate(settings(folder), "counted", split="validation").rows == TOKENS["validation"]
    (folder / "few.txt").write_text("a b c d e \n")
    with refused("data.calibration has 6 positions", str(FEWEST)):
        calibrate(settings(folder, **{"data.calibration": "few.txt"}), "counted")
    with refused("--shifts", "tokens", "data.test"):
        evaluate(settings(folder), "counted", shifts=True)


def test_a_text_that_is_mostly_unknown_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    for words_of, share in (("x x x a", 60), ("x a a a", 0)):
        text.write_text(f"{words_of}\n")
        (tmp_path / "vocabulary.txt").write_text("<unk>\n<eos>\na\n")
        reading = Reading(window=2, context=1, vocabulary=str(tmp_path / "vocabulary.txt"))
        remarks = open_source(str(text), "language-modelling", reading).remarks
        assert [f"{share} %" in remark for remark in remarks] == [True] * bool(share)
