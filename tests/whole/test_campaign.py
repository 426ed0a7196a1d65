"""A short run of the campaign; `python tests/campaign` is the whole one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_wrong_in_silence_and_no_one_gets_in() -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "campaign")]
    done = subprocess.run(
        [*command, "--kills", "20", "--lost", "10", "--damages", "400", "--every", "5", "--together", "40"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
