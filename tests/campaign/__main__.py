"""Kills at random moments, of one process and of one of several, damage in every region of every file that is read,
hostile files of every kind; damaged and hostile files that several processes read, or one of them alone.

    python tests/campaign --kills 200 --lost 100 --damages 2000 --together 300 --seed 0

It takes about an hour, prints what it counted, and ends with status 1 where anything was wrong in silence,
lost, or came without a message. A part of which 0 are asked for (--every 0 of hostile files) is left out. Linux and
macOS: it forks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import damage  # noqa: E402
import hostile  # noqa: E402
import kills  # noqa: E402
import ranks  # noqa: E402
import together  # noqa: E402
from commands import load_everything  # noqa: E402


def main() -> int:
    """The status: 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many times a command is ended; default 200")
    parser.add_argument("--lost", type=int, default=100, help="how many times one of several processes; default 100")
    parser.add_argument("--damages", type=int, default=2000, help="about how many files are damaged; default 2000")
    parser.add_argument("--together", type=int, default=300, help="how many files that several read; default 300")
    parser.add_argument("--every", type=int, default=1, help="each N-th command on a hostile folder; default all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    load_everything()
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        for part, asked_for, run in (
            ("kills", asked.kills, kills.campaign),
            ("ranks", asked.lost, ranks.campaign),
            ("damage", asked.damages, damage.campaign),
            ("hostile", asked.every, hostile.campaign),
            ("together", asked.together, together.campaign),
        ):
            if not asked_for:
                continue
            scratch, started = Path(name) / part, time.monotonic()
            scratch.mkdir()
            report = run(scratch, asked_for, asked.seed)
            print(f"{report}; {time.monotonic() - started:.0f} s", flush=True)
            faults += len(report.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
