"""The formats of an export."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.versions import AS_TRACED, Versions


@dataclass(frozen=True)
class Formats:
    """The files to export from a student.

    Attributes:
        onnx, safetensors: the plain files.
        fp16, int8: ONNX in lower precision; the plain file is written too.
        uint8_input: each ONNX file again, with raw pixels as input; the plain file is written too.
        program: a torch.export program.
        merge_heads: a folder for timm, with one head.
        versions: the versions of the ONNX files.
        force: write files of lower precision however much they lose.
    """

    onnx: bool = False
    safetensors: bool = False
    fp16: bool = False
    int8: bool = False
    uint8_input: bool = False
    program: bool = False
    merge_heads: bool = False
    versions: Versions = AS_TRACED
    force: bool = False

    def __post_init__(self) -> None:
        """Raise EdistillError if no format is requested, or an option applies to none of those requested."""
        if not (self.graphs or self.safetensors or self.program or self.merge_heads):
            raise EdistillError("No format was requested. Pass --onnx, --safetensors, or both.")
        if self.versions != AS_TRACED and not self.graphs:
            named = "--opset" if self.versions.opset is not None else "--ir-version"
            raise EdistillError(
                f"{named} is of ONNX files, and none is requested. Pass --onnx too, or leave {named} out."
            )
        if self.force and not self.smaller:
            raise EdistillError("--force is for --fp16 and --int8, and neither is requested. Leave it out.")

    @property
    def smaller(self) -> bool:
        """Whether a file of lower precision is requested."""
        return self.fp16 or self.int8

    @property
    def graphs(self) -> bool:
        """Whether an ONNX file is requested."""
        return self.onnx or self.smaller or self.uint8_input

    def refuse_of_ensemble(self, run: str | None) -> None:
        """Raise EdistillError if anything is requested that only a run can provide."""
        if run is not None:
            raise EdistillError(
                f"--ensemble exports the members of teachers.path, and no run. Leave {run} or --ensemble out."
            )
        if self.safetensors:
            raise EdistillError(
                "--safetensors is for a student: the members' weights are files already, in teachers.path. Leave out "
                "--safetensors or --ensemble."
            )
        for name in (name for name in ("fp16", "int8", "uint8_input", "program", "merge_heads") if getattr(self, name)):
            flag = name.replace("_", "-")
            raise EdistillError(f"--{flag} is for a student, and --ensemble exports none. Leave one of them out.")
