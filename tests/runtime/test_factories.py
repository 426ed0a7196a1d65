"""Users' code is found beside their settings, alone or as part of a package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.factories import load_factory


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package beside where the user works, under a name that no test before used."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    inner = tmp_path / name / "deep"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("")
    (inner.parent / "layers.py").write_text("WIDTH = 7\n")
    (inner.parent / "models.py").write_text(
        f"from .layers import WIDTH\nfrom {name}.layers import WIDTH as SAME\n"
        "def make():\n    from . import layers\n    return WIDTH, SAME, layers.WIDTH\n"
    )
    (inner / "models.py").write_text("from ..models import make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return tmp_path / name


@pytest.mark.parametrize(
    "spec", ["{}.models:make", "{}/models.py:make", "{}.deep.models:make", "{}/deep/models.py:make"]
)
@pytest.mark.parametrize("initialized", [True, False])
def test_a_package_with_relative_imports(package: Path, spec: str, initialized: bool) -> None:
    if not initialized:
        for file in package.rglob("__init__.py"):
            file.unlink()
    before = list(sys.path)
    make = load_factory(spec.format(package.name), "teachers.model")
    assert make() == (7, 7, 7)
    assert sys.path == before
    assert load_factory(spec.format(package.name), "teachers.model")() == (7, 7, 7)


def test_a_package_itself(package: Path) -> None:
    (package / "__init__.py").write_text("from .models import make\n")
    assert load_factory(f"{package}/__init__.py:make", "teachers.model")() == (7, 7, 7)


def test_two_packages_of_one_name_are_two(tmp_path: Path) -> None:
    for folder, width in (("a", 1), ("b", 2)):
        (tmp_path / folder / "nets").mkdir(parents=True)
        (tmp_path / folder / "nets" / "layers.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "nets" / "models.py").write_text(
            "from .layers import WIDTH\ndef make():\n    return WIDTH\n"
        )
    assert [load_factory(f"{tmp_path}/{folder}/nets/models.py:make", "m")() for folder in "ab"] == [1, 2]


def test_an_installed_package_comes_before_one_that_lies_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv():\n    return 'mine'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert load_factory("colorsys:rgb_to_hsv", "teachers.model")(0, 0, 0) == (0.0, 0.0, 0)


def test_an_error_in_a_package_is_told_and_mended(package: Path) -> None:
    text = (package / "layers.py").read_text()
    (package / "layers.py").write_text("WIDTH = 1 / 0\n")
    with pytest.raises(EdistillError, match="ZeroDivisionError"):
        load_factory(f"{package}/models.py:make", "teachers.model")
    (package / "layers.py").write_text(text + "# fixed\n")
    assert load_factory(f"{package}/models.py:make", "teachers.model")() == (7, 7, 7)


def test_code_that_could_not_even_be_called_has_no_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make(depth):\n    return 1 / depth\n")
    make = load_factory(f"{tmp_path / 'mine.py'}:make", "student.model")
    with pytest.raises(EdistillError, match=r"make\(depth=0\) raised Zero.*, at mine.py, line 2\. Fix it\.$"):
        make(depth=0)
    with pytest.raises(EdistillError, match=r"make\(width=3\) raised TypeError: .* 'width'\. Fix it\.$"):
        make(width=3)


def test_helpers_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    """As the `utils.py`, or the package `models`, of two projects whose networks are one ensemble."""
    for folder in ("one", "other"):
        (tmp_path / folder / "models").mkdir(parents=True)
        (tmp_path / folder / "helping.py").write_text(f"WHO = '{folder}'")
        (tmp_path / folder / "models/__init__.py").write_text("from models.nets import WHO")
        (tmp_path / folder / "models/nets.py").write_text(f"WHO = '{folder}'")
        (tmp_path / folder / "model.py").write_text(
            "import helping, models\ndef make():\n    from models import nets\n    import helping as again\n"
            "    return helping.WHO, models.WHO, nets.WHO, again.WHO"
        )
    before = set(sys.modules)
    try:
        made = {name: load_factory(f"{tmp_path / name / 'model.py'}:make", "x") for name in ("one", "other")}
        for name in ("one", "other", "one"):
            assert made[name]() == (name,) * 4
        helping = sys.modules["helping"]
        assert helping.WHO == "one"  # for what is imported later, as when a network is called
        assert load_factory(f"{tmp_path / 'one' / 'model.py'}:make", "x")() == ("one",) * 4
        assert sys.modules["helping"] is helping
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
