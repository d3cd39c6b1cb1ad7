"""Every benchmark from its authors' files to prompts."""

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.prompt import Video, lay_out
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CHOICE, METRICS
from flamingo_jax.eval.protocol import presets, splits
from flamingo_jax.eval.protocol.prompts import Asker
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.tasks.fixtures import WRITERS

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_there_is_a_fixture_for_every_benchmark() -> None:
    assert set(WRITERS) == set(benchmarks.ENTRIES)
    assert len(benchmarks.SIXTEEN) == 16
    for entry in benchmarks.ENTRIES.values():
        assert entry.metric in METRICS and entry.splits and entry.page
        keys = [need.key for need in entry.needs]
        assert len(set(keys)) == len(keys)


# name, split, examples of support and queries, left out; of the first query: key, medium's name,
# references; the whole first prompt of one shot (none for RareAct) as Flamingo asks it.
READ: list[tuple[Any, ...]] = [
    ("coco", "", 3, 2, 0, "5", "COCO_val2014_000000000005.jpg",
     (" A thing 5, test. ", "Thing 5 again."), "<image>Output: {0}<EOC><image>Output:"),
    ("coco", "val2014", 3, 2, 0, "4", "COCO_val2014_000000000004.jpg",
     ("Caption 0 of 4.", "Caption 1 of 4."), "<image>Output: {0}<EOC><image>Output:"),
    ("flickr30k", "val", 3, 1, 0, "1007", "1007.jpg",
     (" A thing 7, val. ", "Thing 7 again."), "<image>Output: {0}<EOC><image>Output:"),
    ("nocaps", "", 3, 2, 0, "0", "0013ea2087020901.jpg", ("a novel object 0",),
     "<image>Output: {0}<EOC><image>Output:"),
    ("textcaps", "", 2, 2, 0, "val0000000000000", "val0000000000000.jpg",
     ("A sign.", "Sign 0 says stop."), "<image>Output: A sign.<EOC><image>Output:"),
    ("textcaps", "test", 2, 1, 0, "test0000000000000", "test0000000000000.jpg", (),
     "<image>Output: A sign.<EOC><image>Output:"),
    ("vqav2", "", 4, 4, 0, "3000", "COCO_val2014_000000000003.jpg",
     ("one", *["two"] * 6, *["three"] * 3),
     "<image>Question: {q} Answer: two<EOC><image>Question: What is 3000? Answer:"),
    ("vqav2", "test-dev", 4, 4, 0, "5000", "COCO_test2015_000000000005.jpg", (),
     "<image>Question: {q} Answer: two<EOC><image>Question: What is 5000? Answer:"),
    ("okvqa", "", 4, 4, 0, "3000", "COCO_val2014_000000000003.jpg",
     ("one", *["two"] * 6, *["three"] * 3),
     "<image>Question: {q} Answer: two<EOC><image>Question: What is 3000? Answer:"),
    ("textvqa", "", 2, 1, 0, "34902", "val0000000000000.jpg", ("stop",) * 6 + ("STOP",) * 4,
     "<image>Question: what does the sign say? Answer: stop<EOC>"
     "<image>Question: what does the sign say? Answer:"),
    ("vizwiz", "", 3, 1, 0, "VizWiz_val_00000000.jpg", "VizWiz_val_00000000.jpg",
     ("", "unanswerable", "cup", "cup", *["mug"] * 6),
     "<image>Question: What is this? Answer: mug<EOC><image>Question: What is this? Answer:"),
    ("visdial", "", 2, 1, 0, "185#3", "VisualDialog_val2018_000000000185.jpg", ("brown",),
     "<image>{context} Question: is it sunny? Answer: yes Question: is there a dog? Answer: no "
     "Question: what color is it? Answer: brown<EOC>"
     "<image>picture 185 Question: is it sunny? Answer: yes Question: is there a dog? Answer: no "
     "Question: what color is it? Answer:"),
    ("hateful_memes", "", 2, 2, 0, "16395", "16395.png", ("no",),
     '<image>is an image with written: "its {{their}} \'x\'" on it. Is it hateful? Answer: {label}'
     '<EOC><image>is an image with written: "its {{their}} \'x\'" on it. Is it hateful? Answer:'),
    ("msvdqa", "", 3, 2, 1, "test/700", "y7-_5_15.avi", ("dog",),
     "<image>Question: what is running? Answer: {0}<EOC>"
     "<image>Question: what is running? Answer:"),
    ("msrvttqa", "val", 3, 3, 0, "val/300", "video3.mp4", ("dog",),
     "<image>Question: what is running? Answer: {0}<EOC>"
     "<image>Question: what is running? Answer:"),
    ("ivqa", "", 2, 2, 0, "test/0", "test0.mp4",
     ("spoon", "spoon", "ladle", "a spoon", "big spoon"),
     "<image>Question: What is used? Answer: spoon<EOC><image>Question: What is used? Answer:"),
    ("vatex", "", 2, 2, 1, "e_000122_000132", "e_000122_000132.mp4",
     ("A man runs.", "He is running."), "<image>Output: A man runs.<EOC><image>Output:"),
    ("youcook2", "", 2, 2, 0, "-dh_uGahzYo_0", "-dh_uGahzYo.mkv", ("stir 0",),
     "<image>Output: {0}<EOC><image>Output:"),
    ("star", "", 2, 2, 0, "Interaction_T1_val0", "valV0.mp4", ("The blanket.",),
     "<image>Question: Which object was tidied up by the person? Answer: {0}<EOC>"
     "<image>Question: Which object was tidied up by the person? Answer:"),
    ("star", "test", 2, 2, 0, "Interaction_T1_test0", "testV0.mp4", (),
     "<image>Question: Which object was tidied up by the person? Answer: {0}<EOC>"
     "<image>Question: Which object was tidied up by the person? Answer:"),
    ("nextqa", "", 2, 2, 0, "20_0", "20.mp4", ("to catch",),
     "<image>Question: why did the boy run? Answer: to catch<EOC>"
     "<image>Question: why did the boy run? Answer:"),
    ("nextqa_choice", "", 2, 2, 0, "20_0", "20.mp4", ("mall",),
     "<image>Question: where is this? Answer: {0}<EOC><image>Question: where is this? Answer:"),
    ("rareact", "", 0, 3, 1, "0", "7frRY7aGwMU.mp4", ("hammers a phone",),
     "<image>Caption: a person"),
    ("imagenet", "", 4, 2, 0, "val/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.JPEG",
     ("goldfish",), "<image>Output: {0}<EOC><image>Output:"),
    ("kinetics700", "", 2, 1, 1, "val/cccc_000131_000141", "cccc_000131_000141.mp4",
     ("abseiling",), "<image>Output: {0}<EOC><image>Output:"),
    ("scienceqa", "", 1, 1, 0, "3", "image.png", ("Louisiana",),
     "<image>Question: Which of these is farthest north? Answer: Louisiana<EOC>"
     "<image>Question: Which of these is farthest north? Answer:"),
    ("custom", "", 1, 2, 0, "0", "a.png", ("a cat", "cat", "Cat", "cow"),
     "<image>Question: What is that? Answer: a dog<EOC><image>Question: What is it? Answer:"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "support", "queries", "left_out", "key", "medium", "answers", "prompt"),
    READ,
    ids=[f"{case[0]}{'-' if case[1] else ''}{case[1]}" for case in READ],
)
def test_from_files_to_prompts(
    name, split, support, queries, left_out, key, medium, answers, prompt, tmp_path
) -> None:
    WRITERS[name](tmp_path)
    read = benchmarks.load(name, tmp_path, split)
    assert (len(read.support), len(read.queries), read.left_out) == (support, queries, left_out)
    query = read.queries[0]
    assert (query.key, query.answers) == (key, answers)
    path = query.medium.path if isinstance(query.medium, Video) else query.medium
    assert isinstance(path, pathlib.Path) and path.name == medium and path.is_file()
    assert read.is_scored == bool(answers)
    assert all(pathlib.Path(file.split("{")[0]).parent.exists() for file in read.files)

    protocol = presets.FLAMINGO
    chosen = splits.choose(read, protocol, limit=0)
    asker = Asker(protocol, read, chosen, seed=7)
    [made] = asker.prompts(query, 1 if support else 0)
    shown = {example.key: example for example in (query, *read.support)}
    shot = shown[made.shots[0] if support else query.key]
    assert made.shown() == prompt.format(
        *shot.answers, q=shot.question, context=shot.context, label=shot.label
    )
    # Tokens as `generate` makes them: each text sees the medium before it, nothing is left out.
    laid = lay_out(made.parts, open_tokenizer("bytes"))
    assert len(laid.media) == max(laid.media_of_token) == prompt.count("<image>")
    if read.kind == CHOICE:
        assert len(made.choices) == len(query.choices) and made.choices[0] == f" {query.choices[0]}"
    else:
        assert not made.choices


def of(name: str, tmp_path: pathlib.Path, split: str = ""):
    WRITERS[name](tmp_path)
    return benchmarks.load(name, tmp_path, split)


def test_parts_of_clips(tmp_path: pathlib.Path) -> None:
    videos = {}
    files = {"fn9anlEL4FI": "fn9anlEL4FI.mp4", "-dh_uGahzYo": "-dh_uGahzYo.mkv"}
    for name in ("ivqa", "vatex", "youcook2", "star", "rareact", "custom"):
        read = of(name, tmp_path)
        for example in (*read.support, *read.queries):
            if isinstance(example.medium, Video):
                video = example.medium
                videos[example.key] = (pathlib.Path(video.path).name, video.start, video.end)
    assert videos == {
        "train/0": ("train0.webm", 3.0, 9.5),
        "train/1": ("train1.mp4", 3.0, 9.5),
        "test/0": ("test0.mp4", 3.0, 9.5),
        "test/1": ("test1_3_9.5.mp4", 0.0, None),  # cut already
        "a_b_000010_000020": ("a_b_000010_000020.mp4", 0.0, None),
        "-c_000001_000011": ("-c.mp4", 1.0, 11.0),
        "e_000122_000132": ("e_000122_000132.mp4", 0.0, None),
        "f_000001_000011": ("f_000001_000011.mp4", 0.0, None),
        **{
            f"{video}_{place}": (file, 90.0 + 20 * place, 102.0 + 20 * place)
            for video, file in files.items()
            for place in range(2)
        },
        **{
            f"Interaction_T1_{split}{place}": (f"{split}V{place}.mp4", 11.1, 19.6)
            for split in ("train", "val")
            for place in range(2)
        },
        "0": ("7frRY7aGwMU.mp4", 50.0, 60.0),
        "1": ("c.mp4", 1.0, 2.5),  # of custom, which came last
        "2": ("TLMroVuZ_Nc.mp4", 20.0, 30.0),
    }  # fmt: skip


def test_pictures_in_records(tmp_path: pathlib.Path) -> None:
    read = of("coco_tfds", tmp_path)
    by_key = {query.key: query for query in read.queries}
    assert sorted(by_key) == ["4", "5"] and len(read.support) == 3
    assert by_key["4"].answers == ("é 4.0", "é 4.1")
    chosen = splits.choose(read, presets.FLAMINGO)
    asker = Asker(presets.FLAMINGO, read, chosen, 0)
    [made] = asker.prompts(by_key["4"], 3)
    assert made.parts[-2].convert("RGB").getpixel((0, 0)) == (4, 0, 0)
    pictures = [part for part in made.support if isinstance(part, Image.Image)]
    shades = [np.asarray(picture)[0, 0, 0] for picture in pictures]
    assert [str(shade) for shade in shades] == list(made.shots)
    with pytest.raises(InputError, match=r"'coco_captions' in .* has no split 'val'"):
        benchmarks.load("coco_tfds", tmp_path, "val")


def test_grades_of_visdial(tmp_path: pathlib.Path) -> None:
    read = of("visdial", tmp_path)
    [query] = read.queries
    assert query.choices == ("maybe", "brown", "no", "yes") and query.right == 1
    assert query.relevance == (0.0, 1.0, 0.4, 0.0)
    folders = [pathlib.Path(str(example.medium)).parent.name for example in read.support]
    assert folders == ["train2014", "val2014"]


def test_second_references_of_nextqa(tmp_path: pathlib.Path) -> None:
    queries = of("nextqa", tmp_path).queries
    assert [query.answers for query in queries] == [("to catch",), ("to catch", "catch the ball")]


def test_rareact_ranks_all_classes(tmp_path: pathlib.Path) -> None:
    read = of("rareact", tmp_path)
    assert read.classes == ("hammers a phone", "washes an apple", "fries carrots")
    assert [query.right for query in read.queries] == [0, None, None]
    assert [query.about["annotation"] for query in read.queries] == [1, 0, 2]
    for preset in presets.PRESETS.values():  # there is nothing to take text-only shots from
        chosen = splits.choose(read, preset)
        [made] = Asker(preset, read, chosen, 0).prompts(read.queries[0], 0)
        assert made.shots == () and len(made.choices) == 3


def test_validation_folders_of_imagenet(tmp_path: pathlib.Path) -> None:
    read = of("imagenet", tmp_path)
    assert read.classes == ("tench", "goldfish")
    assert [query.label for query in read.queries] == ["goldfish", "tench"]
    folder = tmp_path / "imagenet"
    (folder / "LOC_val_solution.csv").unlink()
    labels = folder / "imagenet_2012_validation_synset_labels.txt"
    labels.write_text("n01443537\nn01440764\n", encoding="utf-8")
    again = benchmarks.load("imagenet", tmp_path)
    assert [query.label for query in again.queries] == ["goldfish", "tench"]
    for query in again.queries:
        place = folder / "val" / str(query.about["wnid"])
        place.mkdir()
        assert isinstance(query.medium, pathlib.Path)
        query.medium.rename(place / query.medium.name)
    labels.unlink()
    sorted_by_class = benchmarks.load("imagenet", tmp_path).queries
    assert {q.key: q.label for q in sorted_by_class} == {q.key: q.label for q in again.queries}


def test_scienceqa_without_pictures(tmp_path: pathlib.Path) -> None:
    read = of("scienceqa", tmp_path, "test-all")
    assert [query.medium is None for query in read.queries] == [False, True]
    chosen = splits.choose(read, presets.FLAMINGO)
    asker = Asker(presets.FLAMINGO, read, chosen, 0)
    [made] = asker.prompts(read.queries[1], 0)
    assert made.shown() == "Figure: a map. Question: Which of these is farthest north? Answer:"


def test_shared_sets_of_the_same_forms(shared: pathlib.Path) -> None:
    folder = shared / "data/eval"
    captions = benchmarks.load(
        "coco",
        folder,
        "val2014",
        {f"{split}.captions": f"coco/captions_{split}.json" for split in ("train", "val")}
        | {f"{split}.pictures": f"images/{split}" for split in ("train", "val")},
    )
    questions = benchmarks.load(
        "vqav2",
        folder,
        "val",
        {
            f"{split}.questions": f"vqav2/v2_OpenEnded_questions_{split}.json"
            for split in ("train", "val")
        }
        | {f"{split}.answers": f"vqav2/v2_annotations_{split}.json" for split in ("train", "val")}
        | {
            f"{split}.pictures": f"images/{split}/{split}_{{id:012d}}.jpg"
            for split in ("train", "val")
        },
    )
    classes = benchmarks.load(
        "custom",
        folder,
        elsewhere={
            "queries": "classification/val.jsonl",
            "support": "classification/train.jsonl",
            "all.pictures": ".",
        },
    )
    clips = benchmarks.load(
        "custom",
        shared / "data/video",
        elsewhere={"queries": "captions_eval.jsonl", "all.pictures": "."},
    )
    assert (clips.kind, clips.metric, classes.kind) == ("caption", "cider", "choice")
    for read in (captions, questions, classes, clips):
        assert read.support and read.queries
        for example in (*read.support, *read.queries):
            path = example.medium.path if isinstance(example.medium, Video) else example.medium
            assert isinstance(path, pathlib.Path) and path.is_file()


def test_the_table_says_what_is_there(tmp_path: pathlib.Path) -> None:
    WRITERS["okvqa"](tmp_path)
    WRITERS["youcook2"](tmp_path)
    (tmp_path / "youcook2/youcookii_annotations_trainval.json").unlink()
    shown = benchmarks.table(tmp_path).splitlines()
    assert sum(line.endswith(" found") and "not found" not in line for line in shown) == 1
    path = tmp_path / "youcook2/youcookii_annotations_trainval.json"
    assert any(line.startswith(f"  - {path}  (") for line in shown)


def test_the_page_names_every_file() -> None:
    page = (ROOT / "experiments/EVALUATION.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for entry in benchmarks.ENTRIES.values():
        row = rows[entry.name]
        assert f"| {', '.join(entry.splits)} |" in row
        for need in entry.needs:
            assert all(f"`{path}`" in row for path in need.paths), need


def test_names_that_there_are_not(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="no benchmark 'cocoa'; there are coco, okvqa"):
        benchmarks.load("cocoa", tmp_path)
    with pytest.raises(InputError, match="coco has no split 'dev'; it has test, val"):
        benchmarks.load("coco", tmp_path, "dev")
    with pytest.raises(InputError, match=r"coco reads no file 'tain\.pictures'"):
        benchmarks.load("coco", tmp_path, elsewhere={"tain.pictures": "x"})
