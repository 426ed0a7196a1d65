"""What the headers of tar shards, and the label files in them, say about each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_distill.data.shard_rows import EXTENSIONS, Sample, label_file, samples_in
from ensemble_distill.data.tar_index import Placed
from ensemble_distill.errors import EdistillError

Text = str | int | float | bool
LARGEST = 2**30  # bytes of a picture's file
BLOCK = 1 << 14  # rows in a block of labels


@dataclass
class Headers:
    """The rows of tar shards.

    Attributes:
        at: the index of each row's shard.
        placed: where each row's picture lies in its shard.
        texts: the labels of all rows, by column; empty lists if rows have no labels.
        labeled: whether rows have labels, as the first one says; None before any row was read.
        others: extensions of files that are neither pictures nor declared labels.
    """

    at: list[int] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    texts: dict[str, list[Text]] = field(default_factory=dict)
    labeled: bool | None = None
    others: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, shards: Sequence[Path], column: str | None, labels: Sequence[str]) -> Headers:
        """Reads all shards.

        Args:
            column: the extension of pictures; None for any that pictures have.
            labels: the columns of labels.

        Raises:
            EdistillError: as `samples_in` does; or a sample has not exactly one picture, or only some have labels.
        """
        found = cls(texts={name: [] for name in labels})
        numbers = {shard: number for number, shard in enumerate(shards)}
        for sample in samples_in(shards):
            picture = sample.picture(column)
            if picture.size > LARGEST:
                raise EdistillError(f"{sample.shard}: {picture.name} has {picture.size:,} bytes, and no picture has.")
            found.at.append(numbers[sample.shard])
            found.placed.append(picture)
            found._label(sample)
        return found

    def _label(self, sample: Sample) -> None:
        """Reads a sample's labels. Raises EdistillError unless it has some exactly if the first sample does."""
        files = {label_file(name) for name in self.texts}
        has = not files.isdisjoint(sample.files)
        self.labeled = has if self.labeled is None else self.labeled
        self.others |= sample.files.keys() - {*EXTENSIONS, *files}
        if not self.labeled:
            if has:
                raise EdistillError(
                    f"{sample.shard}: sample {sample.key} has a label, and the first one has none. Give every sample "
                    "one, or none."
                )
            return
        for name, texts in self.texts.items():
            texts.append(sample.text(name))

    def blocks(self) -> Iterator[dict[str, list[Text]]]:
        """The labels in blocks of rows, by column."""
        for start in range(0, len(self.placed), BLOCK):
            yield {name: texts[start : start + BLOCK] for name, texts in self.texts.items()}
