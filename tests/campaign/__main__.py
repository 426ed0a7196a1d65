"""Kills at random moments, of one process and of one of several, damage in every region of every file that is read,
hostile files of every kind.

    python tests/campaign --kills 200 --lost 100 --damages 2000 --seed 0

It takes about an hour, prints what it counted, and ends with status 1 where anything was wrong in silence,
lost, or came without a message. Linux and macOS: it forks.
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
from commands import load_everything  # noqa: E402


def main() -> int:
    """The status: 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many times a command is ended; default 200")
    parser.add_argument("--lost", type=int, default=100, help="how many times one of several processes; default 100")
    parser.add_argument("--damages", type=int, default=2000, help="about how many files are damaged; default 2000")
    parser.add_argument("--every", type=int, default=1, help="each N-th command on a hostile folder; default all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    load_everything()
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        for part, run in (
            ("kills", lambda scratch: kills.campaign(scratch, asked.kills, asked.seed)),
            ("ranks", lambda scratch: ranks.campaign(scratch, asked.lost, asked.seed)),
            ("damage", lambda scratch: damage.campaign(scratch, asked.damages, asked.seed)),
            ("hostile", lambda scratch: hostile.campaign(scratch, asked.every)),
        ):
            scratch, started = Path(name) / part, time.monotonic()
            scratch.mkdir()
            report = run(scratch)
            print(f"{report}; {time.monotonic() - started:.0f} s", flush=True)
            faults += len(report.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
