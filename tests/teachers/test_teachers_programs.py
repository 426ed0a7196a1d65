"""Members that are programs of torch, or estimators of scikit-learn: what loads without trust, and what they say."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from kinds_helpers import Linear, exported, fitted, inputs, scripted
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from teachers_helpers import context
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.subset import Subset
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.teachers import estimator, open_teachers, program
from ensemble_distill.teachers.teacher import Context

TRUSTED = Context(TeacherSettings.model_validate({}), trust=True)


def said(path: Path, kind: Any = estimator, using: Context = TRUSTED, task: Any = Classification, rows: int = 6) -> Any:
    asked = kind.load(path, using).open(task)
    return asked.answers("test", range(rows), inputs(rows=rows))


# --- programs ---------------------------------------------------------------------------------------------------


def test_programs_say_what_their_modules_said(tmp_path: Path) -> None:
    with torch.no_grad():
        wanted = Linear(1)(inputs(rows=6))
    for path in (
        exported(tmp_path / "a.pt2", 1),
        exported(tmp_path / "b.pt2", 1, False),
        scripted(tmp_path / "c.pt", 1),
    ):
        assert_allclose(said(path, program), wanted, atol=1e-5)
        module = program.load(path, TRUSTED).build()
        assert not any(p.requires_grad for p in module.parameters())


def test_programs_need_trust_and_say_why(tmp_path: Path) -> None:
    exported(tmp_path / "a.pt2", 0)
    with refused("a.pt2 is a program", "unpickles", "--trust-checkpoints", "ONNX"):
        open_teachers(tmp_path, context())
    (tmp_path / "a.pt2").unlink()
    scripted(tmp_path / "b.pt", 0)
    with refused("b.pt is a program", "TorchScript", "write files", "--trust-checkpoints"):
        open_teachers(tmp_path, context())
    assert [teacher.member.name for teacher in open_teachers(tmp_path, TRUSTED)] == ["b"]


# --- estimators -------------------------------------------------------------------------------------------------

skops = pytest.importorskip("skops.io")


def test_an_estimator_says_its_probabilities(tmp_path: Path) -> None:
    skops.dump(fitted(0), tmp_path / "m.skops")
    joblib.dump(fitted(0), tmp_path / "n.joblib")
    wanted = np.log(fitted(0).predict_proba(inputs(rows=6).numpy()))
    assert_allclose(said(tmp_path / "m.skops", using=context()), wanted, atol=1e-5)
    assert_allclose(said(tmp_path / "n.joblib"), wanted, atol=1e-5)
    with refused("n.joblib is a pickle", "--trust-checkpoints", "skops.io.dump"):
        estimator.load(tmp_path / "n.joblib", context())


def test_forests_pipelines_and_names(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).normal(size=(60, 5))
    y = np.array(["cat", "ape", "dog"])[np.abs(x[:, :3]).argmax(1)]
    for one in (
        RandomForestClassifier(5, random_state=0),
        HistGradientBoostingClassifier(max_iter=3),
        make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=20, random_state=0)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            one.fit(x, y)
        skops.dump(one, tmp_path / "m.skops")
        using = context(("dog", "ape", "cat"))
        trusted = Context(using.settings, using.names, trust=True)
        wanted = np.maximum(one.predict_proba(inputs(rows=6).numpy().astype(np.float64))[:, [2, 0, 1]], 1e-7)
        assert_allclose(np.exp(said(tmp_path / "m.skops", using=trusted)), wanted, atol=1e-5)
    with refused("m.skops's classes_ names 3 classes", "only in the data: cow"):
        estimator.load(tmp_path / "m.skops", Context(using.settings, ("ape", "cat", "cow"), trust=True))


def test_regressors_say_a_mean_and_several_labels_each(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.tree import DecisionTreeClassifier

    x = np.random.default_rng(0).normal(size=(60, 5))
    skops.dump(LinearRegression().fit(x, x.sum(1)), tmp_path / "m.skops")
    settings = context(output="mean", variance=0.25).settings
    found = said(tmp_path / "m.skops", using=Context(settings, task="regression"), task=Regression)
    assert_allclose(found[:, 0], inputs(rows=6).numpy().sum(1), atol=1e-5)
    assert_allclose(found[:, 1], np.log(0.25))
    with refused("m.skops is a LinearRegression, which predicts a mean", "'mean-logvar'"):
        estimator.load(tmp_path / "m.skops", Context(context(output="mean-logvar").settings, task="regression"))
    with refused("m.skops is a LinearRegression without predict_proba", "CalibratedClassifierCV"):
        estimator.load(tmp_path / "m.skops", context())
    tree = DecisionTreeClassifier(max_depth=2).fit(x, x[:, :2] > 0)
    skops.dump(tree, tmp_path / "t.skops")
    using = Context(context(output="probabilities").settings, task="multi-label")
    with refused("t.skops names types", "sklearn.tree._tree.Tree"):  # whose state is raw memory
        estimator.load(tmp_path / "t.skops", using)
    found = said(tmp_path / "t.skops", using=replace(using, trust=True), task=MultiLabel)
    wanted = np.stack([p[:, 1] for p in tree.predict_proba(inputs(rows=6).numpy())], axis=1)
    assert_allclose(1 / (1 + np.exp(-found)), wanted, atol=1e-5)


def test_a_label_that_no_row_had_in_fitting_is_improbable(tmp_path: Path) -> None:
    """Of a constant label scikit-learn says one column, the probability of its only value."""
    from sklearn.ensemble import RandomForestClassifier

    x = np.random.default_rng(0).normal(size=(60, 5))
    y = np.stack([x[:, 0] > 0, np.zeros(60), np.ones(60)], axis=1).astype(np.int64)
    forest = RandomForestClassifier(5, random_state=0).fit(x, y)
    joblib.dump(forest, tmp_path / "m.joblib")
    using = Context(context(output="probabilities").settings, trust=True, task="multi-label")
    found = 1 / (1 + np.exp(-said(tmp_path / "m.joblib", using=using, task=MultiLabel).astype(np.float64)))
    assert_allclose(found[:, 1:], [[0, 1]] * 6, atol=1e-6)
    joblib.dump(RandomForestClassifier(5, random_state=0).fit(x, y + 1), tmp_path / "n.joblib")
    with refused("n says 2 numbers of label 0, whose values were 1, 2"):
        said(tmp_path / "n.joblib", using=using, task=MultiLabel)


def test_columns_in_another_order_than_it_was_fitted_on_are_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    x = np.random.default_rng(0).normal(size=(60, 2))
    fitted_on = pandas.DataFrame(x, columns=["age", "fare"])
    joblib.dump(LogisticRegression().fit(fitted_on, x[:, 0] > 0), tmp_path / "m.joblib")
    asked = estimator.load(tmp_path / "m.joblib", TRUSTED).open(Classification)
    (tmp_path / "t.csv").write_text("age,fare,kind,y\n1,2,a,0\n3,4,b,1\n")
    for names, fine in (("age", "fare"), True), (("fare", "age"), False), (("fare", "kind"), False):
        columns = Columns(names, {"kind": ("a", "b")} if "kind" in names else {}, labels=("y",))
        table = open_source(tmp_path / "t.csv", columns=columns)
        for source in (table, Subset(table, np.array([1]))):
            if fine:
                asked.meets("train", source)
                continue
            with refused("m was fitted on the columns age, fare", f"train has {names[0]}", "data.columns.inputs"):
                asked.meets("train", source)


def test_pictures_in_color_are_given_flat_and_the_member_says_so(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 12))
    joblib.dump(LogisticRegression().fit(x, x[:, 0] > 0), tmp_path / "m.joblib")
    asked = estimator.load(tmp_path / "m.joblib", TRUSTED).open(Classification)
    asked.answers("test", range(6), inputs((1, 3, 4), 6))
    assert asked.remark is None
    found = asked.answers("test", range(6), inputs((3, 2, 2), 6))
    wanted = joblib.load(tmp_path / "m.joblib").predict_log_proba(inputs((3, 2, 2), 6).numpy().reshape(6, 12))
    assert_allclose(found, wanted, atol=1e-5)
    assert asked.remark is not None
    assert "m takes rows of one dimension, and is given those of shape (3, 2, 2) channel by" in asked.remark


class Mine:
    """A type of nobody's."""

    def predict_proba(self, x: Any) -> Any:
        return np.full((len(x), 3), 1 / 3)


def test_types_that_skops_does_not_know_are_refused_by_name(tmp_path: Path) -> None:
    skops.dump(Mine(), tmp_path / "m.skops")
    with refused("m.skops names types", "Mine", "--trust-checkpoints"):
        estimator.load(tmp_path / "m.skops", context())
    assert_allclose(np.exp(said(tmp_path / "m.skops")), 1 / 3, atol=1e-6)
