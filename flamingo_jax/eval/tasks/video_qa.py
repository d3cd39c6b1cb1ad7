"""MSVDQA and MSRVTTQA: questions about short clips, one answer each (Xu et al., 2017).

{train,val,test}_qa.json: [{"id", "video_id", "question", "answer", …}]. Clips of MSRVTT are named
video7010.mp4; those of MSVD by YouTube's ids, which youtube_mapping.txt numbers, a line each:
"-4wsuPCjDBc_5_15 vid1". (That file's form is taken from its users, not from its authors' page.)
"""

from __future__ import annotations

from flamingo_jax.eval.examples import ANSWER, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json_list, read_lines

_PAGE = "https://github.com/xudejing/video-question-answering"
_MSVD_CLIPS = "https://www.cs.utexas.edu/~ml/clamp/videoDescription/"
_MSRVTT_CLIPS = "https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/"


def _read_msvd(files: Files) -> Pools:
    path = files.find("mapping")
    lines = [line.split() for line in read_lines(path)] if path else []
    return _read(files, "vid", {words[1]: words[0] for words in lines if len(words) == 2})


def _read_msrvtt(files: Files) -> Pools:
    return _read(files, "video", {})


def _read(files: Files, prefix: str, mapping: dict[str, str]) -> Pools:
    clips = files.clips("all.clips")
    support = _examples(files, "train", clips, prefix, mapping)
    queries = _examples(files, files.split, clips, prefix, mapping)
    return Pools(support, queries, left_out=clips.check(len(queries)))


def _examples(
    files: Files, split: str, clips: Clips, prefix: str, mapping: dict[str, str]
) -> list[Example]:
    examples = []
    for record in read_json_list(files.file(f"{split}.questions")):
        number = record.integer("video_id")
        question, answer = record.filled("question"), record.filled("answer")
        about = {"id": record.integer("id"), "video_id": number}
        name = f"{prefix}{number}"
        clip = clips.whole(name, mapping.get(name, name))
        if clip is not None:
            key = f"{split}/{about['id']}"
            examples.append(Example(key, clip, question, answers=(answer,), about=about))
    return examples


def _needs(clips: str) -> tuple[Need, ...]:
    return (
        Need("train.questions", ("train_qa.json",), "training questions", _PAGE),
        Need("test.questions", ("test_qa.json",), "test questions", _PAGE, ("test",)),
        Need("val.questions", ("val_qa.json",), "validation questions", _PAGE, ("val",)),
        Need("all.clips", ("videos", "video"), "all clips", clips),
    )


MSVDQA = Entry(
    name="msvdqa",
    title="MSVDQA",
    kind=ANSWER,
    metric="top1",
    medium="video",
    page=_PAGE,
    needs=(
        *_needs(_MSVD_CLIPS),
        Need("mapping", ("youtube_mapping.txt",), "numbers of clips", _PAGE, optional=True),
    ),
    splits=("test", "val"),
    read=_read_msvd,
    development=1024,
)
MSRVTTQA = Entry(
    name="msrvttqa",
    title="MSRVTTQA",
    kind=ANSWER,
    metric="top1",
    medium="video",
    page=_PAGE,
    needs=_needs(_MSRVTT_CLIPS),
    splits=("test", "val"),
    read=_read_msrvtt,
)
