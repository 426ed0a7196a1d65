"""Checking that several processes have the same settings, code, data and members, wherever their machines keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_distill import __version__
from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import Manifest, is_cache
from ensemble_distill.caching.replay import samples_path
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.facts import FACETS, split_key
from ensemble_distill.runs.args import FREE
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.factories import portable
from ensemble_distill.runtime.shared import digest_or_reason, refuse_differing, see_as_first

if TYPE_CHECKING:
    from ensemble_distill.teachers.teacher import Teacher
    from ensemble_distill.training.train import Ready
    from ensemble_distill.workspace.workspace import Workspace


def refuse_differing_settings(workspace: Workspace, command: str, overwrite: bool) -> None:
    """Raise EdistillError if a process has other settings or code than the first one.

    Paths may differ between machines, and so may how things are computed, except for the kind of device.
    """
    if not ranks.several():
        return
    known: dict[str, object] = {"edistill": __version__, "command": command, "--overwrite": overwrite}
    known["device"] = workspace.device.type  # NCCL and gloo cannot talk to each other
    values = workspace.settings.model_dump(mode="json", by_alias=True)
    for key, value in _flat(values):
        if key in FREE or _is_path(value):
            continue
        known[key] = portable(value) if isinstance(value, str) else value
        if isinstance(value, str) and (place := value.rpartition(":")[0]).endswith(".py"):
            known[f"the code of {key}"] = digest_or_reason(Path(place))
    refuse_differing(known)


def refuse_differing_inputs(plans: Mapping[str, SplitPlan], teachers: Sequence[Teacher]) -> None:
    """Raise EdistillError if a process has other data or members than the first one."""
    if not ranks.several():
        return
    known: dict[str, object] = {}
    for name, plan in plans.items():
        facts = plan.facts()
        known[split_key(name)] = f"{facts.digest[:12]}… ({facts.rows} rows)"
    for teacher in teachers:
        known |= {f"{what} of member {teacher.member.name}": getattr(teacher.member, what) for what in FACETS}
    refuse_differing(known)


def refuse_differing_students(ready: Ready) -> None:
    """Raise EdistillError if a process builds another student than the first one, whose weights it would receive.

    The files that the student starts from then differ between machines.
    """
    made = ready.config.architecture
    told = made.body_json() | made.input_json() | {"model": portable(made.model)}
    refuse_differing({f"the student's {name}": value for name, value in told.items()})


def see_cache(folder: Path) -> None:
    """Wait until every process sees the first one's cache; see `see_as_first`."""
    see_as_first([folder / MANIFEST])
    if not ranks.several():
        return
    manifest = Manifest.load(folder) if is_cache(folder) else None
    see_as_first([] if manifest is None else [samples_path(folder, split) for split in manifest.splits])
    see_as_first([] if manifest is None else [key.path(folder) for key in manifest.records], whole=False)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a document, by dotted key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{at}")
    else:
        yield key, value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute() and portable(value) == value
