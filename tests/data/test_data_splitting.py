"""A table is split into rows of its own for every purpose, and its views swap, mix and disturb whole cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tables_helpers import DECLARED, ROWS, expected, written
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.portions import Rule, portions
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.views import open_view
from ensemble_distill.data.views.swap import SHARE
from ensemble_distill.settings import load_settings
from ensemble_distill.workspace import Workspace

# --- splitting --------------------------------------------------------------------------------------------------


def labeled(rows: int, labels: Sequence[Any]) -> Any:
    from ensemble_distill.data.arrays import Arrays

    return Arrays(np.arange(rows, dtype=np.float32)[:, None], np.array(labels), "features")


@pytest.mark.parametrize("rows", [10, 101, 400])
def test_every_class_gives_its_share_and_every_row_goes_once(rows: int) -> None:
    whole = labeled(rows, [0 if row < rows // 2 else 1 + (row % 4 == 0) for row in range(rows)])
    found = portions(whole, Rule({"validation": 0.1, "test": 0.25}, 3))
    assert_array_equal(np.sort(np.concatenate([source.rows for source in found.values()])), np.arange(rows))  # type: ignore[attr-defined]
    for name, share in {"train": 0.65, "validation": 0.1, "test": 0.25}.items():
        assert abs(len(found[name]) - share * rows) <= 1
        for label in range(3):
            of_class = np.flatnonzero(whole.labels == label)
            taken = np.isin(of_class, found[name].rows).sum()  # type: ignore[attr-defined]
            assert abs(taken - share * len(of_class)) <= 2


def test_targets_are_stratified_by_their_bins_and_nothing_by_nothing() -> None:
    y = np.random.default_rng(0).lognormal(size=1000).astype(np.float32)
    found = portions(labeled(1000, y), Rule({"test": 0.2}))
    bins = np.quantile(y, np.linspace(0, 1, 11))
    counts, _ = np.histogram(y[found["test"].rows], bins)  # type: ignore[attr-defined]
    assert_array_equal(np.abs(counts - 20) <= 1, True)
    unlabeled = Subset(labeled(50, range(50)).__class__(np.zeros((50, 1), np.float32), None, "features"), np.arange(50))
    assert len(portions(unlabeled, Rule({"test": 0.2}))["test"]) == 10


def test_the_seed_chooses_the_rows_and_the_rule_is_told() -> None:
    whole = labeled(60, [row % 2 for row in range(60)])
    one, same, other = (portions(whole, Rule({"test": 0.2}, seed))["test"] for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    assert "test of rule 1 with seed 0: test 0.2, stratified by label" in one.digest_scope
    with refused("data.split gives test 0.001 of 60 rows, which is none"):
        portions(whole, Rule({"test": 0.001}))


def test_rows_that_stand_in_train_too_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(60, dtype=np.float32)[:, None]
    x[30:] = x[:30]  # each stands there twice
    whole = labeled(60, [0] * 60).__class__(x, np.zeros(60, np.int64), "features")
    found: Any = portions(whole, Rule({"validation": 0.2, "test": 0.3}))
    learned = set(x[found["train"].rows, 0].tolist())
    for name in ("validation", "test"):
        twins = sum(value in learned for value in x[found[name].rows, 0].tolist())
        assert twins > 0
        (told,) = found[name].remarks
        assert told.startswith(f"{twins} of {len(found[name])} rows are equal to rows of train")
    assert found["train"].remarks == ()
    assert portions(labeled(60, [0] * 60), Rule({"test": 0.3}))["test"].remarks == ()
    monkeypatch.setattr("ensemble_distill.data.portions.MOST", 59)
    assert portions(whole, Rule({"test": 0.3}))["test"].remarks == ()  # to look is too much


def test_the_split_stands_in_the_workspace(tmp_path: Path) -> None:
    written(tmp_path / "people.csv")
    (tmp_path / "edistill.toml").write_text(
        '[data]\nall = "people.csv"\nsplit = { test = 0.25 }\n[data.columns]\ninputs = ["age", "sex"]\n'
        'categories = { sex = ["f", "m"] }\nlabels = ["survived"]\nclasses = ["no", "yes"]\n'
    )
    workspace = Workspace(load_settings(tmp_path / "edistill.toml"))
    assert workspace.split_names == ("train", "test")
    plans = workspace.splits()
    assert {name: len(plan.source) for name, plan in plans.items()} == {"train": 30, "test": 10}
    assert plans["test"].facts().digest_scope.endswith("test of rule 1 with seed 0: test 0.25, stratified by label")


# --- views ------------------------------------------------------------------------------------------------------


def test_a_swap_takes_whole_columns_of_one_other_row(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "a.csv"), columns=DECLARED)
    view = open_view("swap", source.scale, source.groups)  # type: ignore[attr-defined]
    x, taken = expected(), []
    for row in range(ROWS):
        for number in range(20):
            plan = view.plan(0, number, row, ROWS)
            own, partner = x[plan.rows[0]], x[plan.rows[1]]
            found = plan.x([source.item(at) for at in plan.rows], None)
            assert_array_equal(found[1:3].sum(), 1)
            assert_array_equal(found[3:6].sum(), 1)
            for columns in ([0], [1, 2], [3, 4, 5], [6]):
                is_own, is_other = (np.array_equal(found[columns], one[columns]) for one in (own, partner))
                assert is_own or is_other
                if is_own != is_other:
                    taken.append(is_other)
            labels = plan.y([source.item(at) for at in plan.rows])
            assert labels is not None
            assert labels[2] == 1 - SHARE
    assert abs(np.mean(taken) - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / len(taken))


def test_places_of_categories_are_mixed_whole(tmp_path: Path) -> None:
    """Of the row whose label weighs more, so that label and value agree."""
    written(tmp_path / "a.csv")
    config = 'data.columns = {{ inputs = ["age", "sex", "deck"], encoding = "{}", labels = ["fare"], categories = {{ '
    config += 'sex = ["f", "m"], deck = ["A", "B", "C, D"] }} }}\ndata.train = "a.csv"\nviews.transform = "mixup"\n'
    config += 'task = "regression"\nteachers.output = "mean"\nteachers.variance = 1\nlimit = 30\n'
    (tmp_path / "edistill.toml").write_text(config.format("index"))
    plan = Workspace(load_settings(tmp_path / "edistill.toml")).split("train")
    fractions = 0
    for row in range(30):
        rendition: Any = plan.view.plan(0, 0, row, 30)
        items = [plan.source.item(at) for at in rendition.rows]
        own, partner = (item.x for item in items)
        found, (*_, weight) = rendition.x(items, None), rendition.y(items)
        assert_allclose(found[0], weight * own[0] + (1 - weight) * partner[0], rtol=1e-5)
        assert_array_equal(found[1:], (own if weight >= 0.5 else partner)[1:])
        fractions += int((own[1:] != partner[1:]).any())
    assert fractions > 10
    (tmp_path / "edistill.toml").write_text(config.format("one-hot"))
    hot = Workspace(load_settings(tmp_path / "edistill.toml")).split("train")
    inputs = np.stack([ViewedRows(hot.source, hot.view, 0).inputs(row, [0], [None])[0] for row in range(30)])
    assert ((inputs[:, 1:] > 0) & (inputs[:, 1:] < 1)).any(), "of the numbers of a category each is mixed"


def test_noise_is_of_numbers_alone(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "a.csv"), columns=DECLARED)
    for one in (source, Subset(source, np.arange(30))):
        rows = ViewedRows(one, open_view("swap+noise", one.scale, one.groups), 0)  # type: ignore[attr-defined]
        seen = np.stack([rows.inputs(row, [0], [None])[0] for row in range(len(one))])
        assert set(np.unique(seen[:, 1:6])) == {0.0, 1.0}
        assert np.abs(seen[:, 0] - expected()[: len(one), 0]).min() > 0
        assert one.scale is not None
        assert_array_equal(one.scale[1:6], 0)
        assert (one.scale[[0, 6]] > 0).all()
