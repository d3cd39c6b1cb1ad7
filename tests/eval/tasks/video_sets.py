"""Benchmarks of clips, a handful of made-up records each, in their authors' forms."""

import pathlib
from collections.abc import Callable

from tests.eval.tasks.writing import clips, put, sheet


def video_qa(folder: pathlib.Path, first: int, name: Callable[[int], str]) -> None:
    """One question to a clip; one clip of the test is missing."""
    for split in ("train", "val", "test"):
        records = []
        for place in range(3):
            video = first + place
            records.append(
                {
                    "answer": ("dog", "cat", "man")[place],
                    "category_id": 14,
                    "id": 100 * first + place,
                    "question": "what is running?",
                    "video_id": video,
                }
            )
            if not (split == "test" and place == 1):
                clips(folder / "videos", name(video))
        put(folder / f"{split}_qa.json", records)
        first += 3


def msvdqa(root: pathlib.Path) -> None:
    """With the mapping from YouTube's ids."""
    folder = root / "msvdqa"
    video_qa(folder, 1, lambda number: f"y{number}-_5_15.avi")
    text = "".join(f"y{number}-_5_15 vid{number}\n" for number in range(1, 10))
    (folder / "youtube_mapping.txt").write_text(text, encoding="utf-8")


def msrvttqa(root: pathlib.Path) -> None:
    """In folders."""
    video_qa(root / "msrvttqa", 0, lambda number: f"all/video{number}.mp4")


def ivqa(root: pathlib.Path) -> None:
    """Recordings with times, one clip that is cut already."""
    header = "video_id,start,end,question,answer1,answer2,answer3,answer4,answer5"
    given = ["spoon", "spoon", "ladle", "a spoon", "big spoon"]
    for split in ("train", "test"):
        rows = [[f"{split}{place}", 3, 9.5, "What is used?", *given] for place in range(2)]
        sheet(root / f"ivqa/{split}.csv", header, rows)
    clips(root / "ivqa/videos", "train0.webm", "train1.mp4", "test0.mp4", "test1_3_9.5.mp4")


def vatex(root: pathlib.Path) -> None:
    """English and Chinese; one clip of the test is missing."""
    folder = root / "vatex"
    runs, fish = ["A man runs.", "He is running."], ["Fish swim in blue water."] * 2
    files = {
        "vatex_training_v1.0.json": {"a_b_000010_000020": runs, "-c_000001_000011": runs},
        "vatex_public_test_english_v1.1.json": {
            "e_000122_000132": runs,
            "f_000001_000011": fish,
            "gone_000000_000010": fish,
        },
    }
    for file, texts in files.items():
        records = [
            {"videoID": name, "enCap": captions, "chCap": ["一个男人"]}
            for name, captions in texts.items()
        ]
        put(folder / file, records)
    shown = ("a_b_000010_000020", "-c", "e_000122_000132", "f_000001_000011")
    clips(folder / "videos", *(f"{name}.mp4" for name in shown))


def youcook2(root: pathlib.Path) -> None:
    """Steps of two recipes."""
    folder = root / "youcook2"
    steps = [
        {"segment": [90 + 20 * place, 102 + 20 * place], "id": place, "sentence": f"stir {place}"}
        for place in range(2)
    ]
    about = {"duration": 311.77, "recipe_type": "113", "video_url": ""}
    put(
        folder / "youcookii_annotations_trainval.json",
        {
            "database": {
                "fn9anlEL4FI": {**about, "subset": "training", "annotations": steps},
                "-dh_uGahzYo": {**about, "subset": "validation", "annotations": steps},
            }
        },
    )
    clips(folder / "raw_videos", "training/113/fn9anlEL4FI.mp4", "validation/113/-dh_uGahzYo.mkv")


def star(root: pathlib.Path) -> None:
    """The test without answers."""
    folder, texts = root / "star", ["The closet.", "The blanket.", "The shoe.", "The table."]
    for split in ("train", "val", "test"):
        records = []
        for place in range(2):
            record = {
                "question_id": f"Interaction_T1_{split}{place}",
                "question": "Which object was tidied up by the person?",
                "video_id": f"{split}V{place}",
                "start": 11.1,
                "end": 19.6,
                "question_program": [],
                "choices": [
                    {"choice_id": i, "choice": text, "choice_program": []}
                    for i, text in enumerate(texts)
                ],
                "situations": {},
            }
            if split != "test":
                record["answer"] = texts[place + 1]
            records.append(record)
            clips(folder / "Charades_v1_480", f"{split}V{place}.mp4")
        put(folder / f"STAR_{split}.json", records)


NEXT = "video,frame_count,width,height,question,answer,qid,type"


def nextqa(root: pathlib.Path) -> None:
    """With a second reference of the test."""
    folder = root / "nextqa"
    for split, video in (("train", 10), ("test", 20)):
        rows = [
            [video, 719, 320, 240, "why did the boy run", "to catch", place, "CW"]
            for place in range(2)
        ]
        sheet(folder / f"{split}.csv", NEXT, rows)
        clips(folder / "NExTVideo", f"00{video}/{video}.mp4")
    put(folder / "add_reference_answer_test.json", {"20": {"1": "catch the ball"}})


def nextqa_choice(root: pathlib.Path) -> None:
    """One of five."""
    folder = root / "nextqa_choice"
    for split, video in (("train", 10), ("test", 20)):
        rows = [
            [video, 9, 3, 2, "where is this", place, place, "DL", "mall", "river", "sea", "a", "b"]
            for place in range(2)
        ]
        sheet(folder / f"{split}.csv", f"{NEXT},a0,a1,a2,a3,a4", rows)
        clips(root / "nextqa/NExTVideo", f"{video}.mp4")


def rareact(root: pathlib.Path) -> None:
    """Three actions, positives and negatives."""
    folder = root / "rareact"
    rows = [
        [0, "7frRY7aGwMU", 50, 60, 0, "hammer", "phone", 1],
        [1, "7frRY7aGwMU", 60, 70, 0, "hammer", "phone", 0],
        [2, "TLMroVuZ_Nc", 20, 30, 1, "wash", "apple", 2],
        [3, "gone", 20, 30, 2, "fry", "carrots", 1],
    ]
    sheet(folder / "rareact.csv", "id,video_id,start,end,class_id,verb,noun,annotation", rows)
    clips(folder / "videos", "7frRY7aGwMU.mp4", "TLMroVuZ_Nc.mp4")


def kinetics700(root: pathlib.Path) -> None:
    """In folders of classes, one clip missing."""
    folder, header = root / "kinetics700", "label,youtube_id,time_start,time_end,split"
    train = [["waxing legs", "aa-a", 5, 15, "train"], ["abseiling", "bb_b", 0, 10, "train"]]
    asked = [["abseiling", "cccc", 131, 141, "val"], ["abseiling", "gone", 1, 11, "val"]]
    sheet(folder / "annotations/train.csv", header, train)
    sheet(folder / "annotations/val.csv", header, asked)
    clips(folder / "train", "waxing legs/aa-a_000005_000015.mp4", "bb_b_000000_000010.mp4")
    clips(folder / "val", "abseiling/cccc_000131_000141.mp4")
