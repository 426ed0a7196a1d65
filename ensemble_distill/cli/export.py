"""The command `edistill export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, RunArgument, Trust
from ensemble_distill.runs.folder import bytes_of
from ensemble_distill.runtime.numbers import number
from ensemble_distill.runtime.words import megabytes
from ensemble_distill.settings import Settings

if TYPE_CHECKING:
    from ensemble_distill.workflows.export import Exported


Onnx = Annotated[bool, typer.Option("--onnx", help="Write export/model.onnx, checked against torch.")]
Safetensors = Annotated[bool, typer.Option("--safetensors", help="Write export/model.safetensors.")]
Half = Annotated[bool, typer.Option("--fp16", help="Also write export/model-fp16.onnx, and report what it costs.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Also write export/model-int8.onnx, and report what it costs.")]
Uint8 = Annotated[
    bool,
    typer.Option(
        "--uint8-input",
        help="Also write export/model-uint8.onnx, which takes raw pixels; with --fp16 or --int8, of those too.",
    ),
]
Program = Annotated[
    bool, typer.Option("--program", help="Write export/model.pt2, which torch runs without the body's code.")
]
Merged = Annotated[
    bool, typer.Option("--merge-heads", help="Write export/merged/, one plain timm model, and report what it loses.")
]
Force = Annotated[bool, typer.Option("--force", help="Write --fp16 and --int8 no matter what they cost.")]
OfMembers = Annotated[
    bool, typer.Option("--ensemble", help="Export the members instead: ensemble/export/model.onnx beside the runs.")
]
Opset = Annotated[int | None, typer.Option(help="Operator set of the .onnx; default torch's.", show_default=False)]
Ir = Annotated[int | None, typer.Option(help="IR version of the .onnx; old runtimes read up to 9.", show_default=False)]
CardBeside = Annotated[bool, typer.Option("--card/--no-card", help="Write a model card and the edistill.toml used.")]


def register(app: typer.Typer) -> None:
    @command(app, "export", ["limit"])
    def export(
        settings: Settings,
        run: RunArgument = None,
        onnx: Onnx = False,
        safetensors: Safetensors = False,
        fp16: Half = False,
        int8: Int8 = False,
        uint8_input: Uint8 = False,
        program: Program = False,
        merge_heads: Merged = False,
        force: Force = False,
        ensemble: OfMembers = False,
        opset: Opset = None,
        ir_version: Ir = None,
        card: CardBeside = True,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Export a student, or the ensemble itself, for serving, and verify the file on real rows.

        Example: edistill export --onnx --safetensors
        """
        from ensemble_distill.workflows.export import export

        with render.Shown() as progress:
            exported = export(
                settings,
                run,
                onnx=onnx,
                safetensors=safetensors,
                fp16=fp16,
                int8=int8,
                uint8_input=uint8_input,
                program=program,
                merge_heads=merge_heads,
                force=force,
                ensemble=ensemble,
                opset=opset,
                ir_version=ir_version,
                card=card,
                trust=trust,
                progress=progress,
            )
        _show(exported, json)


def _show(exported: Exported, json: bool) -> None:
    files = exported.files
    if json:
        beside = [str(path) for path in exported.beside]
        document: dict[str, Any] = {"files": [str(path) for path in files], "beside": beside}
        prices = [price.to_json() for price in exported.prices]
        document |= {"prices": prices} if prices else {}
        document |= {"merged": dict(exported.merged)} if exported.merged else {}
        render.document(document)
        return
    render.table(
        "exported and verified",
        ["file", "size"],
        [[render.near(str(path)), megabytes(bytes_of(path))] for path in files],
    )
    if exported.merged:
        names = list(exported.merged)
        figures = [name for name, value in exported.merged[names[0]].items() if value is not None]
        rows = [[name, *(number(exported.merged[model].get(name)) for model in names)] for name in figures]
        render.table("on validation rows, what the heads' mean keeps", ["", *names], rows)
    if exported.prices:
        from ensemble_distill.evaluation.price import price_table

        table = price_table(exported.prices)
        render.grid(table.title, table.columns, table.sections, table.caption)
    if exported.beside:
        render.message(
            f"Beside {'it' if len(files) == 1 else 'them'}: {' and '.join(p.name for p in exported.beside)}."
        )
