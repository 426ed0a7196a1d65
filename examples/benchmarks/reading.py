"""How long a batch's records take to read, by how many files stay mapped: python examples/benchmarks/reading.py

A cache has one file per member and view. A batch has rows in every view, so it reads all of them. Medians of
alternating reads of 256 rows, with all files mapped, with 256 (where at most 1,024 files may be open), and with none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from timing import medians, seconds_of  # noqa: E402

from ensemble_distill.cache import records  # noqa: E402
from ensemble_distill.cache.manifest import Manifest  # noqa: E402
from ensemble_distill.cache.reader import Cache  # noqa: E402
from ensemble_distill.cache.record_key import RecordKey  # noqa: E402
from ensemble_distill.cache.writer import Writer, blocks  # noqa: E402
from ensemble_distill.facts import Member, Split  # noqa: E402
from ensemble_distill.runtime import open_files  # noqa: E402
from ensemble_distill.tasks.classification import Classification  # noqa: E402

CLASSES, BATCH, REPEATS = 10, 256, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--rows", type=int, default=32_768)
    given = parser.parse_args()
    print("| members × views | all mapped, ms | 256 mapped ÷ all | none ÷ all |\n|---|---:|---:|---:|")
    records.IN_MEMORY = 0
    for views in given.views:
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(made(Path(folder), given.members, views, given.rows))
            every, few, none = medians(REPEATS, *(reading(cache, views, maps) for maps in (1 << 20, 256, 0)))
        print(
            f"| {given.members} × {views} | {1000 * every:.1f} | {few / every:.1f} | {none / every:.1f} |", flush=True
        )


def made(folder: Path, members: int, views: int, rows: int) -> Path:
    """A cache of random logits."""
    task = Classification(tuple(f"class {k}" for k in range(CLASSES)))
    named = tuple(Member(f"member-{m:02d}", f"{m:064d}") for m in range(members))
    splits = {"train": Split(rows, "0" * 64, "all", "pixels", "mixup", views)}
    writer = Writer(folder, Manifest(task, "float16", named, splits, caching={"batch_size": BATCH}))
    keys = [RecordKey("train", member.name, view) for member in named for view in range(views)]
    rng = np.random.default_rng(0)
    for block in blocks(rows, BATCH, 1):
        some = rng.normal(size=(block.stop - block.start, CLASSES)).astype(np.float32)
        writer.put(block, dict.fromkeys(keys, writer.manifest.format.encode(some)))
    writer.join(keys, rows, BATCH)
    return folder


def reading(cache: Cache, views: int, maps: int) -> Callable[[], float]:
    """A run that reads a batch of random rows, each in a random view; returns its seconds."""
    open_files.most_maps = lambda: maps
    split, rng = cache.open("train", views), np.random.default_rng(0)

    def run() -> float:
        rows, each = rng.integers(0, len(split), BATCH), rng.integers(0, views, BATCH)
        return seconds_of(lambda: split.read(rows, each))

    return run


if __name__ == "__main__":
    main()
