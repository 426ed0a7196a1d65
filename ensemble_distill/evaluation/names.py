"""The names of an evaluation's models, fidelity figures and controls, with texts that explain them."""

from __future__ import annotations

ENSEMBLE, MEMBER, STUDENT = "ensemble", "member", "student"
SUBENSEMBLES = {"best-2": 2, "best-3": 3}  # by name, the number of members
TOTAL = "total_uncertainty"  # the name of a control, too
SHARED = (ENSEMBLE, MEMBER, *SUBENSEMBLES)  # the models that runs of one ensemble share

# The value of each fidelity figure for a student that equals the ensemble; None for figures that are controls.
FIDELITY = {
    "diversity_explained": 1,
    "deviation_correlation": 1,
    "model_uncertainty_l1": 0,
    "model_uncertainty_ratio": 1,
    "model_uncertainty_spearman": 1,
    "model_uncertainty_spearman_control": None,
    "member_kl": 0,
    "collapsed_kl": None,
    "mean_kl": 0,
    "agreement": 1,
    "gap_closed": 1,
}

# The controls beside the fidelity figures, with the text that explains each below the table.
CONTROLS = {
    "collapsed": "every head says the student's mean.",
    "offsets": "that mean plus random offsets, the same on every row, scaled to the ensemble's mean model uncertainty.",
    TOTAL: "the student's total uncertainty, scaled to a ratio of 1, in place of its model uncertainty.",
    "halves": "half of the members compared with the other half: what an independent ensemble of that size gets.",
}

# the note on the split that teachers.folds makes
HONEST = (
    "held-out is the training rows, each answered by the one member that was not trained on it, so the members' "
    "figures are unbiased. The student was trained on these rows, so its own figures are optimistic."
)
