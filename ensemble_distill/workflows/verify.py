"""`edistill verify`: recomputes every checksum of a cache, a run or a chain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.cache.manifest import is_cache
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data import decoded_blocks as pictures
from ensemble_distill.errors import CacheError, EdistillError, parted
from ensemble_distill.runs.folder import ARGS, CACHES, CONFIG, WEIGHTS, generation_name

AGAIN = "Delete those files and run edistill cache-logits to compute them again."
PICTURES = "Of decoded pictures delete the folder of the split; edistill cache-logits with cache.decoded decodes again."


@dataclass(frozen=True)
class VerifyReport:
    """The result of checking a cache, a run or a chain.

    Attributes:
        records: number of records, over all its caches.
        problems: one sentence each; for a run or a chain with its remedy.
        unfinished: splits without a complete view, and generations that are not fully trained.
        students: number of finished students.
        decoded: number of splits with stored decoded images.
        remedy: for all problems together; None if each has its own, or there are none.
    """

    folder: Path
    records: int
    problems: list[str]
    unfinished: list[str]
    students: int = 0
    decoded: int = 0
    remedy: str | None = None


def verify(folder: Path) -> VerifyReport:
    """Recompute all checksums. Raises EdistillError if the folder holds no readable cache, no run and no chain."""
    if is_cache(folder):
        return _cache(folder)
    from ensemble_distill.runs.verifying import generations, run_problems

    if generations(folder):
        return _chain(folder)
    if (folder / ARGS).is_file() and (folder / CONFIG).is_file():
        finished = (folder / WEIGHTS).is_file()
        problems, unfinished = (run_problems(folder), []) if finished else ([], [folder.name])
        return VerifyReport(folder, 0, problems, unfinished, int(finished))
    raise CacheError(f"{folder} holds no cache, no run and no chain. Give one, or run edistill cache-logits first.")


def _cache(folder: Path) -> VerifyReport:
    cache = Cache(folder)
    manifest, problems = cache.manifest, cache.verify()
    unfinished = [name for name in manifest.splits if manifest.views(name) == 0]
    damaged = pictures.problems(folder)
    remedy = " ".join([AGAIN] * bool(problems) + [PICTURES] * bool(damaged)) or None
    decoded = len(pictures.splits_in(folder))
    return VerifyReport(folder, len(manifest.records), problems + damaged, unfinished, 0, decoded, remedy)


def _chain(folder: Path) -> VerifyReport:
    """The generations, each the teacher of the next, and the caches of their answers."""
    from ensemble_distill.runs.verifying import chain_problems, generations

    problems, unfinished = chain_problems(folder)
    students = len(generations(folder)) - len(unfinished)
    records = 0
    for generation in generations(folder):
        cache = folder / CACHES / generation_name(generation)
        if not is_cache(cache):
            continue
        again = f"Delete {cache}: edistill train makes it again where a generation is still to learn from it."
        try:
            found = _cache(cache)
        except EdistillError as error:
            problems.append(f"{parted(str(error))[0]} {again}")
        else:
            records += found.records
            problems += [f"{problem}. {again}" for problem in found.problems]
            unfinished += [f"{cache.name}: {name}" for name in found.unfinished]
    return VerifyReport(folder, records, problems, unfinished, students)
