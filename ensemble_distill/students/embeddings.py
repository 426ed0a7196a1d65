"""Whether a text network has an embedding for every token of its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import AnyPreprocessing, Named, Several, Tokenization
from ensemble_distill.students.fields import MASK


def text_in(to: AnyPreprocessing | None) -> Tokenization | None:
    """How the text of a row becomes tokens, possibly as one of several arrays; None without text."""
    parts = [part.preprocessing for part in to.parts] if isinstance(to, Several) else [to]
    return next((part for part in parts if isinstance(part, Tokenization)), None)


def refuse_fewer_embeddings(network: nn.Module, to: Named, tokens: int, named: str, remedy: str) -> None:
    """Raise EdistillError for a network that lacks an embedding for its tokenizer's last token.

    It would fail at the first text with such a token, which may be the last row of a long pass. So the network is tried
    on that single token first. If it also fails on token 0, no error is raised here: asking about rows raises it.

    Args:
        network: in eval mode, called with what `to` gives.
        tokens: one more than the largest id of its tokenizer.
        named: what the message calls the network.
        remedy: what to do, for the message.
    """
    try:
        _say(network, to, tokens - 1)
    except _FewerError as found:
        raise fewer_embeddings(named, tokens, found.rows, remedy) from None
    except Exception as error:  # the network is anyone's code
        if not _answers(network, to):
            return
        raise EdistillError(
            f"{named} has a tokenizer of {tokens:,} tokens, and fails on the last of them, {tokens - 1:,}: "
            f"{first_line(error)}. {remedy}"
        ) from None


def fewer_embeddings(named: str, tokens: int, rows: int, remedy: str) -> EdistillError:
    """The error for an embedding with fewer rows than there are tokens; see `refuse_fewer_embeddings`."""
    return EdistillError(
        f"{named} has an embedding of {rows:,} tokens, and its tokenizer has {tokens:,}: texts with token {rows:,} or "
        f"a later one could not be asked about. {remedy}"
    )


class _FewerError(Exception):
    """An embedding was given a token that it has no row for."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


def _answers(network: nn.Module, to: Named) -> bool:
    try:
        _say(network, to, 0)
    except Exception:  # the network is anyone's code
        return False
    return True


def _say(network: nn.Module, to: Named, token: int) -> None:
    """Run the network on a text of one token. Raises _FewerError if an embedding that receives it has too few rows."""

    def refuse(module: nn.Module, args: tuple[Any, ...]) -> None:
        ids, rows = args[0] if args else None, int(module.num_embeddings)  # type: ignore[arg-type]
        if isinstance(ids, Tensor) and ids.numel() and int(ids.max()) == token >= rows:
            raise _FewerError(rows)

    x = _one_token(to, token)
    embeddings = [one for one in network.modules() if isinstance(one, nn.Embedding | nn.EmbeddingBag)]
    hooks = [one.register_forward_pre_hook(refuse) for one in embeddings]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # the caller's random numbers stay untouched
            network(x)
    finally:
        for hook in hooks:
            hook.remove()


def _one_token(to: Named, token: int) -> Tensor:
    """A row whose text is one token, (1, fields, L); with several arrays (1, n), the other arrays zero."""
    text = text_in(to)
    assert text is not None
    starts = {"input_ids": token, MASK: 1}
    fills = {"input_ids": text.pad}
    if isinstance(to, Several):
        x = torch.zeros(1, *to.shape)
        rows = {slot.name: x[0, slot.start : slot.stop] for slot in to.slots if slot.name in text.fields}
    else:
        x = torch.zeros(1, *to.shape, dtype=torch.int64)
        rows = dict(zip(to.fields, x[0], strict=True))
    for field, row in rows.items():
        row.fill_(fills.get(field, 0))
        row[0] = starts.get(field, 0)
    return x
