"""A missing or malformed file names itself, the record and the field, in one line."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.tasks.fixtures import WRITERS


def complaint(name: str, root: pathlib.Path, split: str = "") -> str:
    with pytest.raises(InputError) as error:
        benchmarks.load(name, root, split)
    said = str(error.value)
    assert "\n" not in said
    return said


NEEDED = [
    (name, need.key)
    for name, entry in benchmarks.ENTRIES.items()
    for need in entry.needed(entry.splits[0])
    if not need.optional
]


@pytest.mark.parametrize(("name", "key"), NEEDED, ids=[f"{n}-{k}" for n, k in NEEDED])
def test_missing(name: str, key: str, tmp_path: pathlib.Path) -> None:
    WRITERS[name](tmp_path)
    files = benchmarks.Files(benchmarks.entry(name), tmp_path)
    found = files.find(key)
    assert found is not None
    folder = found.parent if "{" in found.name else found
    folder.rename(folder.with_name("moved"))
    if name == "custom" and key == "all.pictures":
        pytest.skip("without the folder `media`, names are looked up beside the lines")
    said = complaint(name, tmp_path)
    entry = benchmarks.entry(name)
    [need] = [need for need in entry.needs if need.key == key]
    assert said.startswith(f"{entry.title} needs the ") and need.source in said
    assert str(files.candidates(key)[0]) in said


def edit(path: str, change: Callable[[Any], Any]) -> Callable[[pathlib.Path], None]:
    """Changes a JSON file."""

    def apply(root: pathlib.Path) -> None:
        file = root / path
        value = json.loads(file.read_text(encoding="utf-8"))
        value = change(value) or value
        file.write_text(json.dumps(value), encoding="utf-8")

    return apply


def replace(path: str, old: str, new: str) -> Callable[[pathlib.Path], None]:
    """Changes a text file."""

    def apply(root: pathlib.Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return apply


def drop(*keys: Any) -> Callable[[Any], None]:
    """Takes out what lies at a path of keys."""

    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


def store(new: Any, *keys: Any) -> Callable[[Any], None]:
    """Puts something else where a path of keys leads."""

    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return change


NUMBER, CAPTIONS = 7, "coco/annotations/captions_val2014.json"
BROKEN: list[tuple[str, str, Callable[[pathlib.Path], None], str]] = [
    ("coco", "", edit("coco/dataset_coco.json", drop("images", 4, "sentences")),
     "dataset_coco.json: images[4] has no field 'sentences'; it should be a list"),
    ("coco", "", edit("coco/dataset_coco.json", store(NUMBER, "images", 0, "split")),
     "images[0]: field 'split' is the number 7, not a text"),
    ("coco", "", edit("coco/dataset_coco.json", store("../../x.jpg", "images", 0, "filename")),
     "images[0]: '../../x.jpg' leads out of "),
    ("coco", "", edit("coco/dataset_coco.json", store("/etc", "images", 0, "filepath")),
     "images[0]: field 'filepath' is '/etc', not one of train2014, val2014"),
    ("coco", "", edit("coco/dataset_coco.json", store([], "images", 0, "sentences")),
     "images[0]: 'sentences' is empty"),
    ("coco", "", edit("coco/dataset_coco.json", lambda value: value["images"]),
     "dataset_coco.json is a list, not a record of named fields"),
    ("coco", "", replace("coco/dataset_coco.json", "{", ""), "dataset_coco.json is not JSON: "),
    ("coco", "val2014", edit(CAPTIONS, store(99, "annotations", 0, "image_id")),
     "captions_val2014.json: annotations name image_id 99, which 'images' lacks"),
    ("flickr30k", "", edit("flickr30k/dataset_flickr30k.json", drop("images", 0, "filename")),
     "images[0] has no field 'filename'"),
    ("nocaps", "", edit("nocaps/nocaps_val_4500_captions.json", drop("images", 1, "file_name")),
     "nocaps_val_4500_captions.json: images[1] has no field 'file_name'"),
    ("vqav2", "", edit("vqav2/v2_mscoco_val2014_annotations.json", drop("annotations", 0)),
     "v2_OpenEnded_mscoco_val2014_questions.json: questions[3]: question_id 4001 has no record in"),
    ("vqav2", "", edit("vqav2/v2_OpenEnded_mscoco_train2014_questions.json",
                       store("1", "questions", 0, "image_id")), ""),  # a number all the same
    ("vqav2", "", edit("vqav2/v2_OpenEnded_mscoco_train2014_questions.json",
                       store(1.5, "questions", 0, "image_id")),
     "questions[0]: field 'image_id' is the number 1.5, not a whole number"),
    ("okvqa", "", edit("okvqa/mscoco_train2014_annotations.json",
                       drop("annotations", 2, "answers", 3, "answer")),
     "annotations[2]: answers[3] has no field 'answer'"),
    ("textvqa", "", edit("textvqa/TextVQA_0.5.1_val.json", store(["a", 3], "data", 0, "answers")),
     "TextVQA_0.5.1_val.json: data[0]: answers[1] is the number 3, not a text"),
    ("textcaps", "", edit("textcaps/TextCaps_0.1_val.json", drop("data", 3, "caption_str")),
     "data[3] has no field 'caption_str'"),
    ("vizwiz", "", edit("vizwiz/annotations/val.json", store("..", 0, "image")),
     "val.json: record 0: '..' leads out of "),
    ("vizwiz", "", edit("vizwiz/annotations/val.json", store({}, 0, "question")),
     "val.json: record 0: field 'question' is a record, not a text"),
    ("visdial", "", edit("visdial/visdial_1.0_val.json",
                         store(4, "data", "dialogs", 0, "dialog", 1, "answer")),
     "visdial_1.0_val.json.data: dialogs[0]: dialog[1]: field 'answer' is 4; there are 4 texts"),
    ("visdial", "", edit("visdial/visdial_1.0_val_dense_annotations.json",
                         store([1], 0, "gt_relevance")),
     "record 0: 1 grades and gt_index 1 for 4 answers"),
    ("visdial", "", edit("visdial/visdial_1.0_val_dense_annotations.json", store(4, 0, "round_id")),
     "dialogs[0]: 'dialog' has 3 rounds, 4 are needed"),
    ("visdial", "", edit("visdial/visdial_1.0_val_dense_annotations.json", store(1, 0, "image_id")),
     "record 0: there is no round 3 of image_id 1 in the dialogues"),
    ("hateful_memes", "", replace("hateful_memes/test_seen.jsonl", '"label": 1', '"label": 2'),
     "test_seen.jsonl, line 2: field 'label' is 2, not 0 or 1"),
    ("hateful_memes", "", replace("hateful_memes/train.jsonl", '"img/', '"img/../'),
     "train.jsonl, line 1: '../42953.png' leads out of "),
    ("msvdqa", "", edit("msvdqa/test_qa.json", drop(0, "answer")),
     "test_qa.json: record 0 has no field 'answer'"),
    ("msrvttqa", "", edit("msrvttqa/train_qa.json", lambda value: {"all": value}),
     "train_qa.json is a record, not a list of records"),
    ("ivqa", "", replace("ivqa/test.csv", "answer3", "anwer3"),
     "test.csv has no column 'answer3'; its first line is "),
    ("ivqa", "", replace("ivqa/test.csv", "9.5", "x"),
     "test.csv, line 2: field 'end' is a text ('x'), not a number"),
    ("ivqa", "", replace("ivqa/test.csv", "9.5", "2"),
     "test.csv, line 2: start 3 and end 2 are no part of a clip"),
    ("vatex", "", edit("vatex/vatex_training_v1.0.json", store("abc", 1, "videoID")),
     "record 1: field 'videoID' is 'abc', not an id and two times"),
    ("vatex", "", edit("vatex/vatex_training_v1.0.json", store([], 1, "enCap")),
     "record 1: 'enCap' has 0 texts, not 1 or more"),
    ("youcook2", "", edit("youcook2/youcookii_annotations_trainval.json",
                          store("test", "database", "fn9anlEL4FI", "subset")),
     ".database: 'fn9anlEL4FI': field 'subset' is 'test', not one of training, validation"),
    ("youcook2", "", edit("youcook2/youcookii_annotations_trainval.json",
                          store([5, "x"], "database", "fn9anlEL4FI", "annotations", 0, "segment")),
     "annotations[0]: 'segment': field '1' is a text ('x'), not a number"),
    ("star", "", edit("star/STAR_val.json", store("The sofa.", 0, "answer")),
     "STAR_val.json: record 0: field 'answer' is 'The sofa.', which is not one of 'choices'"),
    ("star", "", edit("star/STAR_val.json", drop(1, "start")), "record 1 has no field 'start'"),
    ("nextqa", "", replace("nextqa/test.csv", "to catch", ""),
     "test.csv, line 2: field 'answer' is empty"),
    ("nextqa_choice", "", replace("nextqa_choice/test.csv", ",0,DL", ",DL"),
     "test.csv, line 2 has 12 cells, the first 13"),
    ("nextqa_choice", "", replace("nextqa_choice/train.csv", "where is this,0", "where is this,5"),
     "train.csv, line 2: column 'answer' is 5, not from 0 to 4"),
    ("rareact", "", replace("rareact/rareact.csv", "1,7frRY7aGwMU,60,70,0,hammer",
                            "1,7frRY7aGwMU,60,70,0,drill"),
     "rareact.csv, line 3: class_id 0 is 'drills a phone' here and 'hammers a phone' before"),
    ("rareact", "", replace("rareact/rareact.csv", "gone,20,30,2", "gone,20,30,4"),
     "class_id has gaps: 3 classes, up to 4"),
    ("imagenet", "", replace("imagenet/LOC_val_solution.csv", "n01440764", "n99"),
     "ILSVRC2012_val_00000002.JPEG is of class 'n99', which "),
    ("imagenet", "", replace("imagenet/LOC_val_solution.csv", "00000002,", "00000003,"),
     "has no class for the picture 'ILSVRC2012_val_00000002.JPEG'"),
    ("imagenet", "", replace("imagenet/LOC_synset_mapping.txt", " tench, Tinca tinca", ""),
     "LOC_synset_mapping.txt: 'n01440764' is not a WordNet id and a name"),
    ("kinetics700", "", replace("kinetics700/annotations/val.csv", "abseiling", "juggling"),
     "val.csv, line 2: column 'label' is 'juggling', which no training clip has"),
    ("kinetics700", "", replace("kinetics700/annotations/val.csv", "141", "1e"),
     "val.csv, line 2: field 'time_end' is a text ('1e'), not a number"),
    ("scienceqa", "", edit("scienceqa/problems.json", store(2, "3", "answer")),
     "problems.json: '3': field 'answer' is 2, not from 0 to 1"),
    ("scienceqa", "", edit("scienceqa/problems.json", store("../x", "3", "split")),
     "'../x/3/image.png' leads out of "),
    ("scienceqa", "", edit("scienceqa/pid_splits.json", store(["9"], "test")),
     "pid_splits.json: 'test' names the problem '9', which problems lack"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "change", "expected"),
    BROKEN,
    ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)],
)
def test_malformed(name, split, change, expected, tmp_path) -> None:
    WRITERS[name](tmp_path)
    change(tmp_path)
    if not expected:
        benchmarks.load(name, tmp_path, split)
        return
    said = complaint(name, tmp_path, split)
    assert expected in said
    assert str(tmp_path) in said


def test_every_benchmark_is_malformed_here() -> None:
    assert {case[0] for case in BROKEN} == set(benchmarks.ENTRIES) - {"custom", "coco_tfds"}


def test_no_clip_is_there(tmp_path: pathlib.Path) -> None:
    WRITERS["star"](tmp_path)
    for path in (tmp_path / "star/Charades_v1_480").iterdir():
        path.unlink()
    assert "none of the 4 clips that the annotations name is in " in complaint("star", tmp_path)


def test_an_id_twice(tmp_path: pathlib.Path) -> None:
    WRITERS["vizwiz"](tmp_path)
    edit("vizwiz/annotations/val.json", lambda value: value * 2)(tmp_path)
    said = complaint("vizwiz", tmp_path)
    assert said == "VizWiz: two records have the id 'VizWiz_val_00000000.jpg'"


def test_an_empty_split(tmp_path: pathlib.Path) -> None:
    WRITERS["vizwiz"](tmp_path)
    (tmp_path / "vizwiz/annotations/val.json").write_text("[]", encoding="utf-8")
    assert "has nothing in its split 'val'" in complaint("vizwiz", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff\xfe", "is not UTF-8: "),
        (b"[" * 100_000, "is not JSON: "),
        (b'[{"image": "\\ud83d", "question": "b"}]', "field 'image' is no Unicode text"),
        (b'\xef\xbb\xbf[{"image": "a.jpg", "question": "b"}]', "record 0 has no field 'answers'"),
        (b"[NaN]", "record 0 is the number nan, not a record"),
    ],
)
def test_odd_bytes(text: bytes, expected: str, tmp_path: pathlib.Path) -> None:
    WRITERS["vizwiz"](tmp_path)
    (tmp_path / "vizwiz/annotations/train.json").write_bytes(text)
    assert expected in complaint("vizwiz", tmp_path)
