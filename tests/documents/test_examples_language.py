"""The example's language models are those of the paper, in size and in what they return."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "examples" / "language"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ("model", "parameters", "make", "study")
    monkeypatch.syspath_prepend(str(HERE))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in names:  # other tests of the same process have a `model` of their own
        sys.modules.pop(name, None)


def test_the_papers_models_have_the_papers_sizes(example: None) -> None:
    import parameters

    sizes = [parameters.count(model) for model, _ in parameters.models().values()]
    assert sizes == pytest.approx([33.0, 51.0, 19.4], abs=0.05)


def test_members_carry_their_state_from_chunk_to_chunk(example: None) -> None:
    import model

    words = ["<unk>", "<eos>", "cat", "catalogue", "a"]
    torch.manual_seed(0)
    lstm = model.Model(model.LSTM(5, 6, 2, 0.5), 5, 6, tied=True)
    spelled = model.Model(model.CNNLSTM(model.spelled(words), 6, 1, 0.5, filters=2, most=8), 5, 6, tied=False)
    for network in (lstm.eval(), spelled.eval()):
        ids = torch.tensor([[1, 2, 3, 4, 0, 2], [4, 4, 3, 2, 1, 0]])
        with torch.no_grad():
            whole, _ = network(ids)
            first, state = network(ids[:, :4])
            second, _ = network(ids[:, 4:], state)
        assert whole.shape == (2, 6, 5)
        torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert lstm.decoder.weight is lstm.body.embedding.weight
