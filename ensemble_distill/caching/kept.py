"""What records keep of a few answers, whole or for drawn ids, to compare later answers with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.caching import drawing
from ensemble_distill.caching.drawing import by_position, unpacked

FAINT = 1e-12  # probabilities below it count as 0
Answers = NDArray[np.float32]


class Kept:
    """What a record keeps of some rows' answers.

    Args:
        read: the records of these rows, for any key.
    """

    def __init__(self, manifest: Manifest, key: RecordKey, read: Callable[[Any], NDArray[np.void]]) -> None:
        self._form, self._shape = manifest.format_of(key), manifest.settled.shape
        draws = SampleKey(key.split, key.view)
        self._drawn = manifest.format_of(draws).decode(read(draws)) if draws in manifest.drawn else None
        self.said = self._whole(self._form.decode(read(key)))

    def of(self, outputs: Answers) -> Answers:
        """Outputs (B, *shape) as the record would keep them."""
        if self._drawn is None:
            return self._form.decode(self._form.encode(outputs))
        ids, q, _ = unpacked(self._drawn)
        each = zip(drawing.probabilities(by_position(outputs)), ids, q, strict=True)
        ratios = np.stack([drawing.ratios(p, at, of) for p, at, of in each])
        return self._whole(self._form.decode(self._form.encode(ratios.reshape(len(outputs), *self._form.shape))))

    def _whole(self, said: Answers) -> Answers:
        """Logits (B, *shape); for drawn ids ln p at the ids, and ln FAINT elsewhere."""
        if self._drawn is None:
            return said
        ids, q, _ = unpacked(self._drawn)
        logits = np.full((*ids.shape[:-1], self._shape[-1]), np.log(FAINT), np.float32)
        np.put_along_axis(logits, ids, np.log(np.maximum(by_position(said)[..., :-1] * q, FAINT)), axis=-1)
        return logits.reshape(len(said), *self._shape)

    def furthest(self, outputs: Answers) -> float | None:
        """The largest difference in a drawn id's probability between these outputs and the record.

        None for whole records.
        """
        if self._drawn is None:
            return None
        return float(np.abs(np.exp(self.of(outputs)) - np.exp(self.said)).max())
