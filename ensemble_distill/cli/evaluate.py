"""`edistill evaluate`"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import Json, Trust, command
from ensemble_distill.cli.train import RunArgument
from ensemble_distill.config import Settings

COLLAPSED = 0.1  # of the diversity explained; a student collapsed to its own mean has 0
MODELS = ("ensemble", "member", "student")


def register(app: typer.Typer) -> None:
    @command(app, "evaluate", ["train.device", "train.workers"])
    def evaluate(
        settings: Settings,
        run: RunArgument = None,
        split: Annotated[
            str | None,
            typer.Option(help="Which rows; default test, or validation where there is none.", show_default=False),
        ] = None,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Compare a run with its ensemble: quality, uncertainty, diversity, OOD detection, cost.

        Example: edistill evaluate hydra-s0 --split validation --json
        """
        from ensemble_distill.workflows.evaluate import evaluate

        with render.Shown() as progress:
            document = evaluate(settings, run, split=split, trust=trust, progress=progress)
        if json:
            render.document(document)
        else:
            show(document)


def show(document: Mapping[str, Any]) -> None:
    """The document as tables, diversity first."""
    fidelity = document["fidelity"]
    control = fidelity["model_uncertainty_spearman_control"]
    caption = None
    if fidelity["model_uncertainty_spearman"] is not None:
        caption = f"Control for the Spearman: the student's total uncertainty alone gives {render.number(control)}."
    render.table(
        f"{document['run']} on {document['rows']:,} rows of {document['split']}: how near the ensemble",
        ["fidelity", "student", "perfect"],
        [
            [name.replace("_", " "), render.number(fidelity[name]), perfect]
            for name, perfect in {
                "diversity_explained": "1",
                "deviation_correlation": "1",
                "model_uncertainty_l1": "0",
                "model_uncertainty_ratio": "1",
                "model_uncertainty_spearman": "1",
                "member_kl": "0",
                "mean_kl": "0",
                "agreement": "1",
                "gap_closed": "1",
            }.items()
        ],
        caption,
    )
    explained = fidelity["diversity_explained"]
    if explained is not None and explained < COLLAPSED:
        render.message(
            f"The heads say nearly the same: they explain {explained:.0%} of the members' diversity, so this student's "
            "model uncertainty stands for little. More or stronger views, more epochs, a larger learning rate and MLP "
            "heads help."
        )
    models = document["models"]
    render.table(
        "quality and uncertainty (nats)",
        ["", *MODELS],
        [
            [name.replace("_", " "), *(render.number(models[model][name]) for model in MODELS)]
            for name in models["ensemble"]
        ],
        "member: the mean over members of each one's own.",
    )
    if document["ood"]:
        render.table(
            "out-of-distribution detection (AUROC)",
            ["set, score", *MODELS],
            [
                [f"{name}, {score.replace('_', ' ')}", *(render.number(figures[model][score]) for model in MODELS)]
                for name, figures in document["ood"].items()
                for score in figures["ensemble"]
            ],
        )
    costs = document["cost"]
    known = [model for model in ("ensemble", "student") if costs[model] is not None]
    render.table(
        "cost of one row",
        ["", *known],
        [
            [label, *(render.number(costs[model][name], 3) for model in known)]
            for name, label in (
                ("parameters", "parameters"),
                ("macs", "multiply-accumulates"),
                ("latency_ms", "latency, one thread (ms)"),
            )
        ],
    )
