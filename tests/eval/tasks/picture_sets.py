"""Benchmarks of pictures, a handful of made-up records each, in their authors' forms."""

import pathlib
from typing import Any

from tests.eval.tasks.writing import clips, draw, lines, put, sheet


def karpathy(folder: pathlib.Path, coco: bool) -> None:
    """Three training pictures, one of restval, two to be asked, one of the validation."""
    splits = ["train", "train", "train", "restval", "test", "test", "val"]
    images = []
    for number, split in enumerate(splits, 1):
        texts = [f" A thing {number}, {split}. ", f"Thing {number} again."]
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 10 * number}
            for text in texts
        ]
        image = {"sentids": [10 * number], "imgid": number, "split": split, "sentences": sentences}
        if coco:
            place = "train2014" if split == "train" else "val2014"
            image |= {"filepath": place, "filename": f"COCO_{place}_{number:012d}.jpg"}
            image["cocoid"] = number
            draw(folder / place / image["filename"])
        else:
            image["filename"] = f"{1000 + number}.jpg"
            draw(folder / "flickr30k-images" / image["filename"])
        images.append(image)
    name = "coco" if coco else "flickr30k"
    put(folder / f"dataset_{name}.json", {"images": images, "dataset": name})


def coco(root: pathlib.Path) -> None:
    """Karpathy's file, and COCO's own."""
    karpathy(root / "coco", coco=True)
    for split, numbers in (("train", (1, 2, 3)), ("val", (4, 5))):
        place = f"{split}2014"
        put(
            root / f"coco/annotations/captions_{place}.json",
            {
                "info": {},
                "licenses": [],
                "type": "captions",
                "images": [
                    {"id": n, "file_name": f"COCO_{place}_{n:012d}.jpg", "width": 8, "height": 6}
                    for n in numbers
                ],
                "annotations": [
                    {"id": 100 * n + i, "image_id": n, "caption": f"Caption {i} of {n}."}
                    for i in range(2)
                    for n in numbers
                ],
            },
        )


def flickr30k(root: pathlib.Path) -> None:
    """Karpathy's file."""
    karpathy(root / "flickr30k", coco=False)


def nocaps(root: pathlib.Path) -> None:
    """Two pictures, and COCO's for shots."""
    coco(root)
    names = ["0013ea2087020901.jpg", "001464cfae2a30b8.jpg"]
    draw(*(root / "nocaps/val" / name for name in names))
    put(
        root / "nocaps/nocaps_val_4500_captions.json",
        {
            "info": {"version": "0.1"},
            "images": [
                {"id": i, "file_name": name, "open_images_id": name[:-4], "domain": "out-domain"}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {"image_id": i, "id": i, "caption": f"a novel object {i}"} for i in range(2)
            ],
        },
    )


def vqa(folder: pathlib.Path, files: dict[str, tuple[str, str]], first: int = 1) -> None:
    """VQA's two files for each split: two questions to each of two pictures."""
    for split, (questions, answers) in files.items():
        asked, given = [], []
        for number in (first, first + 1):
            draw(folder / split / f"COCO_{split}_{number:012d}.jpg")
            for place in range(2):
                ident = 1000 * number + place
                asked.append(
                    {"image_id": number, "question": f"What is {ident}?", "question_id": ident}
                )
                texts = ["one", *["two"] * 6, *["three"] * 3]
                given.append(
                    {
                        "question_type": "what is",
                        "multiple_choice_answer": "two",
                        "answers": [
                            {"answer": text, "answer_confidence": "yes", "answer_id": i}
                            for i, text in enumerate(texts, 1)
                        ],
                        "image_id": number,
                        "answer_type": "other",
                        "question_id": ident,
                    }
                )
        head = {"info": {}, "task_type": "Open-Ended", "data_subtype": split, "license": {}}
        put(folder / questions, {**head, "questions": asked})
        if answers:
            put(folder / answers, {**head, "annotations": given[::-1]})
        first += 2


def vqav2(root: pathlib.Path) -> None:
    """Training, validation and test-dev."""
    vqa(
        root / "vqav2",
        {
            f"{split}2014": (
                f"v2_OpenEnded_mscoco_{split}2014_questions.json",
                f"v2_mscoco_{split}2014_annotations.json",
            )
            for split in ("train", "val")
        }
        | {"test2015": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "")},
    )


def okvqa(root: pathlib.Path) -> None:
    """Training and validation."""
    vqa(
        root / "okvqa",
        {
            f"{split}2014": (
                f"OpenEnded_mscoco_{split}2014_questions.json",
                f"mscoco_{split}2014_annotations.json",
            )
            for split in ("train", "val")
        },
    )


def textvqa(root: pathlib.Path) -> None:
    """Two training questions, one of the validation, one of the test."""
    folder = root / "textvqa"
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        data = []
        for place in range(count):
            image = f"{split}{place:013x}"
            draw(folder / f"{'test' if split == 'test' else 'train'}_images" / f"{image}.jpg")
            record = {
                "question": "what does the sign say?",
                "image_id": image,
                "image_classes": ["Sign"],
                "flickr_original_url": "",
                "question_tokens": ["what"],
                "question_id": 34602 + place + 100 * len(split),
                "set_name": split,
            }
            if split != "test":
                record["answers"] = ["stop"] * 6 + ["STOP"] * 4
            data.append(record)
        put(folder / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": data})


def textcaps(root: pathlib.Path) -> None:
    """Captions one record each, the test without."""
    folder = root / "textcaps"
    for split, count in (("train", 2), ("val", 2), ("test", 1)):
        data = []
        for place in range(count):
            image = f"{split}{place:013x}"
            draw(folder / f"{'test' if split == 'test' else 'train'}_images" / f"{image}.jpg")
            for caption in range(1 if split == "test" else 2):
                record = {
                    "image_id": image,
                    "image_name": image,
                    "image_path": f"{split}/{image}.jpg",
                    "set_name": split,
                }
                if split != "test":
                    text = ("A sign.", f"Sign {place} says stop.")[caption]
                    record |= {"caption_id": caption, "caption_str": text}
                data.append(record)
        put(folder / f"TextCaps_0.1_{split}.json", {"dataset_type": split, "data": data})


def vizwiz(root: pathlib.Path) -> None:
    """Three training questions, one of the validation, one of the test."""
    folder = root / "vizwiz"
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        records = []
        for place in range(count):
            image = f"VizWiz_{split}_{place:08d}.jpg"
            draw(folder / split / image)
            record: dict[str, Any] = {"image": image, "question": "What is this?"}
            if split != "test":
                texts = ["", "unanswerable", "cup", "cup", *["mug"] * 6]
                record["answers"] = [
                    {"answer_confidence": "maybe", "answer": text} for text in texts
                ]
                record |= {"answer_type": "other", "answerable": 1}
            records.append(record)
        put(folder / f"annotations/{split}.json", records)


def visdial(root: pathlib.Path) -> None:
    """Two training dialogues, one in each of COCO's folders, and one round that is graded."""
    folder = root / "visdial"
    draw(folder / "train2014/COCO_train2014_000000000001.jpg")
    draw(folder / "val2014/COCO_val2014_000000000002.jpg")
    draw(folder / "VisualDialog_val2018/VisualDialog_val2018_000000000185.jpg")
    questions = ["is it sunny", "is there a dog", "what color is it?"]
    answers = ["yes", "no", "brown", "maybe"]

    def dialogue(number: int) -> dict[str, Any]:
        rounds = [
            {"question": turn, "answer": turn, "answer_options": [3, 2, 1, 0], "gt_index": 3 - turn}
            for turn in range(3)
        ]
        return {"image_id": number, "caption": f"picture {number} ", "dialog": rounds}

    for split, numbers in (("train", (1, 2)), ("val", (185,))):
        data = {"questions": questions, "answers": answers, "dialogs": list(map(dialogue, numbers))}
        put(
            folder / f"visdial_1.0_{split}.json",
            {"version": "1.0", "split": f"{split}2018", "data": data},
        )
    put(
        folder / "visdial_1.0_val_dense_annotations.json",
        [{"image_id": 185, "round_id": 3, "gt_relevance": [0, 1.0, 0.4, 0]}],
    )


def hateful_memes(root: pathlib.Path) -> None:
    """Both labels."""
    folder = root / "hateful_memes"
    for split, numbers in (("train", (42953, 23058)), ("test_seen", (16395, 37405))):
        records = []
        for label, number in enumerate(numbers):
            draw(folder / f"img/{number}.png")
            records.append(
                {
                    "id": number,
                    "img": f"img/{number}.png",
                    "label": label,
                    "text": "its {their} 'x'",
                }
            )
        lines(folder / f"{split}.jsonl", records)


def imagenet(root: pathlib.Path) -> None:
    """Validation pictures in one folder, as they are given."""
    folder = root / "imagenet"
    text = "n01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca tinca\n"
    for ident in ("n01440764", "n01443537"):
        draw(*(folder / f"train/{ident}/{ident}_{place}.JPEG" for place in range(2)))
    (folder / "LOC_synset_mapping.txt").write_text(text, encoding="utf-8")
    names = [f"ILSVRC2012_val_{number:08d}" for number in (1, 2)]
    draw(*(folder / f"val/{name}.JPEG" for name in names))
    rows = [[names[1], "n01440764 1 2 3 4"], [names[0], "n01443537 9 9 9 9 n01443537 1 1 2 2"]]
    sheet(folder / "LOC_val_solution.csv", "ImageId,PredictionString", rows)


def scienceqa(root: pathlib.Path) -> None:
    """With and without pictures."""
    folder, problems = root / "scienceqa", {}
    for ident, (split, image) in enumerate(
        [("train", "image.png"), ("train", None), ("test", "image.png"), ("test", None)], 1
    ):
        problems[str(ident)] = {
            "question": "Which of these is farthest north?",
            "choices": ["West Virginia", "Louisiana"],
            "answer": ident % 2,
            "hint": "" if image else "Figure: a map.",
            "image": image,
            "task": "closed choice",
            "subject": "social science",
            "split": split,
        }
        if image:
            draw(folder / f"images/{split}/{ident}/{image}")
    put(folder / "problems.json", problems)
    put(folder / "pid_splits.json", {"train": ["1", "2"], "test": ["3", "4"]})


def custom(root: pathlib.Path) -> None:
    """Questions about a picture and a part of a clip."""
    folder = root / "custom"
    draw(folder / "media/a.png", folder / "media/b.png")
    clips(folder / "media", "c.mp4")
    lines(
        folder / "queries.jsonl",
        [
            {
                "image": "a.png",
                "question": "What is it?",
                "answers": ["a cat", "cat", "Cat", "cow"],
            },
            {"video": "c.mp4", "start": 1, "end": 2.5, "question": "Who?", "answers": ["x"] * 4},
        ],
    )
    lines(
        folder / "support.jsonl",
        [{"id": "s", "image": "b.png", "question": "What is that?", "answer": "a dog", "more": 1}],
    )
