"""A killed training goes on to the bytes of an uninterrupted one, wherever it was killed."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import StopsAt, contents, edistill, killed_at, make_folder, refused, settings, wait_until, with_cache

from ensemble_distill.runs.folder import ARGS, FILES
from ensemble_distill.runtime.files import clear_folder
from ensemble_distill.settings import Settings
from ensemble_distill.training import loop
from ensemble_distill.training.checkpoint import load_state, save_state
from ensemble_distill.workflows.train import train

WRITE = 4  # crash points of one write
EACH_STEP = 1e-9  # minutes between checkpoints
# the tiny body has dropout and BatchNorm; the second stage begins in the middle of an epoch
HARD = {
    "train.model-ema": True,
    "train.model-ema-decay": 0.7,
    "train.warmup-epochs": 0.5,
    "method.hinton-share": 0.4,
    "train.batch-size": 12,
    "student.heads": [5],
}


pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; each test names a run of its own."""
    return with_cache(make_folder(tmp_path_factory.mktemp("resume") / "tiny", rows={"train": 40, "validation": 12}))


def results(run: Path) -> dict[str, bytes]:
    """What must be the same; the rest holds seconds."""
    return {name: content for name, content in contents(run).items() if name in ("student.safetensors", "config.json")}


def figures(run: Path) -> list[str]:
    """The lines of the summary without their last column, the seconds."""
    return [line.rpartition(",")[0] for line in (run / "summary.csv").read_text().splitlines()]


# --- every point ------------------------------------------------------------------------------------------------


def test_a_training_killed_at_any_write_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    hard = {**HARD, "train.epochs": 2}
    train(settings(folder, {**hard, "output.name": "whole"}))
    wanted = results(folder / "runs/whole"), figures(folder / "runs/whole")
    run, mine = (
        folder / "runs/killed",
        settings(folder, {**hard, "output.name": "killed", "train.checkpoint-minutes": EACH_STEP}),
    )
    found: list[dict[str, bytes]] = []
    resumed: list[int] = []
    for point in itertools.count():
        shutil.rmtree(run, ignore_errors=True)
        ticks = itertools.count()
        with killed_at(point, monkeypatch, run) as happened:
            train(mine)
        if not happened:
            break
        if contents(run) in found:
            continue  # what goes on knows nothing but what is on disk
        found.append(contents(run))
        report = train(mine)
        resumed.append(report.resumed_at)
        assert (results(run), figures(run)) == wanted, f"after a crash at point {point}"
    # settings, config; a checkpoint after each of 6 steps, a summary after each third; config once more, weights
    writes = 1 + 1 + 6 + 2 + 1 + 1
    assert point == WRITE * writes
    assert len(found) == 2 * writes + 1, "without each file and with half of it; all there"
    assert set(resumed) == set(range(7))


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 9])
def test_a_training_interrupted_between_writes_goes_on_from_the_last_epoch(folder: Path, step: int) -> None:
    """By Ctrl+C, and with other loader processes afterwards."""
    train(settings(folder, {**HARD, "output.name": f"whole-{step}"}))
    mine = settings(folder, {**HARD, "output.name": f"stopped-{step}"})
    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=StopsAt(step))
    report = train(settings(folder, {**HARD, "output.name": f"stopped-{step}", "train.checkpoint-minutes": 1}))
    assert report.resumed_at == (step - 1) // 3 * 3
    assert results(folder / f"runs/stopped-{step}") == results(folder / f"runs/whole-{step}")
    assert figures(folder / f"runs/stopped-{step}") == figures(folder / f"runs/whole-{step}")


def test_many_interruptions_go_on_to_the_same_bytes(folder: Path) -> None:
    hard = {**HARD, "train.checkpoint-minutes": EACH_STEP}
    train(settings(folder, {**hard, "output.name": "in-one-go"}))
    for expected in range(9):
        with pytest.raises(KeyboardInterrupt):
            train(settings(folder, {**hard, "output.name": "step-by-step"}), progress=StopsAt(2 if expected else 1))
    train(settings(folder, {**hard, "output.name": "step-by-step"}))
    assert results(folder / "runs/step-by-step") == results(folder / "runs/in-one-go")


@pytest.mark.parametrize("opt", ["sgd", "adafactorbv", "lookahead_adamw", "nadamw"])
def test_any_optimizers_state_is_kept(folder: Path, opt: str) -> None:
    """timm's hold tensors, counts and dtypes."""
    other = {"train.opt": opt, "train.checkpoint-minutes": EACH_STEP, "train.lr": 1e-3}
    train(settings(folder, {**other, "output.name": f"whole-{opt}"}))
    mine = settings(folder, {**other, "output.name": f"stopped-{opt}"})
    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=StopsAt(11))
    assert train(mine).resumed_at == 10
    assert results(folder / f"runs/stopped-{opt}") == results(folder / f"runs/whole-{opt}")


def test_a_continuation_may_gain_or_lose_its_validation_rows(folder: Path) -> None:
    """They report only; the table has what each epoch had."""
    mine = {"output.name": "gaining", "train.epochs": 6}
    for step, without in ((5, True), (10, False), (5, True)):
        now = {**mine, "data.validation": None} if without else mine
        with pytest.raises(KeyboardInterrupt):
            train(settings(folder, now), progress=StopsAt(step + 1))
    train(settings(folder, mine))
    header, *lines = (folder / "runs/gaining/summary.csv").read_text().splitlines()
    assert header == "epoch,stage,lr,train_loss,seconds,validation_loss,validation_nll"
    assert [line.split(",")[5] != "" for line in lines] == [False, True, True, False, True, True]
    train(settings(folder, {**mine, "output.name": "plainly"}))
    assert results(folder / "runs/gaining") == results(folder / "runs/plainly")


# --- what a checkpoint is ---------------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([torch.float32, torch.bfloat16])
    | st.builds(torch.full, st.just((2, 3)), st.floats(-1e6, 1e6, width=32))
    | st.builds(torch.arange, st.integers(0, 5))
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


@given(st.dictionaries(st.text(max_size=4), NESTED, max_size=4))
def test_a_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    save_state(folder, state)
    assert same(load_state(folder), state)


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_state(tmp_path, {"a": whole, "b": whole[2:], "c": whole.view(2, 3).T})
    state = load_state(tmp_path)
    assert state is not None
    assert state["c"].tolist() == [[0, 3], [1, 4], [2, 5]]
    state["a"].zero_()
    assert state["b"].tolist() == [2, 3, 4, 5]
    assert load_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["empty", "truncated", "of-another-kind"])
def test_a_damaged_checkpoint_is_refused_and_overwritten(folder: Path, damage: str) -> None:
    mine = settings(folder, {"output.name": f"damaged-{damage}"})
    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=StopsAt(6))
    file = folder / f"runs/damaged-{damage}/checkpoint.safetensors"
    content = file.read_bytes()
    shutil.copyfile(folder / "teachers/member-0.safetensors", file)
    if damage != "of-another-kind":
        file.write_bytes(b"" if damage == "empty" else content[:-9])
    with refused(str(file), "is damaged", "Run edistill train -c", "args.toml --overwrite"):
        train(mine)
    assert train(mine, overwrite=True).fresh


@pytest.mark.parametrize(("after", "said"), [("6, 'ReLU'", "does not fit"), ("5, 'Tanh'", "today it returns")])
def test_a_body_whose_code_changed_is_refused(folder: Path, after: str, said: str) -> None:
    (folder / "said.txt").write_text("5, 'ReLU'")
    (folder / "changing.py").write_text(
        "from ast import literal_eval\nfrom pathlib import Path\nfrom torch import nn\n"
        "def make_body():\n"
        "    width, kind = literal_eval(Path(__file__).with_name('said.txt').read_text())\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), getattr(nn, kind)())\n"
    )
    name = f"changing-{after[-5:-1]}"
    mine = settings(folder, {"student.model": "changing.py:make_body", "output.name": name})
    with pytest.raises(KeyboardInterrupt):
        train(mine, progress=StopsAt(6))
    before = contents(folder / "runs" / name)
    (folder / "said.txt").write_text(after)
    with refused("checkpoint in", said, "code of student.model", "changed", "--overwrite"):
        train(mine)
    assert contents(folder / "runs" / name) == before
    (folder / "said.txt").write_text("5, 'ReLU'")
    assert train(mine).resumed_at == 5


# --- finished and overwritten -----------------------------------------------------------------------------------


def test_a_finished_run_is_up_to_date(folder: Path) -> None:
    mine = settings(folder, {"output.name": "finished"})
    first = train(mine)
    before = contents(folder / "runs/finished")
    second = train(mine)
    assert (first.fresh, second.fresh) == (True, False)
    assert (second.method, second.heads, second.parameters) == (first.method, first.heads, first.parameters)
    assert contents(folder / "runs/finished") == before


def test_overwriting_starts_again_and_can_be_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"output.name": "overwritten"}
    train(settings(folder, {**mine, "train.lr": 0.5}))
    train(settings(folder, {"output.name": "reference"}))
    run = folder / "runs/overwritten"
    with killed_at(0, monkeypatch, run) as happened:
        train(settings(folder, mine), overwrite=True)
    assert happened
    assert train(settings(folder, mine)).resumed_at == 0
    assert results(run) == results(folder / "runs/reference")


def test_the_settings_of_a_run_go_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, what is left of a run would look like somebody else's folder."""
    train(settings(folder, {"output.name": "cleared"}))
    (folder / "runs/cleared/evaluations").mkdir()
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **more: (gone.append(path.name), unlink(path, **more)))
    (folder / "runs/cleared/notes.md").write_text("mine")
    clear_folder(folder / "runs/cleared", FILES, last=ARGS)
    assert {"student.safetensors", "config.json", "checkpoint.safetensors", "summary.csv"} <= set(gone[:-1])
    assert gone[-1] == ARGS
    assert contents(folder / "runs/cleared") == {"notes.md": b"mine"}


# --- real kills -------------------------------------------------------------------------------------------------

LONG = {"train.epochs": 8, "train.checkpoint-minutes": EACH_STEP, "train.model-ema": "true"}
ONE_EPOCH = {"train.epochs": 1, "train.batch-size": 2}  # of 20 steps: nothing is saved before its end


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, bytes]:
    train(long(folder, "uninterrupted"))
    return results(folder / "runs/uninterrupted")


def long(folder: Path, name: str) -> Settings:
    return settings(folder, {**LONG, "train.model-ema": True, "output.name": name})


def test_a_killed_process_goes_on_to_the_same_bytes(folder: Path, uninterrupted: dict[str, bytes]) -> None:
    run = folder / "runs/process"
    process = edistill(folder, "train", settings={**LONG, "output.name": "process"}, sleep=0.03)
    try:
        wait_until(lambda: step_of(run) >= 3, process)
        with refused(f"Another process is writing to {run}"):
            train(long(folder, "process"))
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= train(long(folder, "process")).resumed_at < 40, "it was killed too late to show anything"
    assert results(run) == uninterrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(folder: Path, number: signal.Signals, status: int) -> None:
    run, name = folder / f"runs/{number.name}", number.name
    process = edistill(folder, "train", settings={**ONE_EPOCH, "output.name": name}, sleep=0.1)
    wait_until(lambda: (run / "config.json").is_file(), process)
    time.sleep(0.5)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == status, said
    assert f"training: saved at step {step_of(run)} of 20." in said
    assert "run the same command to continue: edistill train --set train.epochs=1 --set train.batch-size=2" in said
    assert 0 < train(settings(folder, {**ONE_EPOCH, "output.name": name})).resumed_at < 20
    train(settings(folder, {**ONE_EPOCH, "output.name": f"whole-{name}"}))
    assert results(run) == results(folder / f"runs/whole-{name}")


def test_a_run_that_was_to_be_replaced_outlives_an_early_signal(folder: Path, uninterrupted: dict[str, bytes]) -> None:
    run = folder / "runs/uninterrupted"
    before = contents(run)

    class Asks(StopsAt):
        def advance(self, count: int = 1, facts: object = None) -> None:
            if self.unit == "steps":
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(folder, {**ONE_EPOCH, "output.name": "uninterrupted"}), overwrite=True, progress=Asks(0))
    assert contents(run) == before


def step_of(run: Path) -> int:
    """Steps done in the whole training, as the last checkpoint says."""
    state = load_state(run)
    return 0 if state is None else int(state["step"])


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(
    folder: Path, uninterrupted: dict[str, bytes]
) -> None:
    run, rng, kills = folder / "runs/again", random.Random(0), 0
    for _ in range(60):
        process = edistill(folder, "train", settings={**LONG, "output.name": "again"}, sleep=0.05)
        before, limit = step_of(run), time.monotonic() + 60
        while process.poll() is None and step_of(run) == before and time.monotonic() < limit:
            time.sleep(0.01)
        try:
            process.wait(timeout=rng.uniform(0, 0.6))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        said = process.communicate()[0].decode()
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, said
    assert kills >= 3
    assert results(run) == uninterrupted
    assert load_file(run / "student.safetensors")
