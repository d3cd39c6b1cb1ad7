"""TextVQA and TextCaps: questions and captions about pictures with text in them.

TextVQA_0.5.1_*.json: {"data": [{"question_id", "image_id", "question", "answers": [ten texts]}]}
(the test split has no answers). TextCaps_0.1_*.json: {"data": [{"image_id", "image_name",
"caption_str", …}]}, one record a caption. The validation pictures lie among the training ones.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import ANSWER, CAPTION, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json

_PAGE = "https://textvqa.org/dataset/"
_CAPS_PAGE = "https://textvqa.org/textcaps/dataset/"
_LICENCE = "CC BY 4.0; pictures of Open Images, CC BY 2.0"


def _read_vqa(files: Files) -> Pools:
    return Pools(_questions(files, "train"), _questions(files, files.split))


def _questions(files: Files, split: str) -> list[Example]:
    data, pictures = read_json(files.file(f"{split}.questions")), files.pictures(_folder(split))
    examples = []
    for record in data.records("data"):
        key, image = record.ident("question_id"), record.ident("image_id")
        answers = () if split == "test" else record.texts("answers", least=1)
        picture = pictures.named(f"{image}.jpg", record.where)
        about = {"question_id": record.integer("question_id"), "image_id": image}
        question = record.filled("question")
        examples.append(Example(key, picture, question, answers=answers, about=about))
    return examples


def _read_captions(files: Files) -> Pools:
    return Pools(_captions(files, "train"), _captions(files, files.split))


def _captions(files: Files, split: str) -> list[Example]:
    data, pictures = read_json(files.file(f"{split}.captions")), files.pictures(_folder(split))
    texts: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for record in data.records("data"):
        image = record.ident("image_id")
        texts.setdefault(image, [])
        where.setdefault(image, record.where)
        if split != "test":
            texts[image].append(record.text("caption_str"))
    return [
        Example(
            image,
            pictures.named(f"{image}.jpg", where[image]),
            answers=tuple(captions),
            about={"image_id": image},
        )
        for image, captions in texts.items()
    ]


def _folder(split: str) -> str:
    return "test.pictures" if split == "test" else "train.pictures"


def _pictures(beside: str) -> tuple[Need, Need]:
    return (
        Need("train.pictures", ("train_images", f"../{beside}/train_images"),
             "training and validation pictures", _PAGE),
        Need("test.pictures", ("test_images", f"../{beside}/test_images"),
             "test pictures", _PAGE, ("test",)),
    )  # fmt: skip


def _json(key: str, name: str, page: str, *splits: str) -> Need:
    split, what = key.split(".")
    return Need(key, (name,), f"{what} of {split}", page, splits)


TEXTVQA = Entry(
    name="textvqa",
    title="TextVQA",
    kind=ANSWER,
    metric="vqa_accuracy",
    medium="image",
    page=_PAGE,
    licence=_LICENCE,
    needs=(
        _json("train.questions", "TextVQA_0.5.1_train.json", _PAGE),
        _json("val.questions", "TextVQA_0.5.1_val.json", _PAGE, "val"),
        _json("test.questions", "TextVQA_0.5.1_test.json", _PAGE, "test"),
        *_pictures("textcaps"),
    ),
    splits=("val", "test"),
    read=_read_vqa,
)
TEXTCAPS = Entry(
    name="textcaps",
    title="TextCaps",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page=_CAPS_PAGE,
    licence=_LICENCE,
    needs=(
        _json("train.captions", "TextCaps_0.1_train.json", _CAPS_PAGE),
        _json("val.captions", "TextCaps_0.1_val.json", _CAPS_PAGE, "val"),
        _json("test.captions", "TextCaps_0.1_test.json", _CAPS_PAGE, "test"),
        *_pictures("textvqa"),
    ),
    splits=("val", "test"),
    read=_read_captions,
)
