"""Any change to a manifest, a config, a record or the settings: it opens as what it says, or is one refusal.

What is changed has the checksum that whoever made it would have written, so that nothing is refused by that alone.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ensemble_distill.cache.manifest import NAME, Manifest, _checksum
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.settings import load_settings, settings_toml

pytestmark = pytest.mark.thorough
OLD = Path(__file__).parents[1] / "data" / "version-0.1.0"
MANIFEST: dict[str, Any] = json.loads((OLD / "cache" / NAME).read_text())
CONFIG: dict[str, Any] = json.loads((OLD / "runs/hydra-s0/config.json").read_text())
RECORD = RecordKey("train", "member-0", 0)
often = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 1e308])
texts = st.text(max_size=8) | st.sampled_from(["", "..", "/", "a/b", "\x00", "\ud800", "train", "member-0", "float16"])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in a document, its own aside."""
    inside = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, record: dict[str, Any]) -> dict[str, Any]:
    """A document with one to three of its values gone, doubled under another name, or others."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(sorted(places(record), key=repr)))
        inside = record
        for step in path:
            inside = inside[step]
        how = draw(st.sampled_from(["other", "gone", "twice"]))
        if how == "gone":
            del inside[last]
        elif how == "twice" and isinstance(inside, dict):
            inside[draw(texts)] = copy.deepcopy(inside[last])
        else:
            inside[last] = draw(values)
        if not record:
            break
    return record


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are others, gone or more."""
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 9))
        content = content[:at] + draw(st.binary(max_size=9)) + content[at + length :]
    return content


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def outcomes() -> Iterator[Counter[str]]:
    """How often something opened, and how often it was refused: a test of only one of the two shows nothing."""
    found: Counter[str] = Counter()
    yield found
    assert found["opened"]
    assert found["refused"]


def opens_or_refuses(outcomes: Counter[str], opened: Callable[[], Any], again: Callable[[Any], Any]) -> Any:
    """What opens is what is written of it; all else is one message, and None."""
    try:
        found = opened()
    except EdistillError:
        outcomes["refused"] += 1
        return None
    outcomes["opened"] += 1
    assert again(found) == found
    return found


def differing(given: Any, written: Any) -> Iterator[tuple[Any, Any]]:
    """Values that two documents say differently; what only one of them says is a default, or of a newer version."""
    if isinstance(given, dict) and isinstance(written, dict):
        for key in given.keys() & written.keys():
            yield from differing(given[key], written[key])
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for pair in zip(given, written, strict=True):
            yield from differing(*pair)
    elif given != written:
        yield given, written


def manifest_in(here: Path, record: dict[str, Any]) -> Manifest:
    rest = {key: value for key, value in record.items() if key != "sha256"}
    (here / NAME).write_text(json.dumps({**rest, "sha256": _checksum(rest)}))
    return Manifest.load(here)


@often
@given(record=changed(MANIFEST))
@example(record=MANIFEST)
def test_a_manifest(outcomes: Counter[str], record: dict[str, Any]) -> None:
    def again(found: Manifest) -> Manifest:
        found.save(here)
        return Manifest.load(here)

    with folder() as here:
        if opens_or_refuses(outcomes, lambda: manifest_in(here, record), again):
            written = json.loads((here / NAME).read_text())
            assert list(differing({**record, "sha256": written["sha256"]}, written)) == []


@often
@given(content=damaged((OLD / "cache" / NAME).read_bytes()))
@example(content=(OLD / "cache" / NAME).read_bytes())
def test_the_bytes_of_a_manifest(outcomes: Counter[str], content: bytes) -> None:
    whole = Manifest.load(OLD / "cache")
    with folder() as here:
        (here / NAME).write_bytes(content)
        opens_or_refuses(outcomes, lambda: Manifest.load(here), lambda _: whole)


@often
@given(record=changed(CONFIG))
@example(record=CONFIG)
def test_a_config(outcomes: Counter[str], record: dict[str, Any]) -> None:
    def parsed(content: bytes) -> StudentConfig:
        return StudentConfig.parse(content, Path("config.json"))[0]

    content = json.dumps(record).encode()
    if found := opens_or_refuses(outcomes, lambda: parsed(content), lambda found: parsed(found.content())):
        written = json.loads(found.content())
        assert list(differing({**record, "edistill": written["edistill"]}, written)) == []


@often
@given(content=damaged(RECORD.path(OLD / "cache").read_bytes()))
@example(content=RECORD.path(OLD / "cache").read_bytes())
def test_a_record(outcomes: Counter[str], content: bytes) -> None:
    """In a cache whose other files are there; its checksum finds every change."""
    whole = Cache(OLD / "cache").open("train")
    with folder() as here:
        (here / NAME).write_bytes((OLD / "cache" / NAME).read_bytes())
        for member in whole.members:
            path = RecordKey("train", member, 0).path(here)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(RecordKey("train", member, 0).path(OLD / "cache").read_bytes())
        RECORD.path(here).write_bytes(content)
        found = opens_or_refuses(
            outcomes,
            lambda: Cache(here).open("train").read(range(len(whole))).tolist(),
            lambda _: whole.read(range(len(whole))).tolist(),
        )
        assert (found is None) == (content != RECORD.path(OLD / "cache").read_bytes())


@often
@given(content=damaged((OLD / "edistill.toml").read_bytes()))
@example(content=(OLD / "edistill.toml").read_bytes())
def test_the_settings(outcomes: Counter[str], content: bytes) -> None:
    with folder() as here:
        (here / "edistill.toml").write_bytes(content)

        def again(found: Any) -> Any:
            (here / "again.toml").write_bytes(settings_toml(found, here).encode())
            return load_settings(here / "again.toml")

        opens_or_refuses(outcomes, lambda: load_settings(here / "edistill.toml"), again)
