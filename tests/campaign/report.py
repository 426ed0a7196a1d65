"""What a campaign counted, and what was wrong."""

from __future__ import annotations

from collections import Counter


class Report:
    """Counts of one part of the campaign."""

    def __init__(self, name: str) -> None:
        self.name, self.trials = name, 0
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def trial(self) -> None:
        self.trials += 1

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def wrong(self, told: str) -> None:
        self.faults.append(told)
        print(f"  WRONG {told}", flush=True)

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return f"{self.name}: {self.trials} trials ({counted}); {len(self.faults)} wrong"
