"""The transformers library, an optional extra: imported when needed, and kept quiet."""

from __future__ import annotations

from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.silence import of_its_own

INSTALL = "pip install 'edistill[transformers]'"


def library(who: str) -> Any:
    """The transformers library.

    Args:
        who: what needs it, for the message.

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
