"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.versions import AS_TRACED, Versions


@dataclass(frozen=True)
class Formats:
    """The files that are to be written of a student.

    Attributes:
        onnx, safetensors: the plain ones.
        fp16, int8: ONNX in less precision, which stand beside the plain file, and so bring it along.
        uint8_input: each ONNX file once more, taking raw pixels; it brings the plain one along too.
        program: of torch.export.
        merge_heads: a folder that timm loads, with one head.
        versions: in which ONNX files are written.
        force: write files of less precision whatever they cost.
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
        """Raises EdistillError where nothing is asked for, or something that goes with nothing."""
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
        """Whether a file of less precision is asked for."""
        return self.fp16 or self.int8

    @property
    def graphs(self) -> bool:
        """Whether an ONNX file is."""
        return self.onnx or self.smaller or self.uint8_input

    def refuse_of_ensemble(self, run: str | None) -> None:
        """Raise EdistillError for what is asked of a run alone."""
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
