"""Trust in any run, for tests that make theirs themselves."""

from __future__ import annotations

from ensemble_distill.runs.trust import Trust

EVERYTHING = Trust(everything=True)
