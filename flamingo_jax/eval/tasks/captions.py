"""COCO and Flickr30k: Karpathy's splits; COCO's own caption files; NoCaps, which has their form.

Karpathy's dataset_coco.json and dataset_flickr30k.json: {"images": [{"filename", "split",
"sentences": [{"raw", …}], "filepath" and "cocoid" (COCO alone), …}]}. The support is the split
"train" alone, without "restval", as OpenFlamingo reads it.

captions_*.json and nocaps_val_4500_captions.json: {"images": [{"id", "file_name", …}],
"annotations": [{"image_id", "caption", …}]}. NoCaps has no training captions: shots are COCO's.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CAPTION, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pictures, Pools
from flamingo_jax.eval.tasks.reading import Fields, read_json

KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
COCO_PAGE = "https://cocodataset.org/#download"
COCO_ZIPS = "http://images.cocodataset.org/zips/train2014.zip and val2014.zip"

COCO_TRAIN = Need("train.pictures", ("train2014",), "COCO's training pictures", COCO_ZIPS)
COCO_VAL = Need("val.pictures", ("val2014",), "COCO's validation pictures", COCO_ZIPS)


def _read_coco(files: Files) -> Pools:
    if files.split == "val2014":
        support = read_captions(files, "train.captions", "train.pictures")
        return Pools(support, read_captions(files, "val.captions", "val.pictures"))
    train, val = files.pictures("train.pictures"), files.pictures("val.pictures")
    folders = {"train2014": train, "val2014": val}
    return _read_karpathy(files, folders, files.split)


def _read_flickr(files: Files) -> Pools:
    return _read_karpathy(files, {"": files.pictures("all.pictures")}, files.split)


def _read_karpathy(files: Files, folders: dict[str, Pictures], asked: str) -> Pools:
    support, queries = [], []
    for record in read_json(files.file("karpathy")).records("images"):
        split = record.text("split")
        if split in ("train", asked):
            (support if split == "train" else queries).append(_karpathy(record, folders))
    return Pools(support, queries)


def _karpathy(record: Fields, folders: dict[str, Pictures]) -> Example:
    filepath = "" if "" in folders else record.text("filepath")
    if filepath not in folders:
        raise record.wrong(f"field 'filepath' is {filepath!r}, not one of {', '.join(folders)}")
    name = record.filled("filename")
    captions = tuple(sentence.text("raw") for sentence in record.records("sentences"))
    if not captions:
        raise record.wrong("'sentences' is empty; a caption is needed")
    coco = bool(filepath)
    ident = record.integer("cocoid") if coco else name.split(".")[0]
    picture = folders[filepath].named(name, record.where)
    return Example(str(ident), picture, answers=captions, about={"image_id": ident})


def read_captions(files: Files, captions: str, pictures: str) -> list[Example]:
    """A file of COCO's form: one example a picture that has captions, in the pictures' order."""
    data, folder = read_json(files.file(captions)), files.pictures(pictures)
    texts: dict[str, list[str]] = {}
    for record in data.records("annotations"):
        texts.setdefault(record.ident("image_id"), []).append(record.text("caption"))
    examples = []
    for record in data.records("images"):
        key = record.ident("id")
        if key in texts:
            about = {"image_id": int(key) if key.isdigit() else key}
            if "domain" in record:  # NoCaps: in-domain, near-domain, out-domain
                about["domain"] = record.text("domain")
            picture = folder.named(record.filled("file_name"), record.where)
            examples.append(Example(key, picture, answers=tuple(texts.pop(key)), about=about))
    if texts:
        raise data.wrong(f"annotations name image_id {next(iter(texts))}, which 'images' lacks")
    return examples


def _read_nocaps(files: Files) -> Pools:
    folders = {"train2014": files.pictures("train.pictures")}  # all that "train" lies in
    support = _read_karpathy(files, folders, "train").support
    return Pools(support, read_captions(files, "val.captions", "val.pictures"))


COCO = Entry(
    name="coco",
    title="COCO captions",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page=COCO_PAGE,
    licence="captions CC BY 4.0; pictures under their Flickr licences",
    needs=(
        Need("karpathy", ("dataset_coco.json",), "Karpathy's splits of COCO", KARPATHY,
             ("test", "val")),
        Need("train.captions", ("annotations/captions_train2014.json", "captions_train2014.json"),
             "COCO's training captions", COCO_PAGE, ("val2014",)),
        Need("val.captions", ("annotations/captions_val2014.json", "captions_val2014.json"),
             "COCO's validation captions", COCO_PAGE, ("val2014",)),
        COCO_TRAIN,
        COCO_VAL,
    ),
    splits=("test", "val", "val2014"),
    read=_read_coco,
    development=5000,
)  # fmt: skip
FLICKR30K = Entry(
    name="flickr30k",
    title="Flickr30k",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page="https://shannon.cs.illinois.edu/DenotationGraph/",
    licence="research and education alone, by the page's form",
    needs=(
        Need("karpathy", ("dataset_flickr30k.json",), "Karpathy's splits of Flickr30k", KARPATHY),
        Need("all.pictures", ("flickr30k-images",), "all pictures",
             "https://shannon.cs.illinois.edu/DenotationGraph/ (a form)"),
    ),
    splits=("test", "val"),
    read=_read_flickr,
)  # fmt: skip
NOCAPS = Entry(
    name="nocaps",
    title="NoCaps",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page="https://nocaps.org/download",
    licence="pictures of Open Images, CC BY 2.0",
    needs=(
        Need("val.captions", ("nocaps_val_4500_captions.json",), "validation captions",
             "https://nocaps.org/download"),
        Need("val.pictures", ("val", "images"), "validation pictures",
             "https://nocaps.org/download (the file's coco_url)"),
        Need("karpathy", ("dataset_coco.json", "../coco/dataset_coco.json"),
             "Karpathy's splits of COCO, for shots", KARPATHY),
        Need("train.pictures", ("train2014", "../coco/train2014"), "COCO's training pictures",
             COCO_ZIPS),
    ),
    splits=("val",),
    read=_read_nocaps,
)  # fmt: skip
