"""Proof that a view in training is the view that the members saw.

A few rendered inputs are kept beside the records, in [0, 1] and before normalization. Training renders them again and
refuses a difference above 2/255: exact hashes would refuse legitimate changes of machine or JPEG library, which alter
pixels by one level. For views that push, the input before the push is kept and compared: it proves which rows were
mixed, and so the labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.source import Array
from ensemble_distill.errors import CacheError
from ensemble_distill.facts import AnyPreprocessing, Kind, Preprocessing, Several, Tokenization
from ensemble_distill.runtime.files import remove_file, write_whole
from ensemble_distill.runtime.records import parsed
from ensemble_distill.runtime.spread import spread

ROWS = 4
VIEWS = 4
TOLERANCE = 2 / 255 + 1e-6  # two levels, plus rounding to float32


@dataclass(frozen=True)
class _Kept:
    """How the kept inputs were rendered."""

    to: AnyPreprocessing | None


def samples_path(folder: Path, split: str) -> Path:
    """The file in a cache that holds the kept inputs of a split."""
    return folder / "replay" / f"{split}.safetensors"


def _samples(rows: ViewedRows, views: int, to: AnyPreprocessing | None) -> Iterator[tuple[str, Array]]:
    plain = _plain(to)
    for row in spread(len(rows.source), ROWS):
        for view in range(min(views, VIEWS)):
            yield f"{row}/{view}", rows.inputs(row, [view], [plain])[0]


def _plain(to: AnyPreprocessing | None) -> AnyPreprocessing | None:
    """The same preprocessing, but with pixels in [0, 1]."""
    if isinstance(to, Several):
        return Several(tuple(replace(part, preprocessing=_plain_part(part.preprocessing)) for part in to.parts))
    return replace(to, mean=(0.0,), std=(1.0,)) if isinstance(to, Preprocessing) else to


def _plain_part(to: Preprocessing | Tokenization | None) -> Preprocessing | Tokenization | None:
    """`_plain` for one of several arrays, with its number of channels, since the shape of a part is fixed."""
    if not isinstance(to, Preprocessing):
        return to
    return replace(to, mean=(0.0,) * len(to.mean), std=(1.0,) * len(to.std))


def _tolerance(kind: Kind, to: AnyPreprocessing | None, then: Array) -> Array | float:
    """The allowed difference between kept and new inputs; for several arrays, one value per number."""
    if isinstance(to, Several):
        each, start = np.empty(then.shape), 0
        for part in to.parts:
            stop = start + math.prod(part.shape)
            each[start:stop] = _tolerance(part.kind, part.preprocessing, then[start:stop])
            start = stop
        return each
    if kind in ("text", "tokens"):
        return 0.0  # ids have no tolerance
    return TOLERANCE if kind == "pixels" else 1e-5 * max(1.0, float(np.abs(then).max()))


def _is_kept(x: Array) -> bool:
    """Whether an array can be a rendered input: floats, or token ids."""
    return bool(x.dtype in (np.float32, np.int64) and x.size and np.isfinite(x).all())


def keep_samples(folder: Path, split: str, rows: ViewedRows, views: int, to: AnyPreprocessing | None) -> None:
    """Keep a few of a split's inputs as the caching pass renders them.

    Raises:
        EdistillError: an earlier pass over this split saw different inputs; see `check_samples`.
    """
    if samples_path(folder, split).is_file():
        check_samples(folder, split, rows, views)
    samples = dict(_samples(rows, views, to))
    content = save(samples, metadata={"to": json.dumps(to and to.to_json())})
    write_whole(samples_path(folder, split), content, within=folder)


def drop_samples(folder: Path, split: str) -> None:
    """Delete the kept inputs of a split that ended up with no records."""
    remove_file(samples_path(folder, split), within=folder)


def check_samples(folder: Path, split: str, rows: ViewedRows, views: int) -> None:
    """Render the kept inputs again and compare.

    Raises:
        EdistillError: an input differs by more than 2/255 (features: 1e-5 of their size; token ids: at all), or the
            kept inputs are missing or damaged.
    """
    path = samples_path(folder, split)
    if not path.is_file():
        raise CacheError(f"{path} is missing. Restore it, or run edistill cache-logits --overwrite.")
    try:
        with safe_open(path, framework="numpy") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(file.metadata()["to"])
        to = parsed(_Kept, {"to": record}).to
        if odd := [name for name, x in kept.items() if not _is_kept(x)]:
            raise ValueError(f"{odd[0]} is not what is kept here")
        if to is None and rows.source.kind in ("pixels", "text", "several"):
            raise ValueError(f"it does not say how {rows.source.kind} was rendered")
    except Exception as error:  # safetensors' errors share no base class, and what it is given can be anything
        raise CacheError(
            f"{path} is damaged ({error}). Restore it, or run edistill cache-logits --overwrite."
        ) from None
    for name, now in _samples(rows, views, to):
        then = kept.get(name)
        if then is None:
            continue  # the cache was made with fewer views: this one is not read
        row, view = name.split("/")
        if then.shape != now.shape:
            raise CacheError(
                f"{folder} saw row {row} of {split} as {then.shape}, but it is {now.shape} now. Run edistill "
                "cache-logits --overwrite."
            )
        tolerance, difference = np.broadcast_to(_tolerance(rows.source.kind, to, then), then.shape), np.abs(then - now)
        if not (difference <= tolerance).all():
            at = np.unravel_index(int((difference - tolerance).argmax()), then.shape)
            raise CacheError(
                f"View {view} of row {row} of {split} differs by {difference[at]:.4f} from what the members saw "
                f"(allowed: {tolerance[at]:.4f}). {_decides(rows.source.kind)} has changed: run edistill cache-logits "
                "--overwrite."
            )


def _decides(kind: str) -> str:
    """What can change an input, besides the data that its digest covers."""
    by = {"text": "The transform or the tokenizer", "several": "The transform, the tokenizer or the image decoder"}
    return by.get(kind, "The transform or the image decoder")
