"""The model card of an export folder, `README.md`: what the files are worth, how to run them, what their outputs mean,
and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_distill import __version__
from ensemble_distill.facts import ENSEMBLE, Calibration, Member
from ensemble_distill.runs.folder import bytes_of
from ensemble_distill.runtime.names import plain_markdown
from ensemble_distill.runtime.numbers import number
from ensemble_distill.runtime.words import megabytes
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks import Task

README = "README.md"
MARK = "<!-- edistill export writes this file anew. To keep what you change, delete this line. -->"  # marks a card
MOST = 50  # members to list
SINGLE = (
    "\n\nIt has a single head, which cannot tell model uncertainty from data uncertainty: its data uncertainty is the "
    "total."
)
WORTH = {
    "prediction": "worth in prediction, in members",
    "uncertainty": "worth in uncertainty, in members",
}
Document = Mapping[str, Any]  # of `evaluate --json`


@dataclass(frozen=True)
class About:
    """The subject of a model card.

    Attributes:
        name: of the run or the ensemble.
        task, method, members: as in `Card`.
        trained_on: the digest of each split it was trained on.
        weights: the sha256 of the run's weights; None for an ensemble.
        calibration: the correction of its predictions, if any.
        evaluation: the run's current evaluation; None if there is none.
        settings: the name of the settings file beside the card; None if there is none.
    """

    name: str
    task: Task
    method: str
    members: Sequence[Member]
    trained_on: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    calibration: Calibration | None = None
    evaluation: Document | None = None
    settings: str | None = None


def model_card(about: About, files: Sequence[Path]) -> str:
    """The text of a model card.

    Args:
        files: the exported files in the folder, all of them intact.
    """
    graphs = [Served(path) for path in files if path.suffix == ".onnx"]
    parts = [
        f"{MARK}\n\n# {plain_markdown(about.name)}\n\n{_what(about)}",
        *_figures(about),
        *_running(graphs[:1]),
        *_saying(about.task, graphs[:1]),
        *_precision(graphs),
        _files(files),
        _origin(about),
    ]
    return "\n\n".join(parts) + "\n"


def _what(about: About) -> str:
    of = f"{len(about.members)} member{'' if len(about.members) == 1 else 's'}"
    what = f"An ensemble of {of}" if about.method == ENSEMBLE else f"A student of {of}, distilled by {about.method}"
    return f"{what}: {about.task.key}, {plain_markdown(about.task.told)}. Exported by edistill {__version__}."


# --- figures ----------------------------------------------------------------------------------------------------


def _figures(about: About) -> Iterator[str]:
    document = about.evaluation
    if about.method == ENSEMBLE:
        return
    if document is None:
        yield "## Figures\n\nNone: the run was not evaluated before it was exported (`edistill evaluate`)."
        return
    names = [*(name for name in document["models"] if name != "student"), "student"]
    models = {name: of for name in names if (of := document["models"][name]) is not None}
    rows = [
        [figure.replace("_", " "), *(number(of.get(figure)) for of in models.values())]
        for figure in about.task.figures_shown
    ]
    if (worth := document.get("worth")) is not None:
        rows += [[told, *(_worth(worth.get(name), key) for name in models)] for key, told in WORTH.items()]
        rows.append(["costs in latency, in members", *(_cost(worth.get(name)) for name in models)])
    on = f"On {document['rows']:,} {about.task.answers_called} of {document['split']}"
    yield (
        f"## Figures\n\n{on}, by `edistill evaluate`; uncertainties are {about.task.uncertainty_unit}.\n\n"
        + _table(["", *models], rows)
    )


def _worth(worth: Mapping[str, Any] | None, key: str) -> str:
    value = None if worth is None else worth[key]
    if worth is None or value is None:
        return "–"
    return f"more than {value:.0f}" if key in worth["beyond"] else f"{value:.1f}"


def _cost(worth: Mapping[str, Any] | None) -> str:
    latency = None if worth is None or worth["cost"] is None else worth["cost"]["latency"]
    return _members(latency)


def _members(count: float | None) -> str:
    return "–" if count is None else f"{count:.1f}"


# --- running ----------------------------------------------------------------------------------------------------


def _running(graphs: Sequence[Served]) -> Iterator[str]:
    for graph in graphs:
        first, last = graph.outputs[0], [name for name in graph.outputs if name.endswith("_uncertainty")][-1]
        made = "ones" if graph.card.encoding else "zeros"
        given = ", ".join(f'"{name}": np.{made}({x.shape}, np.{x.dtype})' for name, x in graph.example().items())
        yield (
            "## Run it\n\n"
            "```python\n"
            "import numpy as np\n"
            "import onnxruntime\n"
            f'session = onnxruntime.InferenceSession("{graph.path.name}")\n'
            f'found = session.run(["{first}", "{last}"], {{{given}}})\n'
            "print(*found)\n"
            "```\n\n"
            f"Replace the {made} with your rows, any number of them. {_rows(graph)} "
            f"`edistill predict INPUTS --model {graph.path.name}` does all of this."
        )


def _rows(graph: Served) -> str:
    card = graph.card
    if card.preprocessing is not None:
        what = "a row's arrays" if card.kind == "several" else card.kind
        return f"The file's metadata, `edistill.preprocessing`, says how to make them from {what}."
    if card.features is not None:
        return f"The numbers of a row are {', '.join(map(plain_markdown, card.features[:MOST]))}."
    return f"Rows are {card.kind} of shape {card.shape}."


def _saying(task: Task, graphs: Sequence[Served]) -> Iterator[str]:
    for graph in graphs:
        meaning = task.uncertainties_told
        rows = [[f"`{name}`", meaning[name]] for name in graph.outputs if name in meaning]
        text = f"## What its uncertainties mean\n\nOne number per row ({task.uncertainty_unit}).\n\n"
        single = "" if "model_uncertainty" in graph.outputs else SINGLE
        yield text + _table(["output", "what it is"], rows, plain=False) + single


def _precision(graphs: Sequence[Served]) -> Iterator[str]:
    """What files of lower precision lose against the float32 file."""
    priced = [(graph.path.name, graph.card.price) for graph in graphs if graph.card.price is not None]
    if not priced:
        return
    figures = list(priced[0][1]["figures"])
    rows = [[figure.replace("_", " "), *(number(of["figures"].get(figure)) for _, of in priced)] for figure in figures]
    rows += [[told, *(_members(of["worth"].get(key)) for _, of in priced)] for key, told in WORTH.items()]
    rows.append(["KL from the float32 file", *(number(of["kl"]) for _, of in priced)])
    outputs = priced[0][1]["apart"]
    rows += [
        [f"largest difference of {name}", *(number(of["apart"].get(name)) for _, of in priced)] for name in outputs
    ]
    told = f"On {priced[0][1]['rows']:,} rows of validation. The last layers, and outputs, are float32."
    yield f"## Lower precision\n\n{told}\n\n" + _table(["", *(name for name, _ in priced)], rows)


# --- origin -----------------------------------------------------------------------------------------------------


def _files(files: Sequence[Path]) -> str:
    sizes = [bytes_of(path) for path in files]
    rows = [[f"`{path.name}`", megabytes(size)] for path, size in zip(files, sizes, strict=True)]
    return "## Files\n\n" + _table(["file", "size"], rows, plain=False)


def _origin(about: About) -> str:
    lines = [f"- {name} data: digest `{digest}`" for name, digest in about.trained_on.items()]
    if about.weights is not None:
        lines.append(f"- weights: sha256 `{about.weights}`")
    if about.calibration is not None:
        lines.append(f"- calibrated: {about.calibration.told}")
    if about.settings is not None:
        lines.append(f"- settings: `{about.settings}` beside this file, with paths relative to this folder")
    shown = [[member.name, f"`{member.sha256}`"] for member in about.members[:MOST]]
    more = len(about.members) - len(shown)
    table = _table(["member", "sha256"], [[plain_markdown(name), digest] for name, digest in shown], plain=False)
    rest = f"\n\nand {more} more, which the files' metadata name." if more else ""
    return "## Made of\n\n" + "".join(f"{line}\n" for line in lines) + "\n" + table + rest


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, plain: bool = True) -> str:
    """A Markdown table.

    Args:
        plain: escape the cells; otherwise they are Markdown.
    """
    cells = [[plain_markdown(cell) if plain else cell for cell in row] for row in rows]
    lines = [columns, ["---", *["---:" if plain else "---"] * (len(columns) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
