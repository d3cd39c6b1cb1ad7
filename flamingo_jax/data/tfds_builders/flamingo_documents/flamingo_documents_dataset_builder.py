"""The TFDS builder of documents: what `prepare` keeps of a source, in TFDS's own shards.

    tfds build PATH/TO/flamingo_documents --config=pairs --manual_dir=PATH/TO/SHARDS
    tfds build … --config='{"name": "laion", "source": "pairs", "path": "laion/{000..999}.tar"}'

A configuration says what is built, in fields of `DocumentsConfig`. Those with the names of corpora
read the shards in --manual_dir with the corpus's and the paper's options; others are given as JSON.
Where TensorFlow is not installed, `python -m flamingo_jax.data.tfds_builders` takes the same flags.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flamingo_jax.data.prepare import duplicates
from flamingo_jax.data.tfds_builders import examples
from flamingo_jax.errors import InputError

CORPORA = ("obelics", "mmc4", "pairs", "clips", "texts")
_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)


# Of a configuration's fields, which may come from JSON.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("source", "path", "files", "validation_path"), str),
    **dict.fromkeys(("held_out", "distance", "shard_size"), int),
    **dict.fromkeys(("options", "filters"), dict),
    "evaluation_images": (list, tuple),
    "beam": bool,
}


@dataclasses.dataclass(eq=False)
class DocumentsConfig(tfds.core.BuilderConfig):
    """What is built; also TFDS's own fields.

    Attributes:
      name: of the folder it gets, and of the source unless that is given.
      source: a name of `data.sources`.
      path: its shards; "" = the folder --manual_dir.
      files: the folder or tars that hold the files which records name.
      validation_path: shards of a split "validation".
      held_out: where there are none, one record in so many makes that split; 0 = none.
      options: the source's own.
      filters: fields of `prepare.filters.FilterOptions`, but for `language`.
      evaluation_images: folders; images near one of theirs are left out.
      distance: bits of their hashes by which such images differ at most.
      beam: are documents made on Beam's workers? --beam_pipeline_options says which these are.
      shard_size: records that a worker of Beam takes at a time.
    """

    source: str = ""
    path: str = ""
    files: str = ""
    validation_path: str = ""
    held_out: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    filters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluation_images: tuple[str, ...] = ()
    distance: int = duplicates.DISTANCE
    beam: bool = False
    shard_size: int = 1000

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"a configuration is called {self.name!r}; give a name of letters, digits, "
                "'_', '.', '+' and '-'"
            )
        for field, kind in _TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
                raise InputError(
                    f"the configuration {self.name!r} has {field}={value!r}, which is no "
                    f"{getattr(kind, '__name__', 'list')}"
                )
        self.source = self.source or self.name


class Builder(tfds.core.GeneratorBasedBuilder):
    """Documents of a source, filtered."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(DocumentsConfig(name=name) for name in CORPORA)
    builder_config_cls = DocumentsConfig
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The source's shards, unless the configuration has a path."
    # Nothing is downloaded. TFDS's own way to find out needs importlib_resources, which it does not
    # install.
    url_infos = None

    def __init__(self, *, file_format: Any = None, **given: Any) -> None:
        """Takes TFDS's arguments; ArrayRecord, which can be read in any order, unless another.

        Raises:
          InputError: if there is no such configuration, or one that is given has a corpus's name.
        """
        try:
            super().__init__(file_format=file_format or "array_record", **given)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"TFDS takes no such configuration: {error}") from error

    # As TFDS declares them, both may be None.
    @property
    def _config(self) -> DocumentsConfig:
        config: Any = self.builder_config
        return config

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata: Any = self.info.metadata
        return metadata

    def _info(self) -> Any:
        text, data = tfds.features.Text(), tfds.features.Tensor(shape=(), dtype=np.object_)
        items = tfds.features.Sequence({"kind": text, "text": text, "data": data, "key": text})
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Documents of the source {self._config.source}, filtered: texts "
            "and encoded media in reading order. metadata.json has what they were made of.",
            homepage="",
            features=tfds.features.FeaturesDict({"key": text, "items": items}),
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, **given: Any) -> None:
        """See TFDS.

        Raises:
          InputError: if the source or the configuration is wrong, or the set was built of others.
        """
        old = self._metadata.get("train", {}).get("plan")
        if old is not None:
            manual = getattr(given.get("download_config"), "manual_dir", None)
            given_path = str(pathlib.Path(manual).expanduser()) if manual else ""
            path = self._config.path or given_path or old["source"]["path"]
            job = examples.make_job(self._config, path, "train")
            examples.check_built(job, old, self.data_dir)
        super().download_and_prepare(**given)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self._config
        path = config.path or _manual_dir(dl_manager, config.name)
        held = bool(config.validation_path or config.held_out)
        splits = ("train", "validation") if held else ("train",)
        jobs = {split: examples.make_job(config, path, split) for split in splits}
        opened = {split: examples.open_work(job) for split, job in jobs.items()}
        return {split: self._generate_examples(split, *both) for split, both in opened.items()}

    def _generate_examples(self, split: str, work: Any, source: Any) -> Any:
        about = self._metadata[split] = {"plan": work.plan}
        if self._config.beam:
            return examples.on_workers(work)
        return self._here(work, source, about)

    def _here(
        self, work: Any, source: Any, about: dict[str, Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        counts = examples.Counts()
        yield from examples.make_all(work, source, counts)
        about |= counts.told(len(source))


def _manual_dir(dl_manager: Any, name: str) -> str:
    try:
        return str(dl_manager.manual_dir)
    except AssertionError as error:  # TFDS's way to say that it is not there, or empty
        raise InputError(
            f"the configuration {name!r} has no path and there are no shards in --manual_dir; "
            "give either"
        ) from error
