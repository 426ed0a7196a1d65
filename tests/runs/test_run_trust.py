"""Whose code runs: that of the user's own settings and runs, and not what a folder from elsewhere names."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runs_helpers import RUN
from tiny import refused, settings
from trusted import EVERYTHING

from ensemble_distill import load_student
from ensemble_distill.cli.app import load
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.trust import Trust
from ensemble_distill.serving.kinds import open_file
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from model import make_body
"""


@pytest.fixture
def folder(runs: Path) -> Path:
    return runs


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What planted code leaves."""
    return tmp_path / "mark"


@pytest.fixture
def planted(folder: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from elsewhere with code in it, which can also be imported by name."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(folder / "model.py", elsewhere / "model.py")
    for name in ("evil.py", "evil_package.py"):
        (elsewhere / name).write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(elsewhere)
    yield_names = [name for name in sys.modules if name.startswith(("_edistill_", "evil_package"))]
    for name in yield_names:
        monkeypatch.delitem(sys.modules, name)
    return elsewhere


def foreign(folder: Path, elsewhere: Path, model: str) -> Path:
    """The run, as it comes from elsewhere and names a body of its own."""
    run = Path(shutil.copytree(folder / RUN, elsewhere / "hydra-s0"))
    config = tiny.unseal(run)
    record = json.loads(config.read_text())
    record["student"]["model"] = model
    config.write_text(json.dumps(record))
    (run / "calibration.json").unlink()
    return run


Command = Callable[[Settings, Path, bool], object]
# every command that opens a run and builds its student
COMMANDS: dict[str, Command] = {
    "evaluate": lambda options, run, trust: evaluate(options, str(run), trust=trust),
    "evaluate together": lambda options, run, trust: evaluate_together(options, [RUN, str(run)], trust=trust),
    "calibrate": lambda options, run, trust: calibrate(options, str(run), trust=trust),
    "export --onnx": lambda options, run, trust: export(options, str(run), onnx=True, trust=trust),
    "export --safetensors": lambda options, run, trust: export(options, str(run), safetensors=True, trust=trust),
    "load_student": lambda options, run, trust: load_student(run, trust=trust),
    "Run.student": lambda options, run, trust: Run.open(run).student(trust=Trust(everything=trust)),
    "cache-logits": lambda options, run, trust: cache_logits(as_teacher(options, run), trust=trust),
    "train": lambda options, run, trust: started_from(options, run, trust),
}
BODIES = ["../evil.py:make_body", "evil_package:make_body"]


def as_teacher(options: Settings, run: Path) -> Settings:
    teachers = options.teachers.model_copy(update={"path": str(run)})
    output = options.output.model_copy(update={"cache": "cache-of-it", "name": "of-it"})
    return options.model_copy(update={"teachers": teachers, "output": output})


def started_from(options: Settings, run: Path, trust: bool) -> None:
    """A student that starts from a run as its member; its cache was made by somebody who trusted it."""
    options = as_teacher(options, run)
    if not Path("cache-of-it").exists():
        cache_logits(options, trust=True)
        for name in [name for name in sys.modules if name.startswith(("_edistill_", "evil_package"))]:
            del sys.modules[name]
        for left in run.parent.parent.glob("mark"):
            left.unlink()
    train(options.model_copy(update={"student": options.student.model_copy(update={"init": "hydra-s0"})}), trust=trust)


def run_trusted(command: Command, options: Settings, run: Path, trust: bool) -> None:
    """Whatever becomes of it: what matters is whether its code ran."""
    try:
        command(options, run, trust)
    except EdistillError as error:
        assert "is none of your own runs" not in str(error)  # noqa: PT017


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "body"), list(zip(COMMANDS, itertools.cycle(BODIES), strict=False)))
def test_code_of_a_run_from_elsewhere_runs_only_where_it_is_trusted(
    folder: Path, planted: Path, mark: Path, name: str, body: str
) -> None:
    run = foreign(folder, planted, body)
    named = str(run / body).replace(f"{run.name}/../", "") if body.startswith("..") else body
    with refused(f"{run} is none of your own runs", named, "--trust-checkpoints", "student.model"):
        COMMANDS[name](settings(folder), run, False)
    assert not mark.exists()
    run_trusted(COMMANDS[name], settings(folder), run, True)
    assert mark.exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("load_student", "Run.student")])
def test_a_factory_of_that_name_in_the_users_own_settings_is_enough(
    folder: Path, planted: Path, mark: Path, name: str
) -> None:
    run = foreign(folder, planted, "../model.py:make_body")
    leaving_a_mark = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (planted / "model.py").write_text(leaving_a_mark + (folder / "model.py").read_text())
    run_trusted(COMMANDS[name], settings(folder), run, False)
    assert not mark.exists(), "it is the user's own that runs"
    (folder / "mine.py").write_text((folder / "model.py").read_text())
    with refused("is none of your own runs", "name a model.py:make_body of your own in student.model"):
        COMMANDS[name](settings(folder, {"student.model": "mine.py:make_body"}), run, False)


def test_a_link_among_the_own_runs_leads_out_of_them(folder: Path, planted: Path, mark: Path) -> None:
    run = foreign(folder, planted, BODIES[0])
    (folder / "runs/linked").symlink_to(run)
    with refused("is none of your own runs"):
        evaluate(settings(folder), "linked")
    assert not mark.exists()


def test_runs_of_the_working_folder_load_as_they_are(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert load_student(RUN).calibration is not None
    (folder / "edistill.toml").rename(folder / "other.toml")
    load_student(RUN)
    monkeypatch.chdir(tmp_path)
    with refused("is none of your own runs", "trust=True", "body=..."):
        load_student(folder / RUN)
    load_student(folder / RUN, trust=True)
    load_student(folder / RUN, body=tiny_body)


def test_runs_behind_a_link_find_their_code(folder: Path, tmp_path: Path) -> None:
    (folder / "latest").symlink_to(folder / RUN)
    load_student("latest")
    disk = tmp_path / "another disk"
    (folder / "runs").rename(disk)
    (folder / "runs").symlink_to(disk)
    load_student(RUN)
    assert open_file(folder / RUN / "export/model.safetensors", trust=Trust(runs=folder / "runs")).card.task
    (folder / "model.py").unlink()
    with refused(f"trained with the body {folder / 'model.py'}:make_body", "Put it back"):
        load_student(RUN)


def tiny_body(width: int = 12) -> torch.nn.Module:
    from torch import nn

    class Gray(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    return nn.Sequential(Gray(), nn.Flatten(), nn.Linear(36, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))


def test_settings_of_a_run_from_elsewhere_name_no_members(folder: Path, planted: Path, mark: Path) -> None:
    """Its args.toml names what builds its members: that is code too."""
    run = foreign(folder, planted, "../model.py:make_body")
    shutil.copytree(folder / "teachers", planted / "teachers")
    args = run / "args.toml"
    text = args.read_text().replace("../../model.py:make_teacher", "../evil.py:make_teacher")
    args.write_text(text.replace("../../", "../").replace("../teachers", "../teachers"))
    (folder / "teachers/member-0.safetensors").unlink()
    shutil.rmtree(folder / "cache")
    with pytest.raises(EdistillError):
        evaluate(settings(folder), str(run))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["pretrained", "checkpoint_path"])
def test_a_timm_body_of_a_run_loads_nothing_but_its_own_weights(
    tmp_path: Path, mark: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from configs import configured

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"state_dict": Evil()}))
    value = True if key == "pretrained" else str(evil)
    config = configured(model="test_resnet", kwargs={}, shape=(3, 32, 32))
    run = Run.save(tmp_path / "run", config, config.architecture.build())
    file = tiny.unseal(run.folder)
    record = json.loads(file.read_text())
    record["student"]["kwargs"] = {key: value, "pretrained_cfg": {"url": "http://127.0.0.1:9/x", "file": str(evil)}}
    file.write_text(json.dumps(record))
    asked: list[dict[str, Any]] = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: asked.append(given) or create(name, **given))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("it fetches"))
    load_student(run.folder)
    assert not mark.exists()
    assert asked
    assert not any(given.keys() & {"pretrained", "checkpoint_path"} for given in asked)


@pytest.mark.parametrize("family", [{"name": "os"}, {"name": "../x"}, {"name": ["x"]}, {"name": None}, "os"])
def test_no_family_is_imported_by_a_name_from_a_file(folder: Path, family: Any) -> None:
    config = tiny.unseal(folder / RUN)
    record = json.loads(config.read_text())
    record["student"]["family"] = family
    with refused("config.json is damaged"):
        StudentConfig.parse(json.dumps(record).encode(), config)


def test_a_method_of_a_file_is_a_name_and_no_code(folder: Path, planted: Path, mark: Path) -> None:
    run = foreign(folder, planted, "../model.py:make_body")
    config = run / "config.json"
    record = json.loads(config.read_text())
    record["method"] = {"name": f"{planted}/evil.py:Method", "options": {}, "source": f"{planted}/evil.py"}
    record["student"]["last_stage"] = {"at": "evil_package", "adapt_from": "os.system", "adapted": False, "rank": None}
    config.write_text(json.dumps(record))
    with pytest.raises(EdistillError):
        Run.open(run).student(trust=EVERYTHING)
    assert not mark.exists()


def test_every_command_that_opens_a_run_can_be_told_to_trust_it() -> None:
    for command in ["evaluate", "calibrate", "export", "cache-logits", "train", "inspect"]:
        assert "--trust-checkpoints" in {flag for parameter in load(command).params for flag in parameter.opts}


# --- inspect and verify -----------------------------------------------------------------------------------------


class Touches:
    """A pickle that runs code where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_inspect_and_verify_run_no_code(folder: Path, planted: Path, mark: Path, monkeypatch: Any) -> None:
    run = foreign(folder, planted, BODIES[0])
    (planted / "evil.py:make").write_text("")
    (planted / "runs").mkdir()
    shutil.copytree(run, planted / "runs/hydra-s0")
    for name in ("member.pth", "member.bin", "member.pt"):
        pickled = planted / "pickled" / name
        pickled.parent.mkdir(exist_ok=True)
        pickled.write_bytes(pickle.dumps(Touches(mark)))
        (planted / name).write_bytes(pickle.dumps(Touches(mark)))
    np_file = planted / "data.npz"
    import numpy as np

    np.savez(np_file, x=np.array([Touches(mark)], dtype=object), y=np.zeros(1))
    (planted / "cache").mkdir()
    (planted / "cache/manifest.json").write_text(json.dumps({"format": 1, "task": "evil_package:make"}))
    monkeypatch.chdir(planted)  # and no edistill.toml says otherwise
    paths = [planted, *planted.iterdir(), *(planted / "pickled").iterdir(), run / "student.safetensors", run / "export"]
    paths += [folder / RUN, folder / "cache", folder / "teachers", folder / RUN / "export/model.onnx"]
    for path in (*paths, *(path.relative_to(planted) for path in paths if path.is_relative_to(planted))):
        for look in (inspect, verify):
            try:
                look(path)  # type: ignore[operator]
            except (EdistillError, OSError) as error:
                assert str(error)  # noqa: PT017
            assert not mark.exists(), (look, path)
