"""An `.npy` of token ids in the order of a stream, with a vocabulary that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ensemble_distill.data.entry import Entry
from ensemble_distill.data.kinds import as_ids
from ensemble_distill.data.source import Source
from ensemble_distill.data.stored import read_npy
from ensemble_distill.data.text import refuse_no_tokens, refuse_short
from ensemble_distill.data.token_stream import TokenStream
from ensemble_distill.data.vocabulary import Reading, filler
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks import Task


def claims(source: str) -> bool:
    return source.endswith(".npy") and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The ids in their order.

    Raises:
        EdistillError: the task is not about tokens, or the file is not an array (T,) of ids of the vocabulary, or is
            shorter than a window.
    """
    entry.refuse_names()
    refuse_no_tokens(entry.source, task)
    path, reading = Path(entry.source), entry.reading or Reading()
    ids = read_npy(path, "a stream of tokens")
    if ids.ndim != 1:
        raise EdistillError(
            f"{path} has shape {ids.shape}, and a stream is (T,). Rows that stand alone belong in an .npz, as x and y."
        )
    refuse_short(path, len(ids), reading)
    vocabulary = reading.tokens()
    ids = as_ids(ids[None], str(path), 0, len(vocabulary))[0]
    return TokenStream(np.asarray(ids), reading.window, reading.context, vocabulary, None, filler(vocabulary))
