"""What `inspect` reports of an exported ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.runs.about_exports import about_stale
from ensemble_distill.serving.served import Served


def about(path: Path) -> dict[str, Any]:
    """The facts of an exported graph; raises EdistillError if edistill did not write it."""
    served = Served(path)
    card = served.card
    return {
        "kind": "onnx",
        "task": card.task.key,
        "method": card.method,
        "version": card.version,
        "classes": list(card.task.names),
        **card.task.more_json(),
        "input": {
            "name": served.input,
            **({"names": list(served.inputs)} if served.arrays else {}),
            "kind": card.kind,
            "shape": list(card.shape),
            **({} if card.input == "float32" else {"type": card.input}),
            "preprocessing": card.preprocessing.to_json() if card.preprocessing else None,
            **({} if card.columns is None else {"columns": card.columns.to_json()}),
        },
        "outputs": list(served.outputs),
        **({} if card.precision == "float32" else {"precision": card.precision, "price": card.price}),
        "opset": served.opsets,
        "ir_version": served.ir_version,
        "members": [member.to_json() for member in card.members],
        **({} if card.reference is None else {"reference": card.reference.told()}),
        **({} if card.made_from is None else {"made_from": card.made_from.to_json()}),
        **about_stale(served.path),
        "bytes": path.stat().st_size,
    }
