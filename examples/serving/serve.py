"""The predictions of an exported student for the rows of an .npz, with only onnxruntime and NumPy.

python serve.py model.onnx rows.npz
"""

import json
import os
import sys

import numpy as np
import onnxruntime


class Student:
    """Maps rows to a record each: the task's prediction and its uncertainties; pictures must have the network's
    size."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path)
        said = self.session.get_modelmeta().custom_metadata_map
        told = ("task", "classes", "kind", "shape", "preprocessing")
        self.task, self.classes, self.kind, self.shape, self.how = (json.loads(said[f"edistill.{key}"]) for key in told)
        if self.kind in ("text", "tokens"):
            raise SystemExit(f"{path} takes {self.kind}: edistill predict makes its input of texts.")
        if (kind := self.session.get_inputs()[0].type) != "tensor(float)":
            raise SystemExit(f"{path} takes {kind}, and this file makes floats: give one without --uint8-input.")

    def ready(self, x):
        """Rows (B, ...) as the graph takes them; pictures are (B, H, W) or (B, H, W, C) with levels from 0 to 255.

        Raises ValueError for anything else.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "iuf":
            raise ValueError(f"it holds {x.dtype}, and rows are numbers")
        with np.errstate(over="ignore"):  # overflows become infinite
            x = x.astype(np.float32)
        if self.kind == "pixels":
            if list(x.shape[1:3]) != self.how["size"]:
                size = " × ".join(map(str, self.how["size"]))
                raise ValueError(f"a picture is {x.shape[1:]}, and the student sees {size}")
            if not ((x >= 0) & (x <= 255)).all():
                raise ValueError(f"levels are from {x.min():g} to {x.max():g}, and go from 0 to 255")
            pixels = x.reshape(len(x), *self.how["size"], -1) / 255
            x = ((pixels - np.float32(self.how["mean"])) / np.float32(self.how["std"])).transpose(0, 3, 1, 2)
        if list(x.shape[1:]) != self.shape:
            raise ValueError(f"a row is {x.shape[1:]}, and the student takes {tuple(self.shape)}")
        return x

    def __call__(self, x):
        """A record for each of the rows (B, ...) from `ready`."""
        names = [output.name for output in self.session.get_outputs() if not output.name.startswith("head_")]
        found = dict(zip(names, self.session.run(names, {self.session.get_inputs()[0].name: x}), strict=True))
        if self.task == "classification":
            p = np.exp(found.pop("logits"))
            found = {"class": np.array(self.classes)[p.argmax(1)], "probability": p.max(1), **found}
        return [{name: values[row].tolist() for name, values in found.items()} for row in range(len(x))]


if __name__ == "__main__":
    student = Student(sys.argv[1])
    try:
        for record in student(student.ready(np.load(sys.argv[2])["x"])):
            print(json.dumps(record))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for output that is still buffered
        sys.exit(141)
