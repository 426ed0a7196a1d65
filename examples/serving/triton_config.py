"""A model repository for NVIDIA's Triton from an exported student: its file, and a matching config.pbtxt.

python triton_config.py model.onnx repository --name student
"""

import argparse
import shutil
from pathlib import Path

import onnxruntime

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(uint8)": "TYPE_UINT8",
}
END = """  {{
    name: "{name}"
    data_type: {type}
    dims: [ {dims} ]{reshape}
  }}"""
CONFIG = """name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {most}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{
  max_queue_delay_microseconds: {wait}
}}
"""


def config(path, name, most=64, wait=2000):
    """The text of config.pbtxt.

    Args:
        most: largest number of rows in a batch; wait: microseconds to wait for others.
    """
    session = onnxruntime.InferenceSession(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if states := [end.name for end in inputs if end.name.startswith("state_")]:
        raise SystemExit(f"{path} takes a state ({', '.join(states)}), which batches of unrelated requests have not.")
    return CONFIG.format(
        name=name,
        most=most,
        wait=wait,
        inputs=",\n".join(map(_end, inputs)),
        outputs=",\n".join(map(_end, outputs)),
    )


def _end(end):
    """An input or output without the batch dimension; one number per row is (1,) for Triton, and () for the graph."""
    sizes = [str(size) if isinstance(size, int) else "-1" for size in end.shape[1:]]
    reshape = "" if sizes else "\n    reshape: { shape: [ ] }"
    return END.format(name=end.name, type=TYPES[end.type], dims=", ".join(sizes or ["1"]), reshape=reshape)


def write(path, repository, name):
    """Write NAME/config.pbtxt and NAME/1/model.onnx."""
    folder = Path(repository) / name
    text = config(path, name)
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    shutil.copyfile(path, folder / "1" / "model.onnx")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("repository")
    parser.add_argument("--name", default="student")
    given = parser.parse_args()
    print(write(given.model, given.repository, given.name))
