"""timm members that see gray pixels, and those whose names point to the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from teachers_helpers import assert_equal_outputs, context, small_model
from timm.data import create_transform, resolve_data_config
from tiny import refused

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.data import open_source
from ensemble_distill.data.rendering import as_unit, render
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.records import parsed
from ensemble_distill.settings import load_settings
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits


def opened(path: Path, **settings: Any) -> tuple[Teacher, list[str]]:
    told, notes = Silent(), []
    told.note = notes.append  # type: ignore[method-assign]
    asked = context(**settings)
    (teacher,) = open_teachers(path, type(asked)(asked.settings, progress=told))
    return teacher, notes


def write_run(folder: Path, seed: int = 0, **args: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"model": "test_resnet", "num_classes": 3, **args}
    (folder / "args.yaml").write_text(yaml.safe_dump(settings))
    kwargs = {"in_chans": args["in_chans"]} if args.get("in_chans") else {}
    save_file(small_model(seed, **kwargs).state_dict(), folder / "last.safetensors")
    return folder


# --- gray -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of pictures: in color, gray, with a palette, with transparency."""
    rng = np.random.default_rng(0)
    for label in "abc":
        (tmp_path / "images" / label).mkdir(parents=True)
        for mode in ("RGB", "L", "P", "RGBA"):
            image = Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).convert(mode)
            image.save(tmp_path / "images" / label / f"{mode}.png")
    return tmp_path / "images"


def test_pictures_become_gray_as_timm_opens_them(tmp_path: Path, pictures: Path) -> None:
    run = write_run(tmp_path / "run", in_chans=1, input_size=[1, 32, 32])
    teacher, _ = opened(run)
    to = teacher.member.preprocessing
    assert to is not None
    assert to.channels == 1
    config = resolve_data_config(yaml.safe_load((run / "args.yaml").read_text()), model=small_model(in_chans=1))
    averaged = {key: (sum(config[key]) / 3,) for key in ("mean", "std")}  # as timm's loader does it
    transform = create_transform(**(config | averaged))
    ours, view, module = open_source(str(pictures)), open_view("none", None), teacher.build()
    for row in range(len(ours)):
        x = view.plan(0, 0, row, len(ours)).x([ours.item(row)], to)
        with Image.open(pictures / ours.name(row)) as image:
            expected = transform(image.convert("L")).numpy()
        assert x.shape == expected.shape == (1, 32, 32)
        np.testing.assert_allclose(x, expected, atol=1e-6)
        assert module(torch.from_numpy(x)[None]).shape == (1, 3)


def test_a_run_of_gray_pixels_is_cached_on_an_image_folder(tmp_path: Path, pictures: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "teachers" / f"run-{seed}", seed, in_chans=1, input_size=[1, 32, 32])
    (tmp_path / "edistill.toml").write_text('[data]\ntest = "images"\n[train]\ndevice = "cpu"\nworkers = 0\n')
    assert cache_logits(load_settings(tmp_path / "edistill.toml")).added == 2


def test_distorted_pixels_become_gray_by_the_same_weights() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    to = Preprocessing((8, 8), (0.5,), (0.5,), channels=1)
    np.testing.assert_allclose(render(as_unit(pixels), to), render(pixels, to), atol=0.51 / 255)


def test_gray_and_color_members_see_renderings_of_their_own(tmp_path: Path, pictures: Path) -> None:
    alike = {"mean": [0.5], "std": [0.25]}
    write_run(tmp_path / "teachers" / "gray", 0, in_chans=1, input_size=[1, 32, 32], **alike)
    write_run(tmp_path / "teachers" / "color", 1, input_size=[3, 32, 32], **alike)
    (tmp_path / "edistill.toml").write_text('[data]\ntest = "images"\n[train]\ndevice = "cpu"\nworkers = 0\n')
    assert cache_logits(load_settings(tmp_path / "edistill.toml")).added == 2


def test_a_cache_of_before_gray_was_told_is_up_to_date(tmp_path: Path) -> None:
    """Its members saw gray arrays, which are the same either way."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=rng.integers(0, 256, (9, 32, 32), dtype=np.uint8), y=np.arange(9) % 3)
    write_run(tmp_path / "teachers" / "run", in_chans=1, input_size=[1, 32, 32])
    (tmp_path / "edistill.toml").write_text('[data]\ntest = "test.npz"\n[train]\ndevice = "cpu"\nworkers = 0\n')
    cache_logits(load_settings(tmp_path / "edistill.toml"))
    manifest = Manifest.load(tmp_path / "cache")
    (member,) = manifest.members
    assert member.preprocessing is not None
    before = replace(member, preprocessing=replace(member.preprocessing, channels=None))
    replace(manifest, members=(before,)).save(tmp_path / "cache")
    assert cache_logits(load_settings(tmp_path / "edistill.toml")).added == 0


def test_gray_is_told_in_records_but_for_those_of_before() -> None:
    gray, plain = Preprocessing((8, 8), (0.5,), (0.5,), channels=1), Preprocessing((8, 8), (0.5,), (0.5,))
    assert gray != plain
    assert gray.is_what(plain)
    assert not plain.is_what(gray)
    assert not gray.is_what(Preprocessing((8, 8), (0.4,), (0.5,)))
    assert "channels" not in plain.to_json()
    assert "channels" not in Member("m", "s", preprocessing=plain).to_json()["preprocessing"]
    record = json.loads(json.dumps(Member("m", "s", preprocessing=gray).to_json()))
    again = parsed(Member, record).preprocessing
    assert again is not None
    assert again.channels == 1
    with refused("of 1 channel"):
        Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5,), channels=1)


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["hf_hub:timm/", "hf-hub:timm/"])
@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k"])
def test_a_name_on_the_hub_is_built_here(tmp_path: Path, scheme: str, name: str) -> None:
    original = small_model()
    run = write_run(tmp_path / "run", model=scheme + name)
    teacher, notes = opened(run)
    assert_equal_outputs(teacher.build(), original)
    assert teacher.member.model == name
    assert len(notes) == 1
    assert "Nothing is asked of the hub" in notes[0]
    save_file(original.state_dict(), tmp_path / "m.safetensors")
    teacher, notes = opened(tmp_path / "m.safetensors", model=scheme + name)
    assert_equal_outputs(teacher.build(), original)
    assert "teachers.model is" in notes[0]
    assert opened(write_run(tmp_path / "plain", model=name))[0].member.preprocessing == teacher.member.preprocessing


@pytest.mark.parametrize("name", ["hf_hub:somebody/flowers", "hf-hub:flowers", "local-dir:/models/flowers"])
def test_what_the_hub_alone_describes_is_refused_and_the_remedy_works(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", model=name)
    with refused(name, "stands in the config.json there alone", "resnet50"):
        opened(run)
    save_file(small_model().state_dict(), tmp_path / "m.safetensors")
    with refused("teachers.model is", "config.json there alone"):
        opened(tmp_path / "m.safetensors", model=name)
    text = (run / "args.yaml").read_text()
    (run / "args.yaml").write_text(text.replace(name, "test_resnet"))
    assert_equal_outputs(opened(run)[0].build(), small_model())
