"""What `train --generations` refuses: methods, members and data that cannot make a chain, and chains that changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_regression
from chains_helpers import WEIGHTS, asked, chained, make_chain
from tiny import refused_and_kept, save_data, settings, unseal

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write to it."""
    return make_chain(tmp_path_factory.mktemp("chain") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


# --- refusals ---------------------------------------------------------------------------------------------------


def test_no_generations(made: Path) -> None:
    with refused_and_kept(made, "train.generations", "0", "1"):
        settings(made, asked("none", 0))


@pytest.mark.parametrize("method", ["hydra", "supervised", "batch-ensemble", "endd", "proxy-endd"])
def test_methods_whose_students_cannot_follow_each_other(made: Path, method: str) -> None:
    with refused_and_kept(made, "train.generations is 2", method, "Use --method ban"):
        chained(made, "unfit", 2, train__method=method)
    assert not (made / "runs/unfit").exists()


def test_an_unknown_teacher(made: Path) -> None:
    with refused_and_kept(made, "train.teacher is 'member-9'", "holds member-0, member-1, member-2"):
        chained(made, "nobody", 2, train__teacher="member-9")


@pytest.mark.parametrize("objective", ["ban+l", "cwtm"])
def test_objectives_of_labels_need_them(folder: Path, objective: str) -> None:
    np.savez(folder / "data/plain.npz", x=np.load(folder / "data/train.npz")["x"])
    plain = {"data.train": "data/plain.npz", "output.cache": "plain"}
    cache_logits(settings(folder, plain))
    with refused_and_kept(folder, f"ban with objective = {objective!r} needs labels, and data.train has none"):
        train_chain(settings(folder, {**asked("plain", 2), **plain, "method.objective": objective}))
    train_chain(settings(folder, {**asked("plain", 1), **plain}))


@pytest.mark.parametrize("objective", ["cwtm", "dkpp"])
def test_objectives_of_classes_need_them(tmp_path: Path, objective: str) -> None:
    folder = tiny_regression.make_folder(tmp_path / "tiny", rows={"train": 8})
    with refused_and_kept(folder, f"method.objective is '{objective}'", "the task is regression", "ban or ban+l"):
        chained(folder, "numbers", 2, method__objective=objective)


def test_other_settings(made: Path) -> None:
    with refused_and_kept(made, "runs/whole was made with train.lr = 0.01, but now it is 0.02", "--overwrite"):
        chained(made, "whole", 4, train__lr=0.02)
    with refused_and_kept(made, "train.teacher = (default), but now it is 'member-0'"):
        chained(made, "whole", 4, train__teacher="member-0")


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_changed_predecessor(folder: Path, unfinished: bool) -> None:
    chain = folder / "runs/whole"
    learned = sha256_file(chain / "generation-1" / WEIGHTS)
    shutil.copyfile(chain / "generation-3" / WEIGHTS, chain / "generation-1" / WEIGHTS)
    unseal(chain / "generation-1")
    now = sha256_file(chain / "generation-1" / WEIGHTS)
    if unfinished:
        shutil.rmtree(chain / "generation-3")
        (chain / "generation-2" / WEIGHTS).unlink()
    told = ("generation-2", f"learned from generation-1 with sha256 {learned[:12]}…", f"now {now[:12]}…")
    for count in (2, 3, 4):
        with refused_and_kept(folder, *told):
            chained(folder, "whole", count)
    if not unfinished:
        with refused_and_kept(folder, *told):
            evaluate(settings(folder), "whole")


def test_a_predecessor_changed_after_its_cache_was_made(folder: Path) -> None:
    chain = folder / "runs/whole"
    then = sha256_file(chain / "generation-1" / WEIGHTS)
    shutil.copyfile(chain / "generation-3" / WEIGHTS, chain / "generation-1" / WEIGHTS)
    unseal(chain / "generation-1")
    now = sha256_file(chain / "generation-1" / WEIGHTS)
    for generation in (2, 3):
        shutil.rmtree(chain / f"generation-{generation}")
    told = f"caches/generation-1 holds what generation-1 said with sha256 {then[:12]}…, and that is now {now[:12]}…"
    with refused_and_kept(folder, told):
        chained(folder, "whole", 2)


def test_a_generation_calibrated_before_the_next_is_trained(folder: Path) -> None:
    """Its cache holds what it said before: take the calibration away, or start the chain again."""
    chain = folder / "runs/whole"
    for generation in (2, 3):
        shutil.rmtree(chain / f"generation-{generation}")
    calibrate(settings(folder), "whole/generation-1")
    with pytest.raises(EdistillError) as caught:
        chained(folder, "whole", 2)
    assert "cache-logits" not in str(caught.value)
    assert "edistill calibrate" in str(caught.value)


def test_changed_data(folder: Path) -> None:
    chained(folder, "grown", 1)
    save_data(folder, "train", 40, x=np.load(folder / "data/train.npz")["x"] ^ 1)
    with refused_and_kept(folder, "generation-1 was trained on train data", "but data.train is"):
        chained(folder, "grown", 2)


def test_changed_rows_that_decided_on_the_learning_rate(folder: Path) -> None:
    chained(folder, "grown", 1, train__sched="plateau")
    save_data(folder, "validation", 24, x=np.load(folder / "data/validation.npz")["x"] ^ 1)
    with refused_and_kept(folder, "generation-1 was trained on validation data", "but data.validation is"):
        chained(folder, "grown", 2, train__sched="plateau")


def test_data_of_other_classes(folder: Path) -> None:
    chained(folder, "grown", 1)
    save_data(folder, "train", 40, classes=np.array(list("abcd")))
    with refused_and_kept(folder, "generation-1 was trained on train data", "but data.train is"):
        chained(folder, "grown", 2)


def test_names_that_are_taken(folder: Path) -> None:
    train(settings(folder, asked("plain", None)))
    with refused_and_kept(folder, "runs/plain is a run without generations", "Choose another --name"):
        chained(folder, "plain", 2)
    with refused_and_kept(folder, "runs/plain is a run without generations"):
        chained(folder, "plain", 2, overwrite=True)
    with refused_and_kept(folder, "runs/whole is a chain of generations", "--generations"):
        train(settings(folder, asked("whole", None)))
    (folder / "runs/notes").mkdir()
    (folder / "runs/notes/notes.md").write_text("mine")
    for overwrite in (False, True):
        with refused_and_kept(folder, "runs/notes exists and is not a chain (it holds notes.md)"):
            chained(folder, "notes", 2, overwrite=overwrite)


def test_a_run_never_takes_the_place_of_a_chain(folder: Path) -> None:
    """A folder that is both would be found as the old chain."""
    with refused_and_kept(folder, "runs/whole"):
        train(settings(folder, asked("whole", None)), overwrite=True)
