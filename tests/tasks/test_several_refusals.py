"""Where a row has several answers, numbers or labels: members, data, units and methods that do not go together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from several_roads import MEMBERS, ROADS, ROWS, Road, make, rows, said, settings
from tiny import refused

from ensemble_distill import (
    cache_logits,
    evaluate,
    load_settings,
    train,
)
from ensemble_distill.cache.reader import Cache

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module", params=list(ROADS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Road]:
    road = ROADS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param) / "work", road)
    cache_logits(load_settings(folder))
    for method in ("kd", "hydra"):
        train(settings(folder, method))
    return folder, road


@pytest.mark.parametrize("key", list(ROADS))
def test_answers_of_another_task_are_refused(key: str, tmp_path: Path) -> None:
    road = ROADS[key]
    folder = make(tmp_path / "work", road)
    kwargs = "teachers.model-kwargs"
    with refused("data.train", "shape"):  # several answers a row are no class
        cache_logits(load_settings(folder, {"task": "classification", "teachers.output": "logits"}))
    with refused("numbers a row" if key == "numbers" else "labels", "the members were trained on"):
        weights = {"linear.weight": torch.ones(6, 3), "linear.bias": torch.arange(6.0)}
        for member in range(MEMBERS):
            save_file({k: v + member for k, v in weights.items()}, folder / "teachers" / f"member-{member}.safetensors")
        cache_logits(load_settings(folder, {kwargs: {"outputs": 6}}))


def test_softmax_members_are_no_multi_label_members_and_sigmoids_no_classifiers(tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["labels"])
    kwargs = "teachers.model-kwargs"
    for output in ("probabilities", "logits"):
        with refused("member-0", "sum to 1", "softmax"):
            cache_logits(load_settings(folder, {kwargs: {"outputs": 3, "end": "softmax"}, "teachers.output": output}))
    with refused("member-0", "sigmoids", 'teachers.output = "probabilities"'):
        cache_logits(load_settings(folder, {kwargs: {"outputs": 3, "end": "sigmoid"}}))
    report = cache_logits(
        load_settings(folder, {kwargs: {"outputs": 3, "end": "sigmoid"}, "teachers.output": "probabilities"})
    )
    assert report.predicts == "3 labels"
    z = Cache(folder / "cache").open("test").read(range(24))
    np.testing.assert_allclose(z, said(folder, ROADS["labels"], "test"), rtol=1e-3, atol=1e-3)


def test_splits_with_other_columns_are_refused(made: tuple[Path, Road], tmp_path: Path) -> None:
    _, road = made
    folder = make(tmp_path / "work", road)
    x, y = rows(folder, "test")
    np.savez(folder / "data" / "test.npz", x=x, y=y[:, ::-1], classes=np.array(road.names[::-1]))
    with refused("data.test", "same order"):
        cache_logits(load_settings(folder))
    np.savez(folder / "data" / "test.npz", x=x, y=np.concatenate([y, y], 1))
    with refused("data.test", str(2 * y.shape[1])):
        cache_logits(load_settings(folder))


def test_an_evaluation_on_other_columns_is_refused(made: tuple[Path, Road], tmp_path: Path) -> None:
    """Names of yes and no are no index: their columns are not to be renamed by the numbers in them."""
    source, road = made
    folder = shutil.copytree(source, tmp_path / "work")
    x, y = rows(folder, "test")
    other = folder / "data" / "other.npz"
    np.savez(other, x=x, y=y[:, ::-1], classes=np.array(road.names[::-1]))
    with refused("data.test", "same order"):
        evaluate(load_settings(folder, {"data.test": str(other)}), "hydra-s0")


def test_methods_of_classes_are_refused(made: tuple[Path, Road]) -> None:
    folder, road = made
    for method, options in (("endd", {}), ("ban", {"objective": "dkpp"})):
        with refused(road.task):
            train(
                load_settings(
                    folder,
                    {"train.method": method, "output.name": "x", **{f"method.{k}": v for k, v in options.items()}},
                )
            )


def test_data_that_names_a_target_twice_without_its_unit_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["numbers"])
    for split in ROWS:
        x, y = rows(folder, split)
        np.savez(folder / "data" / f"{split}.npz", x=x, y=y, classes=np.array(["heat [kW]", "heat [J]"]))
    with refused("heat [kW], heat [J]", "Give every target its own"):
        cache_logits(load_settings(folder))
    assert not (folder / "cache" / "manifest.json").exists()


@pytest.mark.parametrize("names", [("flow [l/h]", "heat [kW]"), ("heat [MW]", "flow [l/h]")])
def test_a_run_of_targets_in_another_order_or_unit_is_no_member(
    made: tuple[Path, Road], tmp_path: Path, names: tuple[str, str]
) -> None:
    folder, road = made
    if road.task != "regression":
        pytest.skip("labels are ordered by their names")
    settled = {"teachers.path": str(folder / "runs" / "kd-s0"), "output.cache": str(tmp_path / "cache")}
    cache_logits(load_settings(folder, settled), trust=True)
    x, y = rows(folder, "train")
    np.savez(tmp_path / "train.npz", x=x, y=y, classes=np.array(names))
    split = {f"data.{name}": str(tmp_path / "train.npz") for name in ROWS}
    with refused(*names, "kd-s0", "same order and units"):
        cache_logits(load_settings(folder, {**settled, **split}), overwrite=True, trust=True)


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ([0.0, 0.0], [1.0, 1.0, 1.0], ("2 targets", "2 means", "3 deviations")),
        (0.0, [1.0, 1.0, 1.0], ("2 targets", "3 deviations")),
        ([3.0, 0.0], [1.0, 0.0], ("teachers.standardized.std", "greater than 0")),
        ([3.0], [1.0], ("2 targets", "1 means", "1 deviations", "for each target")),
    ],
)
def test_units_are_numbers_or_one_for_each_target(mean: Any, std: Any, told: tuple[str, ...], tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["numbers"])
    with refused(*told):
        cache_logits(load_settings(folder, {"teachers.standardized": {"mean": mean, "std": std}}))
    cache_logits(load_settings(folder, {"teachers.standardized": {"mean": [0.0, 0.0], "std": 1.0}}))
    assert Cache(folder / "cache").manifest.members[0].units == ((0.0, 0.0), (1.0, 1.0))
