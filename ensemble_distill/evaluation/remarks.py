"""What a reader of an evaluation should know beyond its figures, each in a sentence or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.evaluation.result import Evaluation, WhoAnswers
from ensemble_distill.evaluation.worth import Worth

COLLAPSED = 0.1  # share of the diversity explained; a student that collapsed to its own mean explains 0


def remarks(run: Evaluation) -> Iterator[str]:
    """What a reader of a run's tables should know, such as that it is calibrated or that its heads are worth little."""
    if run.answering is not None:
        yield from _who_answers(run.answering, run.split)
    if run.calibrated:
        commands = [command for command in run.undone if command]
        yield (
            f"{run.run} is calibrated. To undo that, run {' and '.join(commands)}."
            if commands
            else f"{run.run} is calibrated, as its run was when it was exported. To undo that, remove the run's "
            "calibration (edistill calibrate RUN --remove) and export it again."
        )
    student = run.worth and run.worth[STUDENT]
    slower = slower_than_all(run)
    if student and student.falls_short:
        told = (
            f"{run.run} takes as long as {student.cost_in_members:.1f} members and is worth fewer in "
            f"{' and in '.join(student.falls_short)}"
        )
        when = when_instead(run, student)
        best = f", the best of them by NLL on the validation rows: {' + '.join(run.instead)}" if run.instead else ""
        if slower:
            yield f"{told}."
        elif when is None:
            yield f"{told}, but the best members that take no longer are worth fewer still."
        else:
            yield f"{told}: {when}serve some members instead{best}."
    if slower is not None:
        own, whole = slower
        cause = ": in networks this small, call overhead outweighs arithmetic" if _less_arithmetic(run) else ""
        yield (
            f"{run.run} takes {own:.3g} ms for one row, and all members together {whole:.3g} ms{cause}. If the time "
            "for one row is what counts, serve the ensemble (edistill export --ensemble --onnx)."
        )
    explained = run.fidelity["diversity_explained"]
    if explained is not None and explained < 0:
        cause = " Calibration may have moved them that far apart: evaluate without it, too." if run.calibrated else ""
        yield (
            f"The heads of {run.run} are farther from their members than the heads' own mean is: what they "
            f"disagree about is not what the members disagree about.{cause} For trained heads, more epochs or a "
            "smaller learning rate help; for a start from members (student.init), another last stage, a higher "
            "rank, or all members compressed."
        )
    elif explained is not None and explained < COLLAPSED:
        yield (
            f"The heads of {run.run} predict nearly the same: they explain {explained:.0%} of the members' "
            "diversity, so this student's model uncertainty means little. If members are torch modules, starting "
            "from several of them (student.init) helps most; otherwise more rows without labels (data.transfer), "
            "stronger views and more epochs."
        )


def when_instead(run: Evaluation, student: Worth) -> str | None:
    """When to serve some members instead of a student that falls short: "" always, otherwise a condition.

    None never, since the best members at its cost are worth fewer still.
    """
    if run.instead is None and any(run.subensembles.values()):
        return None
    return "" if student.falls_short == student.known else f"if {student.falls_short[0]} is what counts, "


def cautions(runs: Sequence[Evaluation]) -> list[str]:
    """Warnings about runs whose figures are not those of a complete training."""
    trials = [
        f"{run.run} is a trial: it learned from {run.limit:,} rows at most (limit), so its figures say nothing about "
        "the full training."
        for run in runs
        if run.limit is not None
    ]
    return trials + [
        f"{run.run} ended while its loss was still falling: {run.still_falling:.0%} of the fall came in the second "
        "half of its last stage. More epochs would change its figures."
        for run in runs
        if run.still_falling is not None
    ]


def _who_answers(found: WhoAnswers, split: str) -> Iterator[str]:
    """Which rows a table describes, if members do not answer all of them."""
    if found.unanswered:
        yield f"{found.unanswered:,} more rows of {split} are left out: no member answers them."
    if found.most == 1 < found.members:
        yield (
            f"One of the {found.members} members answers each row of {split}. How close a head is to its own member is "
            "measured on that member's rows. How members differ on one row is unknown, so there is no model "
            "uncertainty of theirs to compare with, and no worth."
        )
    elif found.least < found.members:
        some = f"{found.least} to {found.most}" if found.least < found.most else str(found.least)
        alone = " Model uncertainty is compared on rows that several members answer." if found.least == 1 else ""
        yield (
            f"Of the {found.members} members {some} answer a row of {split}: its ensemble is those who do, and they "
            f"are compared with their own heads.{alone}"
        )


def slower_than_all(run: Evaluation) -> tuple[float, float] | None:
    """The latencies of the student and of its ensemble, in milliseconds; None if the student is faster, or unknown.

    The ensemble's latency is that of the fastest way to run it.
    """
    student, ensemble = run.cost[STUDENT], run.cost[ENSEMBLE]
    own, whole = student and student["latency_ms"], ensemble and ensemble["latency_ms"]
    return None if not own or not whole or own < whole else (own, whole)


def _less_arithmetic(run: Evaluation) -> bool:
    student, ensemble = run.cost[STUDENT], run.cost[ENSEMBLE]
    own, whole = student and student["macs"], ensemble and ensemble["macs"]
    return bool(own and whole and own < whole)
