"""Is the cache worth it? Ratios, each from alternating runs in this process.

    python examples/benchmarks/speed.py ../shared

1. An epoch from the cache of ten members ÷ an epoch of plain supervised PyTorch training of the same body.
2. The same epoch ÷ one of online distillation, which runs one, four or ten members at each step; and ÷ one of timm's
   own task for `train.py --kd-model-name`, with one member.
3. The same epoch with --channels-last ÷ without.
4. The caching pass ÷ the sum of the members' bare forward passes on tensors in memory.

Leave the machine otherwise idle. `--rows 512 --repeats 1` shortens it. It needs timm 1.0.23 or later, for that task.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import arguments, copy_teachers, unpack_cifar10  # noqa: E402
from timing import medians, seconds_of  # noqa: E402

from ensemble_distill import Settings, cache_logits, load_settings, train  # noqa: E402
from ensemble_distill.runtime.factories import load_factory  # noqa: E402

ROWS = ("2048", "512", "8192")  # the first is the default
REPEATS = ("3", "1")
VIEWS, BATCH = 2, 128
ONLINE = (1, 4, 10)
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
Member = Callable[[], nn.Module]


def main() -> None:
    given = arguments(__doc__ or "", HERE, rows=ROWS, repeats=REPEATS)
    work, rows, repeats = given.work, int(given.rows[0]), int(given.repeats[0])
    folder = unpack_cifar10(given.shared, work)
    copy_teachers(given.shared / "teachers" / "cifar10-resnet8", work)
    np.save(work / "rows.npy", np.arange(0, 45_000, 45_000 // rows)[:rows])
    (work / "body.py").write_text(BODY, encoding="utf-8")
    (work / "edistill.toml").write_text(SETTINGS, encoding="utf-8")
    torch.set_num_threads(2)
    make_member: Member = load_factory(f"{work / 'teachers' / 'model.py'}:make_teacher", "the members' architecture")
    members = [member.eval() for member in _loaded(work / "teachers", make_member)]
    pictures = Pictures(folder / "train", np.load(work / "rows.npy"))
    cache_logits(settings_of(work), overwrite=True)
    print(
        f"{rows:,} rows of CIFAR-10, {len(members)} ResNet-8 members, batch {BATCH}, medians of {repeats}", flush=True
    )
    cached, laid_out, plain, by_timm, *online = medians(
        repeats,
        lambda: our_epoch(work),
        lambda: our_epoch(work, {"train.channels-last": True}),
        lambda: epoch(make_member, pictures, ()),
        lambda: timm_epoch(make_member, pictures, members[0]),
        *(lambda count=count: epoch(make_member, pictures, members[:count]) for count in ONLINE),  # type: ignore[misc]
    )
    tell("epoch from the cache ÷ supervised epoch", cached, plain)
    for count, seconds in zip(ONLINE, online, strict=True):
        tell(f"epoch from the cache of ten ÷ online distillation of {count}", cached, seconds)
    tell("epoch from the cache of ten ÷ timm's with one teacher", cached, by_timm)
    tell("epoch from the cache, --channels-last ÷ without", laid_out, cached)
    loaded = torch.stack([pictures[row][0] for row in range(rows)])
    whole, bare = medians(
        repeats, lambda: pass_seconds(work), lambda: seconds_of(lambda: bare_forwards(members, loaded))
    )
    tell("caching pass ÷ the members' bare forwards", whole, bare)


BODY = '''"""A member's architecture without its last layer."""
from teachers.model import make_teacher
from torch import nn


def make_body() -> nn.Module:
    body = make_teacher()
    body.head = nn.Identity()
    return body
'''


SETTINGS = f"""
teachers.path = "teachers"
teachers.model = "teachers/model.py:make_teacher"
teachers.preprocessing = {{ size = [32, 32], mean = {MEAN}, std = {STD} }}
data.train = {{ source = "data/cifar10/train", rows = "rows.npy" }}
views = {{ transform = "crop-flip", count = {VIEWS} }}
student = {{ model = "body.py:make_body", heads = [] }}
train = {{ epochs = 2, batch-size = {BATCH}, device = "cpu" }}
method = {{ hinton-share = 0, closed-form = false }}
"""


def tell(what: str, a: float, b: float) -> None:
    print(f"{what:<64}{a / b:5.2f}   ({a:.1f} s / {b:.1f} s)", flush=True)


def settings_of(work: Path, more: dict[str, Any] | None = None) -> Settings:
    return load_settings(work / "edistill.toml", more or {})


# --- ours ------------------------------------------------------------------------------------------------------------


def our_epoch(work: Path, more: dict[str, Any] | None = None) -> float:
    """Seconds of the second of two epochs, whose rows are already decoded, including logs and checkpoints."""
    report = train(settings_of(work, more), overwrite=True)
    with (report.folder / "summary.csv").open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def pass_seconds(work: Path) -> float:
    """Seconds of a whole caching pass, including the sync of its files to disk."""
    return seconds_of(lambda: cache_logits(settings_of(work), overwrite=True))


# --- plain PyTorch ---------------------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures that are decoded once, and randomly cropped, flipped and normalized at each access."""

    def __init__(self, folder: Path, rows: NDArray[np.int64]) -> None:
        labels = sorted(path.name for path in folder.iterdir())
        files = [(path, label) for label, name in enumerate(labels) for path in sorted((folder / name).iterdir())]
        self.x = [np.asarray(Image.open(files[row][0]).convert("RGB")) for row in rows]
        self.y = [files[row][1] for row in rows]
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        padded = np.pad(self.x[row], ((4, 4), (4, 4), (0, 0)))
        top, left = self.random.integers(0, 9, 2)
        crop = padded[top : top + 32, left : left + 32]
        crop = crop[:, ::-1] if self.random.random() < 0.5 else crop
        x = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], self.y[row]


def epoch(make_member: Member, pictures: Pictures, members: Sequence[nn.Module]) -> float:
    """Seconds of an epoch of one body: with a head per member, which run at each step, or without members on labels."""
    body = make_member()
    body.head = nn.Identity()
    head = nn.Linear(64, 10 * max(1, len(members)))
    student = nn.Sequential(body, head, nn.Unflatten(1, (-1, 10)))
    optimizer = create_optimizer_v2(student, opt="adamw", lr=1e-3)

    def run() -> None:
        for x, y in DataLoader(pictures, BATCH, shuffle=True):
            said = student(x)
            if members:
                with torch.no_grad():
                    asked = torch.stack([member(x) for member in members], 1).log_softmax(-1)
                loss = F.kl_div(said.log_softmax(-1), asked, reduction="sum", log_target=True) / asked[..., 0].numel()
            else:
                loss = F.cross_entropy(said[:, 0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return seconds_of(run)


def timm_epoch(make_member: Member, pictures: Pictures, teacher: nn.Module) -> float:
    """Seconds of an epoch of one body with one head, trained by timm on labels and one teacher."""
    student: Any = make_member()
    student.num_classes, student.in_chans, student.pretrained_cfg = 10, 3, {"mean": MEAN, "std": STD}
    setattr(teacher, "pretrained_cfg", student.pretrained_cfg)  # noqa: B010  (both take the same inputs)
    task = LogitDistillationTask(student, teacher, verbose=False).train()
    optimizer = create_optimizer_v2(student, opt="adamw", lr=1e-3)

    def run() -> None:
        for x, y in DataLoader(pictures, BATCH, shuffle=True):
            optimizer.zero_grad()
            task(x, y)["loss"].backward()
            optimizer.step()

    return seconds_of(run)


@torch.inference_mode()
def bare_forwards(members: Sequence[nn.Module], loaded: Tensor) -> None:
    for _ in range(VIEWS):
        for x in loaded.split(256):
            for member in members:
                member(x)


def _loaded(folder: Path, make_member: Member) -> list[nn.Module]:
    """The members of a folder of checkpoints."""
    from safetensors.torch import load_file

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        member = make_member()
        member.load_state_dict(load_file(path))
        found.append(member)
    return found


if __name__ == "__main__":
    main()
