"""The transformers library, an optional extra: brought when it is asked for, and kept from the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ensemble_distill.errors import EdistillError

INSTALL = "pip install 'edistill[transformers]'"


def library(who: str) -> Any:
    """The library.

    Args:
        who: needs it, for the message.

    Raises:
        EdistillError: it is not installed.
    """
    try:
        with of_its_own():
            import transformers
    except ImportError:
        raise EdistillError(
            f"{who} needs the package transformers, which is not installed. Install it: {INSTALL}."
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


@contextmanager
def of_its_own() -> Iterator[None]:
    """What it logs, warns of and draws as bars stays its own: what matters is told in an error."""
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
