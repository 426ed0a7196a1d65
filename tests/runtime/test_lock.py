"""One writer at a time; a dead writer holds nothing (a killed process is in test_caching.py)."""

from pathlib import Path

import pytest
from tiny import Killed, contents, make_folder, refused, settings

from ensemble_distill.runtime.lock import one_writer


def test_a_second_writer_is_refused_and_does_not_free_the_first_ones_lock(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with one_writer(folder):
        for _ in range(2):
            with refused(f"Another process is writing to {folder}", "run the command again"), one_writer(folder):
                pytest.fail("two writers at once")
    with one_writer(folder):
        pass


def test_a_writer_that_fails_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(Killed), one_writer(tmp_path):
        raise Killed
    with one_writer(tmp_path):
        pass


def test_a_lock_file_alone_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("4194303")
    with one_writer(tmp_path):
        pass


def test_other_folders_are_free(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a"), one_writer(tmp_path / "b"):
        pass


def test_commands_take_the_lock_before_they_touch_anything(tmp_path: Path) -> None:
    from ensemble_distill.workflows.cache_logits import cache_logits
    from ensemble_distill.workflows.train import train

    folder = make_folder(tmp_path / "tiny")
    cache_logits(settings(folder))
    train(settings(folder))
    for output, command in ((folder / "cache", cache_logits), (folder / "runs/hydra-s0", train)):
        before = contents(folder)
        with one_writer(output), refused(f"Another process is writing to {output}"):
            command(settings(folder), overwrite=True)
        assert contents(folder) == before
