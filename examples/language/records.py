"""What a record keeps of a position, and what a student makes of it: all classes, some drawn ones, or the likeliest
ones.

python examples/language/records.py ../shared/data/text --work FOLDER trains a small ensemble and a student from each
kind of record, on the ensemble's prediction alone, and writes records.csv beside this file.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import make
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.sampled_records import weighed
from ensemble_distill.caching import drawing
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.sampled import Sampled

Target = Categorical | Sampled
WINDOW, ROWS, LARGE = make.UNROLL, 20, 33_000
SEEN = 10  # batches in which gradients are compared


@dataclass(frozen=True)
class Records:
    """A way to store the members' outputs at positions.

    Attributes:
        teacher: maps the members' probabilities (A, M, K), and A numbers to draw by, to the outputs read from the
            record.
        size: bytes per position and member, from K classes, M members and the number of distinct ids.
    """

    teacher: Callable[[NDArray[np.float64], NDArray[np.float64]], Sampled | Categorical]
    size: Callable[[int, int, float], float]


def dense() -> Records:
    def teacher(p: NDArray[np.float64], _: NDArray[np.float64]) -> Categorical:
        return Categorical(torch.from_numpy(np.log(p)).float())

    return Records(teacher, lambda classes, members, _: Format("dense", (classes,), "float16").record.itemsize)


def sampled(n: int) -> Records:
    """Classes drawn as in the cache."""
    said, drawn = Format("sampled", (n + 1,), "float16"), Format("drawn", (2 * n + 1,), "uint16")

    def teacher(p: NDArray[np.float64], uniforms: NDArray[np.float64]) -> Sampled:
        q = np.maximum(p.mean(1), drawing.LEAST)
        ids = drawing.drawn_ids(q, n, uniforms)
        of_ids = np.take_along_axis(q, ids, -1)
        there = np.concatenate([ids, of_ids, drawing.thresholds(q, n)[:, None]], -1)
        each = [said.encode(drawing.ratios(p[:, m], ids, of_ids)) for m in range(p.shape[1])]
        kept = np.stack([said.decode(one) for one in each], 1)
        return Sampled.of(torch.from_numpy(weighed(kept, drawn.decode(drawn.encode(there))[:, None])), None)

    return Records(teacher, lambda _, members, __: said.record.itemsize + drawn.record.itemsize / members)


def counted(draws: int) -> Records:
    """Independent draws from the members' mean, with their counts, which is unbiased too."""

    def teacher(p: NDArray[np.float64], uniforms: NDArray[np.float64]) -> Sampled:
        q, ids = p.mean(1), np.zeros((len(p), draws), np.int64)
        weight, log_p = (np.zeros((*p.shape[:2], draws)) for _ in range(2))
        for at, (of, u) in enumerate(zip(q, uniforms, strict=True)):
            drawn = np.random.default_rng(int(u * 2**53)).choice(len(of), draws, p=of / of.sum())
            found, counts = np.unique(drawn, return_counts=True)
            ids[at, : len(found)] = found
            weight[at, :, : len(found)] = p[at][:, found] / of[found] * counts / draws
            log_p[at, :, : len(found)] = np.log(p[at][:, found])
        return _known(ids, weight, log_p)

    # an id, its count and q are shared by the members, for each distinct id
    return Records(teacher, lambda _, members, different: different * (2 + (2 + 1 + 4) / members))


def likeliest(n: int) -> Records:
    """The n classes with the largest mean probability, each member's probabilities normalized to sum to 1."""

    def teacher(p: NDArray[np.float64], _: NDArray[np.float64]) -> Sampled:
        q = p.mean(1)
        ids = np.argsort(-q, -1)[:, :n]
        top = np.take_along_axis(p, ids[:, None], -1)
        top /= top.sum(-1, keepdims=True)
        return _known(ids, top, np.log(top))

    return Records(teacher, lambda _, members, __: 2 * n + 2 * n / members)


def _known(ids: NDArray[np.int64], weight: NDArray[np.float64], log_p: NDArray[np.float64]) -> Sampled:
    numbers = [torch.from_numpy(values).float() for values in (weight, log_p)]
    return Sampled(torch.from_numpy(ids)[:, None], *numbers, torch.ones(len(ids), weight.shape[1]))


KINDS = {
    "all classes": dense(),
    **{f"{n} drawn": sampled(n) for n in (4, 12, 50)},
    "50 draws, counted": counted(50),
    **{f"the likeliest {n}": likeliest(n) for n in (12, 50)},
}


# --- a student of each --------------------------------------------------------------------------------------------


def windows(ids: NDArray[np.int64]) -> Tensor:
    """Each window with its context and the token after it, (N, 2 · WINDOW + 1)."""
    count = (len(ids) - 1) // WINDOW
    stream = np.concatenate([np.full(WINDOW, 1), ids])
    return torch.from_numpy(np.stack([stream[at * WINDOW : (at + 2) * WINDOW + 1] for at in range(count)]))


def said(network: nn.Module, rows: Tensor) -> Tensor:
    """Logits at each position of the windows, (B · WINDOW, K)."""
    out, _ = network(rows[:, :-1])
    return out[:, WINDOW:].flatten(0, 1)


def batches(rows: Tensor, seed: int, epoch: int) -> Iterator[Tensor]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    yield from (order[start : start + ROWS] for start in range(0, len(rows) - ROWS + 1, ROWS))


@dataclass(frozen=True)
class Study:
    """The ensemble, and the windows of its text."""

    folder: Path
    width: int
    members: list[nn.Module]
    train: Tensor
    validation: Tensor

    @torch.no_grad()
    def targets(self, kind: Records) -> Target:
        """The ensemble's prediction at all training positions as records keep it, each drawn once and for all."""
        found = []
        for at in torch.arange(len(self.train)).split(50):
            logits = torch.stack([said(member, self.train[at]) for member in self.members], 1)
            uniforms = [drawing.uniforms_of(0, "train", 0, int(row), WINDOW) for row in at]
            found.append(kind.teacher(drawing.probabilities(logits.numpy()), np.concatenate(uniforms)).pooled())
        fields = ("logits",) if isinstance(found[0], Categorical) else ("ids", "weight", "log_p", "top")
        return type(found[0])(*(torch.cat([getattr(one, name) for one in found]) for name in fields))

    def loss(self, student: nn.Module, targets: Target, at: Tensor) -> Tensor:
        each = (at[:, None] * WINDOW + torch.arange(WINDOW)).flatten()
        fields = ("logits",) if isinstance(targets, Categorical) else ("ids", "weight", "log_p", "top")
        target = type(targets)(*(getattr(targets, name)[each] for name in fields))
        return target.kl(Categorical(said(student, self.train[at])[:, None])).mean()

    @torch.no_grad()
    def perplexity(self, student: nn.Module) -> float:
        student.eval()
        nll = [
            Categorical(said(student, rows)[:, None]).nll(rows[:, WINDOW + 1 :].flatten()).sum()
            for rows in self.validation.split(50)
        ]
        return math.exp(float(sum(nll)) / (len(self.validation) * WINDOW))

    def learned(self, targets: Target, seed: int, epochs: int) -> nn.Module:
        student = make.new_member(self.folder, self.width, 100 + seed)
        torch.manual_seed(seed)
        steps = epochs * (len(self.train) // ROWS)
        optimizer = torch.optim.Adam(student.parameters(), lr=6e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(epochs):
            student.train()
            for at in batches(self.train, seed, epoch):
                optimizer.zero_grad()
                self.loss(student, targets, at).backward()
                optimizer.step()
                schedule.step()
        return student

    def angle(self, student: nn.Module, targets: Target, whole: Target, seed: int) -> float:
        """The angle in degrees between the gradients from this record and from all classes, averaged over some
        batches."""
        found = []
        student.eval()
        for at, _ in zip(batches(self.train, seed, 0), range(SEEN), strict=False):
            one, other = (self._gradient(student, each, at) for each in (targets, whole))
            cosine = float(one @ other / (one.norm() * other.norm()))
            found.append(math.degrees(math.acos(min(1.0, cosine))))
        return float(np.mean(found))

    def _gradient(self, student: nn.Module, targets: Target, at: Tensor) -> Tensor:
        student.zero_grad()
        self.loss(student, targets, at).backward()
        return torch.cat([parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None])


def opened(folder: Path, texts: Path, members: int, share: float, tokens: int, width: int, epochs: int) -> Study:
    make.make(folder, texts, members, share, tokens, width, make.Recipe(batch=ROWS, epochs=epochs))
    networks = []
    for seed in range(members):
        member = make.new_member(folder, width, seed)
        member.load_state_dict(load_file(folder / "teachers" / f"member-{seed}.safetensors"), strict=False)
        networks.append(member.eval())
    train, validation = (windows(make.read_ids(folder, name)) for name in ("train", "validation"))
    return Study(folder, width, networks, train, validation)


def run(study: Study, seeds: int, epochs: int, tokens: int, file: Path) -> None:
    whole = study.targets(KINDS["all classes"])
    halfway = [study.learned(whole, seed, max(1, epochs // 4)) for seed in range(seeds)]
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["records", "classes", f"bytes_{tokens}", f"bytes_{LARGE}", "angle", "perplexity"])
        for name, kind in KINDS.items():
            targets = study.targets(kind)
            kept = float((targets.weight > 0).sum(-1).float().mean()) if isinstance(targets, Sampled) else tokens
            sizes = [kind.size(classes, len(study.members), kept) for classes in (tokens, LARGE)]
            angle = np.mean([study.angle(student, targets, whole, seed) for seed, student in enumerate(halfway)])
            found = [study.perplexity(study.learned(targets, seed, epochs)) for seed in range(seeds)]
            row = [name, f"{kept:.3g}", *(f"{size:.0f}" for size in sizes), f"{angle:.1f}", f"{np.mean(found):.2f}"]
            writer.writerow(row)
            out.flush()
            print(*row, [f"{one:.2f}" for one in found], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Records of all classes, of drawn ones, and of the likeliest.")
    parser.add_argument("texts", type=Path, help="holds wikitext2-valid.txt and wikitext2-test.txt")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.08)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8, help="of the ensemble")
    parser.add_argument("--student-epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    found = opened(given.work, given.texts, given.members, given.share, given.tokens, given.width, given.epochs)
    run(found, given.seeds, given.student_epochs, given.tokens, Path(__file__).with_suffix(".csv"))
