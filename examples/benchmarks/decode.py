"""Is it worth keeping pictures decoded? Ratios, each from alternating runs in this process.

    python examples/benchmarks/decode.py ../shared --work /tmp/decode --csv examples/benchmarks/decode.csv

CIFAR-10 as JPEGs of 32 pixels, and the same pictures enlarged to JPEGs of 256 pixels with quality 90, are read as a
caching pass and a training read them: each row in a crop-flip view for a network of 32 or 224 pixels. The ratio is the
rows per second from the store of `cache.decoded` divided by those from the files:

- `decoded` only reads, `rendered` reads and renders;
- files are read for the first time, or `again` from the memory that keeps up to 256 MiB of decoded pictures;
- by this process (0), or by 1 or 2 loader processes.

The machine may be busy: what counts are ratios of alternating runs.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import unpack_cifar10  # noqa: E402
from timing import medians  # noqa: E402

from ensemble_distill.caching.decoding import store_pictures  # noqa: E402
from ensemble_distill.caching.panel import Asking  # noqa: E402
from ensemble_distill.caching.seen import loaded  # noqa: E402
from ensemble_distill.data import open_source  # noqa: E402
from ensemble_distill.data.plan import SplitPlan  # noqa: E402
from ensemble_distill.data.source import Source  # noqa: E402
from ensemble_distill.data.views import open_view  # noqa: E402
from ensemble_distill.facts import Preprocessing  # noqa: E402
from ensemble_distill.runtime.progress import Silent  # noqa: E402
from ensemble_distill.teachers.answering import Inputs  # noqa: E402

SMALL, LARGE = 5000, 600  # rows of either size
SIDE, QUALITY = 256, 90
BATCH, WORKERS = 50, (0, 1, 2)
CPU = torch.device("cpu")
TO = {
    32: Preprocessing((32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
    SIDE: Preprocessing((224, 224), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), "bicubic", 0.875),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder that holds data/")
    parser.add_argument("--work", type=Path, default=HERE / "output")
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pictures = unpack_cifar10(given.shared, given.work) / "train"
    lines = []
    for side, folder in (
        (32, taken(pictures, given.work / "32", SMALL)),
        (SIDE, enlarged(pictures, given.work, LARGE)),
    ):
        lines += list(compared(side, folder, given.work / f"cache-{side}", given.repeats))
    if given.csv is not None:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def some(pictures: Path, count: int) -> list[Path]:
    """`count` pictures, evenly spread over the classes."""
    every = sorted(pictures.rglob("*.jpg"))
    return every[:: len(every) // count][:count]


def taken(pictures: Path, into: Path, count: int) -> Path:
    for path in some(pictures, count):
        place = into / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return into


def enlarged(pictures: Path, work: Path, count: int) -> Path:
    for path in some(pictures, count):
        place = work / str(SIDE) / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place, quality=QUALITY)
    return work / str(SIDE)


def compared(side: int, folder: Path, cache: Path, repeats: int) -> Iterator[dict[str, object]]:
    """Yield a line for each way of reading."""
    cache.mkdir(exist_ok=True)
    plan = SplitPlan(open_source(folder), open_view("crop-flip"), "crop-flip", 0, 2)
    rows, asking = len(plan.source), Asking("float16", BATCH, CPU, 0, Silent())
    stored = store_pictures(cache, {"train": plan}, asking)[0]["train"].source
    kept = open_source(folder)
    decoded_seconds(kept)  # fills the memory
    files = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    store = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    print(f"{side} pixels, {rows:,} rows: {files / 1e6:.1f} MB of files, {store / 1e6:.1f} MB decoded", flush=True)
    ways: list[tuple[str, str, int, Callable[[], float], Callable[[], float]]] = [
        ("decoded", "first", 0, lambda: decoded_seconds(open_source(folder)), lambda: decoded_seconds(stored)),
        ("decoded", "again", 0, lambda: decoded_seconds(kept), lambda: decoded_seconds(stored)),
        ("rendered", "again", 0, lambda: rendered_seconds(kept, side, 0), lambda: rendered_seconds(stored, side, 0)),
    ]
    for workers in WORKERS:
        ways.append(
            (
                *("rendered", "first", workers),
                lambda workers=workers: rendered_seconds(open_source(folder), side, workers),  # type: ignore[misc]
                lambda workers=workers: rendered_seconds(stored, side, workers),  # type: ignore[misc]
            )
        )
    for reading, when, workers, of_files, of_store in ways:
        slow, fast = medians(repeats, of_files, of_store)
        line = {
            **{"pixels": side, "rows": rows, "reading": reading, "from_files": when, "workers": workers},
            **{"rows_per_second_files": round(rows / slow), "rows_per_second_store": round(rows / fast)},
            **{"ratio": round(slow / fast, 2), "bytes_files": files, "bytes_store": store},
        }
        told = f"  {reading}, files {when}, {workers} loader processes"
        print(f"{told:<52}{rows / slow:8,.0f} → {rows / fast:8,.0f} rows/s, ratio {slow / fast:6.2f}", flush=True)
        yield line


def decoded_seconds(source: Source) -> float:
    started = time.perf_counter()
    for row in range(len(source)):
        source.item(row)
    return time.perf_counter() - started


def rendered_seconds(source: Source, side: int, workers: int) -> float:
    """Seconds to read and render all rows in batches, as a caching pass does."""
    rows = SplitPlan(source, open_view("crop-flip"), "crop-flip", 0, 2).rows()
    cut = [range(start, min(start + BATCH, len(source))) for start in range(0, len(source), BATCH)]
    started = time.perf_counter()
    for _ in loaded(rows, cut, [1], [Inputs(TO[side])], workers, CPU):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
