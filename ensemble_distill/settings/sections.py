"""The tables of `edistill.toml`: the one definition behind the file, the flags and their help.

Paths are relative to their file and become absolute when loaded; `settings_toml` writes them relative to the place of
the copy, so that a copy replays from there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator

from ensemble_distill.facts import HELD_OUT, LARGE, SPLITS
from ensemble_distill.settings.columns import ColumnSettings, PortionSettings
from ensemble_distill.settings.paths import DataPath, ModelSpec, PathText, file_name
from ensemble_distill.settings.section import FAR, MOST_EPOCHS, MOST_ROWS, SEED, WIDEST, Section, one_or_list
from ensemble_distill.settings.teachers import PreprocessingSettings, TeacherSettings
from ensemble_distill.settings.tokens import TokenSettings
from ensemble_distill.tasks import task_names


def _arrays_as(arrays: Any) -> str:
    return "<list>" if isinstance(arrays, list | tuple) else "<table>" if isinstance(arrays, dict) else "<name>"


ArraySettings = Annotated[
    Annotated[str, Tag("<name>")]
    | Annotated[tuple[str, ...], Field(min_length=1), Tag("<list>")]
    | Annotated[dict[str, str], Field(min_length=1), Tag("<table>")],
    Discriminator(_arrays_as),
]


class DataEntry(Section):
    """A split as a table: its source, the arrays and the rows to use."""

    source: DataPath = Field(description="The path, as it would stand alone.")
    rows: PathText | None = Field(None, description="An .npy of the row indices to use; default all rows.")
    x: ArraySettings = Field(
        "x", description="In an .npz, the array of inputs; a list or table of names where a row has several arrays."
    )
    y: str = Field("y", description="In an .npz, the array of labels or targets.")
    root: PathText | None = Field(None, description="For torch/NAME, the folder where torchvision keeps it.")
    split: str | None = Field(
        None, description="For torch/NAME, which part of it; default the part named like this split."
    )


MOST_DRAWN = 4096  # classes drawn for a row


def _written_as(entry: Any) -> str:
    return "<table>" if isinstance(entry, dict | DataEntry) else "<path>"


# tagged, so that an error refers to the form the entry was written in
DataSettings = Annotated[
    Annotated[DataPath, Tag("<path>")] | Annotated[DataEntry, Tag("<table>")], Discriminator(_written_as)
]


class SplitSettings(Section):
    """`[data]`: a source per split."""

    train: DataSettings | None = Field(
        None,
        description="Image folder, .npz, table, saved data set, shards, .txt or .npy of tokens, torch/NAME, or "
        "file.py:factory.",
    )
    validation: DataSettings | None = Field(None, description="Rows for making choices.")
    test: DataSettings | None = Field(None, description="Rows for reporting only.")
    calibration: DataSettings | None = Field(None, description="Rows no member was trained on.")
    transfer: DataSettings | None = Field(None, description="Extra rows to train on; they need no labels.")
    all: DataSettings | None = Field(None, description="Instead of train: rows for data.split to divide.")
    split: PortionSettings | None = Field(None, description="How to divide data.all, stratified by label.")
    columns: ColumnSettings | None = Field(None, description="What the columns of tables hold.")
    ood: dict[str, DataSettings] = Field({}, description="Out-of-distribution sets, for evaluation only.")

    @property
    def portions(self) -> tuple[str, ...]:
        """The splits that data.all is divided into."""
        return () if self.all is None or self.split is None else ("train", *self.split.shares)

    @field_validator("ood")
    @classmethod
    def _names_are_file_names(cls, sets: dict[str, Any]) -> dict[str, Any]:
        for name in sets:
            file_name(name)
        return sets


class ViewSettings(Section):
    """`[views]`: the views of each training row that the members' outputs are cached for."""

    count: int = Field(4, ge=1, le=2**16, description="Views of each training row in the cache.")
    transform: ModelSpec = Field(
        "none", description="none, affine, crop-flip, mixup, swap, noise, ods or confods; join several with +."
    )
    seed: int = Field(0, ge=-SEED, lt=SEED, description="Seed of the views, independent of the training seed.")


class LastStageSettings(Section):
    """`student.heads` as a table: each head has its own copy of the body's last stage."""

    last_stage: str | None = Field(None, min_length=1, description="The body's module where the last stage begins.")
    adapt_from: str | None = Field(None, min_length=1, description="The body's module whose output the adapters read.")
    rank: int | None = Field(None, ge=1, le=WIDEST, description="Channels of the bottleneck shared by the adapters.")
    compress: float | None = Field(None, gt=0, lt=1, description="Share of its parameters that each copy keeps.")


def _heads_as(heads: Any) -> str:
    return (
        "<word>" if isinstance(heads, str) else "<table>" if isinstance(heads, dict | LastStageSettings) else "<list>"
    )


HeadSettings = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=1, le=WIDEST)], ...], Field(max_length=64), Tag("<list>")]
    | Annotated[Literal["last-stage"], Tag("<word>")]
    | Annotated[LastStageSettings, Tag("<table>")],
    Discriminator(_heads_as),
]


InitSettings = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[tuple[str, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(one_or_list),
]


class StudentSettings(Section):
    """`[student]`: its body and heads."""

    model: ModelSpec | None = Field(None, description="A timm name or a factory; its output is (B, F).")
    kwargs: dict[str, Any] = Field({}, description="Keyword arguments of the model or factory.")
    init: InitSettings | None = Field(
        None, description='Start the body from this member; a list such as ["member-*"] puts several side by side.'
    )
    heads: HeadSettings = Field(
        (),
        description='Hidden sizes of each head; empty means linear. "last-stage" gives each head its own last stage.',
    )
    compress: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of its parameters that a body from student.init keeps, as products of thin layers.",
    )
    share: dict[str, str] = Field(
        {},
        description="STUDENT=TEACHER: copy this module from the teacher and freeze it; head is the output layer.",
    )
    tied: str | None = Field(
        None, min_length=1, description="The body's embedding that also serves as the output layer of every head."
    )
    preprocessing: PreprocessingSettings | None = Field(None, description="Default: the first member's.")

    @property
    def from_members(self) -> bool:
        """Whether bodies and heads start from a list of members, rather than one body from a single member."""
        return isinstance(self.init, tuple)

    @property
    def starts_near(self) -> bool:
        """Whether the start contains something of every member: from patterns, compressed bodies or last stages.

        A start from the whole bodies of members listed by name contains nothing of the others.
        """
        whole = isinstance(self.heads, tuple) and not self.compresses
        return isinstance(self.init, tuple) and (not whole or any(set(name) & set("*?[") for name in self.init))

    @property
    def compresses(self) -> bool:
        """Whether bodies, or the heads' last stages, are compressed at the start."""
        return self.compress is not None or getattr(self.heads, "compress", None) is not None


class CacheSettings(Section):
    """`[cache]`: how the members' outputs are computed and stored."""

    dtype: Literal["float16", "float32"] | None = Field(
        None, description="Storage type; default float16 for classification, float32 for other tasks."
    )
    batch_size: int = Field(256, ge=1, le=MOST_ROWS, description="Rows in a forward pass of the members.")
    records: Literal["auto", "dense", "sampled"] = Field(
        "auto",
        description="For training rows, keep all classes (dense) or drawn ones (sampled); auto keeps all up to 16 GiB.",
    )
    samples: int = Field(12, ge=2, le=MOST_DRAWN, description="Classes drawn for each row or position.")
    decoded: bool = Field(False, description="Keep decoded pictures in the cache and read them from there.")
    check_labels: bool = Field(
        True,
        description="Refuse members whose answers contradict the labels (class order, unit or vocabulary); "
        "false only warns.",
    )


class TrainSettings(Section):
    """`[train]`: training, with timm's names where timm has them."""

    method: ModelSpec = Field("hydra", description="The method; edistill methods lists them.")
    generations: int | None = Field(
        None, ge=1, le=1000, description="Train a chain of this many students, each learning from the one before."
    )
    teacher: str | None = Field(None, description="Learn from this member only; default all members.")
    epochs: int | None = Field(
        None,
        ge=0,
        le=MOST_EPOCHS,
        description="Passes over the training rows; default enough for 3,000 steps, between 20 and 1,000. 0 "
        "keeps the closed-form solution.",
    )
    effort: Literal["quick", "default", "patient"] = Field(
        "default", description="Instead of epochs: a quarter of the default number, the default, or four times as many."
    )
    batch_size: int = Field(128, ge=1, le=MOST_ROWS, description="Rows in a step.")
    workers: int | None = Field(
        None, ge=0, le=256, description="Loader processes; default chosen by a short trial, up to 8 on a GPU."
    )
    opt: str = Field("adamw", description="A timm optimizer.")
    lr: float | None = Field(
        None,
        gt=0,
        le=FAR,
        description="Peak learning rate; default 0.001, or 0.0001 when starting from all members (student.init).",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="For optimizers that have one; 0 with sgd is plain SGD.")
    sched: Literal["cosine", "tanh", "poly", "plateau", "none"] = Field(
        "cosine",
        description="A timm schedule over each stage, stepped every update; plateau watches the validation rows.",
    )
    decay_rate: float = Field(0.1, gt=0, lt=1, description="Plateau: factor that the rate is multiplied by.")
    patience_epochs: int = Field(
        10, ge=0, le=MOST_EPOCHS, description="Plateau: epochs without improvement before the rate drops."
    )
    plateau_threshold: float = Field(
        0.0,
        ge=0,
        le=LARGE,
        description="Plateau: smallest improvement that counts, in perplexity for language models, else in nats.",
    )
    warmup_epochs: float = Field(0.0, ge=0, le=MOST_EPOCHS, description="Epochs of linear warmup in each stage.")
    weight_decay: float = Field(0.01, ge=0, le=LARGE, description="Weight decay.")
    clip_grad: float | None = Field(None, gt=0, le=1e12, description="Clip gradients to this norm.")
    freeze_bn: bool | None = Field(
        None, description="Freeze the body's BatchNorm statistics; default on when student.init copies a member's."
    )
    channels_last: bool = Field(
        False, description="Use the channels-last memory format, which can make convolutions faster."
    )
    torchcompile: str | None = Field(
        None, description="Compile the student's body with torch.compile and this backend, usually inductor."
    )
    amp: bool = Field(False, description="Mixed precision.")
    amp_dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="Lower precision used with amp.")
    model_ema: bool = Field(
        False, description="Keep an exponential moving average of the weights; it becomes the student."
    )
    model_ema_decay: float = Field(
        0.999, gt=0, lt=1, description="Decay of the moving average per step, after a warm-up."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps or auto.")
    seed: int = Field(0, ge=0, lt=SEED, description="Seed of the student's weights and of the row order.")
    checkpoint_minutes: float = Field(5.0, gt=0, le=LARGE, description="Save a checkpoint this often within an epoch.")
    peer_timeout: float = Field(
        120.0,
        ge=1,
        le=LARGE,
        description="Under torchrun: seconds without a sign of life from a process before the job ends.",
    )


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class OutputSettings(Section):
    """`[output]`: where results are written."""

    cache: PathText = Field("cache", validate_default=True, description="Folder of the cache.")
    runs: PathText = Field("runs", validate_default=True, description="Folder of the runs.")
    name: Annotated[str, AfterValidator(file_name)] | None = Field(
        None, description="Name of the run; default METHOD-sSEED."
    )
    log: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (), description="Also log training metrics to jsonl, tensorboard, wandb or mlflow, or a list of them."
    )


def _known_task(key: str) -> str:
    if key not in task_names():
        raise ValueError(f"it should be {' or '.join(task_names())}")
    return key


class Settings(Section):
    """The whole file; its place is not part of it, since paths are absolute."""

    task: Annotated[str, AfterValidator(_known_task)] = Field(
        "classification",
        description="Or multi-label (several labels per row), regression (one target or several), or "
        "language-modelling (one class per position).",
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=2**31,
        description="Trial run: at most N evenly spaced rows of each split; results go to folders ending in -limit-N.",
    )
    teachers: TeacherSettings = Field(default_factory=lambda: TeacherSettings.model_validate({}))
    data: SplitSettings = Field(default_factory=lambda: SplitSettings.model_validate({}))
    tokens: TokenSettings = Field(default_factory=lambda: TokenSettings.model_validate({}))
    views: ViewSettings = Field(default_factory=lambda: ViewSettings.model_validate({}))
    student: StudentSettings = Field(default_factory=lambda: StudentSettings.model_validate({}))
    cache: CacheSettings = Field(default_factory=lambda: CacheSettings.model_validate({}))
    train: TrainSettings = Field(default_factory=lambda: TrainSettings.model_validate({}))
    method: dict[str, Any] = Field({}, description="The method's own options; edistill methods lists them.")
    output: OutputSettings = Field(default_factory=lambda: OutputSettings.model_validate({}))

    def splits(self) -> dict[str, DataSettings]:
        """Every configured split by name, training first, including `ood/NAME` and the split that teachers.folds
        makes."""
        named = {name: self.data.all if name in self.data.portions else getattr(self.data, name) for name in SPLITS}
        if self.teachers.folds is not None:
            named[HELD_OUT] = named["train"]
        named |= {f"ood/{name}": entry for name, entry in self.data.ood.items()}
        return {name: entry for name, entry in named.items() if entry is not None}
