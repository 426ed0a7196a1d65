"""The command `edistill predict`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import AlsoJson, Trust, refuse_two_formats
from ensemble_distill.errors import EdistillError

if TYPE_CHECKING:
    from ensemble_distill.settings import Settings
    from ensemble_distill.workflows.predict import Predictions

WEIGHTS = ".safetensors"
TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")


class Style(StrEnum):
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


class By(StrEnum):
    total = "total_uncertainty"
    model = "model_uncertainty"


Inputs = Annotated[
    list[str], typer.Argument(help="Image files, a folder, an .npz, a table, or a text.", show_default=False)
]
Model = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        help="An exported .onnx, .pt2 or .safetensors, or its folder; default: the newest .onnx of runs/.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="A file to write; default stdout.", show_default=False)
]
RowsAs = Annotated[
    Style | None,
    typer.Option("--format", help="Output format; default by the file's suffix, else csv.", show_default=False),
]
Heads = Annotated[bool, typer.Option("--heads", help="Also write each head's own prediction.")]
Above = Annotated[float | None, typer.Option(help="Mark rows whose uncertainty is above this.", show_default=False)]
Coverage = Annotated[
    float | None,
    typer.Option(
        help="Mark rows more uncertain than this share of the calibration rows, such as 0.9.", show_default=False
    ),
]
MarkedBy = Annotated[
    By | None,
    typer.Option(
        help="Which uncertainty the two above compare; default total; with --coverage, model if there is one.",
        show_default=False,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Add prediction sets or intervals that miss the truth for at most this share of rows.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Rows per batch; default as many as fit into 32 MiB with their outputs.", show_default=False),
]
Over = Annotated[bool, typer.Option("--overwrite", help="Replace a file that predict did not write.")]
Changed = Annotated[
    bool,
    typer.Option(
        "--changed", help="The .onnx was changed after its export (quantized, for example): skip its sha256 check."
    ),
]
Where = Annotated[
    Path | None, typer.Option("-c", "--config", help="Settings that locate runs/, or the body of a .safetensors.")
]


def register(app: typer.Typer) -> None:
    @command(app, "predict", settings=False)
    def predict(
        inputs: Inputs,
        model: Model = None,
        output: Output = None,
        style: RowsAs = None,
        json: AlsoJson = False,
        heads: Heads = False,
        abstain_above: Above = None,
        coverage: Coverage = None,
        abstain_by: MarkedBy = None,
        alpha: Alpha = None,
        batch_size: BatchSize = None,
        overwrite: Over = False,
        changed: Changed = False,
        trust: Trust = False,
        config_file: Where = None,
    ) -> None:
        """Predict images or rows with an exported student, with uncertainties; an .onnx needs no torch.

        Example: edistill predict data/test.npz -m runs/hydra-s0/export/model.onnx -o predictions.csv
        """
        from ensemble_distill.runs.trust import Trust as Trusted
        from ensemble_distill.workflows.predict import predict

        refuse_two_formats(json, style)
        settings = _settings(inputs, model, config_file)
        own = Path("runs") if settings is None else Path(settings.output.runs)
        runs = Path("runs") if model is not None else own
        asked = Style.json if json else style
        with render.Shown() as progress:
            found = predict(
                model,
                inputs,
                progress,
                runs=runs,
                output=output,
                style=None if asked is None else asked.value,
                heads=heads,
                abstain_above=abstain_above,
                coverage=coverage,
                abstain_by=None if abstain_by is None else abstain_by.value,
                alpha=alpha,
                batch_size=batch_size,
                overwrite=overwrite,
                changed=changed,
                columns=None if settings is None else settings.data.columns,
                trust=Trusted(own, None if settings is None else settings.student.model, trust),
            )
        _show(found, newest=model is None, output=output)


def _show(found: Predictions, newest: bool, output: Path | None) -> None:
    """Show the predictions, or where they were written, and the file that made them if the user named none."""
    if newest:
        render.message(f"By {found.model}, the newest export.")
    if output is not None:
        render.message(f"{output} is written.")
    elif found.style == "json":
        render.document(found.rows)
    else:
        render.text(found.text())


def _settings(inputs: Sequence[str], model: Path | None, config_file: Path | None) -> Settings | None:
    """The settings, where they are needed.

    That is to find the newest export, to declare the columns of a table to a file that does not record them, and to
    find the body of a file that holds only weights.

    Raises:
        EdistillError: no exported file is named, and there are no settings to find one.
    """
    from ensemble_distill.settings import settings_here

    table = len(inputs) == 1 and inputs[0].lower().endswith(TABLES)
    weights = model is not None and (model.is_dir() or model.suffix.lower() == WEIGHTS)  # settings may name its body
    settings = settings_here(config_file) if model is None or table or weights else None
    if model is None and settings is None:
        raise EdistillError("Which student? Pass -m FILE.onnx, or run this where edistill.toml and its runs are.")
    return settings
