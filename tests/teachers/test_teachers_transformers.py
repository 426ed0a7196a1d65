"""Folders of transformers as members: what their files say, and what is refused of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from text_helpers import (
    CLASSES,
    LENGTH,
    a_text_folder,
    bert,
    needs_transformers,
    quiet,
    save_tokenizer,
    texts,
    tokenizer,
)

from ensemble_distill.data.rows import plain_input, plain_inputs
from ensemble_distill.data.source import Item
from ensemble_distill.data.texts import Texts
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing, Tokenization
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers import kind_of, open_teachers
from ensemble_distill.teachers.image_processors import from_processor
from ensemble_distill.teachers.teacher import Context, Teacher

transformers = needs_transformers()
TEXTS = [*texts(8)[0], "", "a dog " * 30]


def listed(
    path: Path, names: tuple[str, ...] | None = CLASSES, trust: bool = False, task: str = "classification", **said: Any
) -> Teacher:
    section = TeacherSettings.model_validate(said)
    (teacher,) = open_teachers(path, Context(section, names=names, trust=trust, task=task))
    return teacher


def edit(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (record | changes).items() if value is not ...}))


def said(teacher: Teacher, rows: list[str] = TEXTS) -> np.ndarray[Any, Any]:
    asked = teacher.open(Classification)
    assert asked.wants is not None
    x = torch.from_numpy(plain_inputs(Texts(rows, None, None), range(len(rows)), asked.wants.preprocessing))
    return asked.answers("train", range(len(rows)), x)


# --- sequence classifiers -------------------------------------------------------------------------------------------


def test_it_says_what_transformers_says_by_its_own_tokenizer(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    teacher = listed(path)
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
        opened = transformers.AutoTokenizer.from_pretrained(path)
        wanted = []
        for text in TEXTS:  # each alone and without any padding: the mask is honored where these are the same
            given = opened(text, truncation=True, max_length=LENGTH, return_tensors="pt")
            wanted.append(model(**given).logits[0])
    logits = torch.stack(wanted)
    found = said(teacher)
    np.testing.assert_allclose(found - found.max(1, keepdims=True), logits - logits.amax(1, keepdim=True), atol=1e-5)
    assert np.ptp(found, axis=0).min() > 0.1
    assert teacher.member.model == "transformers BertForSequenceClassification"


def test_its_ids_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    to = listed(path).member.preprocessing
    assert isinstance(to, Tokenization)
    assert (to.length, to.fields, to.pad) == (LENGTH, ("input_ids", "attention_mask"), 0)
    with quiet():
        opened = transformers.AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        given = opened(text, truncation=True, padding="max_length", max_length=LENGTH)
        x = plain_input(Texts([text], None, None).item(0), to)
        assert x.tolist() == [given["input_ids"], given["attention_mask"]]


def test_length_is_as_the_settings_say_else_as_the_files_do(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)

    def length(**settings: Any) -> int:
        to = listed(path, **settings).member.preprocessing
        assert isinstance(to, Tokenization)
        return to.length

    assert length() == LENGTH
    assert length(preprocessing={"length": 7}) == 7
    edit(path / "tokenizer_config.json", model_max_length=10**30)
    assert length() == 16  # as many as there are positions


def test_classes_go_by_their_names_and_placeholders_by_their_order(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    plain = said(listed(path))
    assert listed(path).member.class_order is None
    turned = listed(path, names=("owl", "cat", "dog"))
    assert turned.member.class_order is not None
    np.testing.assert_allclose(said(turned), plain[:, [2, 0, 1]], atol=1e-6)
    with pytest.raises(EdistillError, match=r"(?s)id2label.*cow|cow.*id2label"):
        listed(path, names=("cat", "cow", "owl"))
    edit(path / "config.json", id2label={str(k): f"LABEL_{k}" for k in range(3)})
    assert listed(path, names=("owl", "cat", "dog")).member.class_order is None
    edit(path / "config.json", id2label={"0": "cat", "2": "owl", "3": "dog"})
    with pytest.raises(EdistillError, match=r"id2label for 0, 2, 3.*numbered from 0"):
        listed(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_the_hash_changes_with_every_file(tmp_path: Path, name: str) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    before = listed(path).member.sha256
    file = path / name
    file.write_text((file.read_text() if file.is_file() else "") + "\n")
    teacher = listed(path)
    assert teacher.member.sha256 != before
    file.write_text(file.read_text() + "\n")
    with pytest.raises(EdistillError, match="has changed since it was listed"):
        teacher.build()


def test_two_folders_of_the_same_weights_are_one_member(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    shutil.copytree(path, tmp_path / "n")
    (tmp_path / "n/config.json").write_text((tmp_path / "n/config.json").read_text() + "\n")
    with pytest.raises(EdistillError, match="m and n hold the same weights"):
        open_teachers(tmp_path, Context(TeacherSettings(), names=CLASSES))  # type: ignore[call-arg]


def test_members_of_several_tokenizers_are_each_asked_with_their_own(tmp_path: Path) -> None:
    a_text_folder(tmp_path / "a", 0)
    a_text_folder(tmp_path / "b", 0, extra=("one", "two"))
    both = open_teachers(tmp_path, Context(TeacherSettings(), names=CLASSES))  # type: ignore[call-arg]
    encodings = [teacher.member.preprocessing for teacher in both]
    assert encodings[0] != encodings[1]
    for teacher in both:
        assert said(teacher).shape == (len(TEXTS), 3)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("DistilBert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}),
        ("Roberta", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}),
        ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}),
    ],
)
def test_other_architectures_answer_alike_alone_and_in_a_batch(
    tmp_path: Path, kind: str, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    with quiet():
        tokens = save_tokenizer(tmp_path / "m")
        config = getattr(transformers, f"{kind}Config")(vocab_size=tokens, num_labels=3, initializer_range=0.3, **sizes)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path / "m")
    teacher = listed(tmp_path / "m", preprocessing={"length": LENGTH})
    together = said(teacher)
    alone = np.concatenate([said(teacher, [text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    assert np.ptp(together, axis=0).min() > 1e-3


# --- what is refused ------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    file = path / "model.safetensors"
    state = load_file(file)
    lacking = {name: tensor for name, tensor in state.items() if name != "classifier.weight"}
    for changed, told in (
        (lacking, "missing from the weights: classifier.weight"),
        (state | {"more": torch.zeros(2)}, "not in the module: more"),
        (state | {"classifier.bias": torch.zeros(5)}, "of another shape: classifier.bias"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(EdistillError, match=f"m does not fit its module.*{told}.*config.json"):
            listed(path).build()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM.*ForSequenceClassification"),
        ({"architectures": [3]}, r"architectures \[3\]"),
        ({"architectures": ["NoForSequenceClassification"]}, "NoForSequenceClassification.*does not have"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1,000,000,000.*tensors of weights"),
        ({"hidden_size": 2**20, "num_attention_heads": 1}, "asks for [0-9,]+ weights, and there are"),
        ({"intermediate_size": -4}, "config.json"),
        ({"id2label": "cat"}, "id2label"),
        ({"problem_type": "multi_label_classification"}, 'problem_type.*task = "multi-label"'),
        ({"auto_map": {"AutoModel": "mine.Mine"}}, "code of its own.*mine.Mine.*--trust-checkpoints"),
        ({"model_type": "no-such"}, "config.json"),
    ],
)
def test_a_config_that_says_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    edit(path / "config.json", **changes)
    with pytest.raises(EdistillError, match=rf"(?s){told}"):
        listed(path).build()


def test_a_member_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with quiet():
        bert(30, 0).save_pretrained(tmp_path / "m")
    with pytest.raises(EdistillError, match=r"m has no tokenizer.*save_pretrained"):
        listed(tmp_path / "m")
    (tmp_path / "m/tokenizer_config.json").write_text(
        '{"model_max_length": 12}'
    )  # of which a library makes an empty one
    with pytest.raises(EdistillError, match=r"m has no tokenizer.*save_pretrained"):
        listed(tmp_path / "m")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_tokenizer_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    (path / name).touch()
    os.truncate(path / name, 2**31)  # a hole, which takes no disk
    with pytest.raises(EdistillError, match=f"{name} has 2,147,483,648 bytes"):
        listed(path)


def test_code_of_the_folder_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    mark = tmp_path / "mark"
    (path / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    edit(path / "config.json", auto_map={"AutoConfig": "mine.Mine"}, model_type="mine")
    with pytest.raises(EdistillError):
        listed(path)
    assert not mark.exists()


def test_weights_in_several_files_stand_beside_their_index(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    whole = listed(path)
    wanted = said(whole)
    state = load_file(path / "model.safetensors")
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, of in parts.items():
        save_file({name: state[name] for name in of}, path / part)
    (path / "model.safetensors").unlink()
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, of in parts.items() for name in of}}))
    assert listed(path).member.sha256 == whole.member.sha256
    np.testing.assert_allclose(said(listed(path)), wanted, atol=1e-6)
    for part, told in (("../model-1.safetensors", "outside its folder"), ("model-3.safetensors", "not there")):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, part)}))
        with pytest.raises(EdistillError, match=f"{part}.*{told}"):
            listed(path)
    index.write_text("[]")
    with pytest.raises(EdistillError, match="no weight_map"):
        listed(path)


# --- pictures -------------------------------------------------------------------------------------------------------

BOTH = ((64, 48), (33, 50))
PROCESSORS = {
    "squeezed": {"size": {"height": 24, "width": 20}, "resample": 2},
    "cropped": {"size": {"shortest_edge": 28}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
    "plain": {"size": {"height": 24, "width": 24}, "do_normalize": False, "resample": 3},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_pictures_are_prepared_as_the_processor_does(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torchvision", reason="transformers' processors need torchvision")
    record = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2, **PROCESSORS[name]}
    kind = "CLIPImageProcessor" if name == "cropped" else "ViTImageProcessor"
    with quiet():
        processor = getattr(transformers, kind)(**record, **({"do_convert_rgb": False} if name == "cropped" else {}))
        processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    to = Preprocessing(**from_processor(file, json.loads(file.read_text())))
    rng = np.random.default_rng(0)
    for height, width in BOTH:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        with quiet():
            wanted = processor(pixels, return_tensors="np")["pixel_values"][0]
        found = plain_input(Item(pixels, None, "pixels"), to)
        assert found.shape == wanted.shape
        level = 1 / 255 / min(to.std)  # resizing rounds to 8 bits, each library in its own way
        assert np.abs(found - wanted).max() <= 2.1 * level
        assert np.abs(found - wanted).mean() <= 0.5 * level


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0"),
        ({"size": {"longest_edge": 9, "shortest_edge": 3}, "do_center_crop": False, "image_mean": "x"}, "image_mean"),
        ({"size": {"shortest_edge": 3}}, "size"),
        ([], "not a table"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(record: Any, told: str) -> None:
    with pytest.raises(EdistillError, match=told):
        from_processor(Path("preprocessor_config.json"), record)


def test_a_processor_of_convnext_crops_small_pictures() -> None:
    file = Path("preprocessor_config.json")
    moments = {"image_mean": [0.5], "image_std": [0.5], "crop_pct": 0.875}
    small = from_processor(file, {"size": {"shortest_edge": 224}, **moments})
    assert (small["size"], small["crop_mode"]) == ((224, 224), "center")
    assert int(224 / small["crop_pct"]) == 256
    large = from_processor(file, {"size": {"shortest_edge": 384}, **moments})
    assert (large["size"], large["crop_mode"], large["crop_pct"]) == ((384, 384), "squash", 1.0)


@pytest.mark.thorough
def test_an_image_classifier_and_a_model_of_timm_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: k for k, name in enumerate(CLASSES)}}
    with quiet():
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(image_size=16, patch_size=8, **sizes, **names)
        vit = transformers.ViTForImageClassification(config).eval()
        vit.save_pretrained(tmp_path / "vit")
        processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(processor))
        wrapped = transformers.TimmWrapperConfig(architecture="test_resnet", **names)
        wrapped.pretrained_cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        timm = transformers.TimmWrapperForImageClassification(wrapped).eval()
        timm.save_pretrained(tmp_path / "timm")
    for name, model, side in (("vit", vit, 16), ("timm", timm, 32)):
        teacher = listed(tmp_path / name)
        assert isinstance(teacher.member.preprocessing, Preprocessing)
        assert teacher.member.preprocessing.size == (side, side)
        x = torch.randn(4, 3, side, side)
        asked = teacher.open(Classification)
        found = asked.answers("train", range(4), x)
        with torch.no_grad():
            wanted = model(x).logits
        np.testing.assert_allclose(
            found - found.max(1, keepdims=True), wanted - wanted.amax(1, keepdim=True), atol=1e-4
        )


def test_a_folder_of_timm_alone_is_still_timm_s(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    kind = kind_of(tmp_path)
    assert kind is not None
    assert kind.__name__.endswith("hf_folder")  # type: ignore[attr-defined]


def test_the_tokenizer_is_the_file_s_own_text(tmp_path: Path) -> None:
    path = a_text_folder(tmp_path / "m", 0)
    to = listed(path).member.preprocessing
    assert isinstance(to, Tokenization)
    assert to.tokenizer.content == (path / "tokenizer.json").read_text()
    assert json.loads(to.tokenizer.content)["model"] == json.loads(tokenizer().to_str())["model"]
