"""Experiment configs: every legal key with its default, loading, overriding, checking.

A config file defines `get_config(variant="full")` and starts from `base()`, whose keys are locked:
a typo raises where it is made. Nothing below `assemble.py` sees a config.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from flamingo_jax import checks, eval_fields, model_fields
from flamingo_jax.checks import STAGES, Config, stage_settings
from flamingo_jax.errors import InputError


def dataset(**fields: Any) -> Config:
    """One dataset of a stage; `fields` change the defaults below.

    Raises:
      KeyError: for a field that there is not.
    """
    c: Config = ConfigDict()
    c.source = ""  # "NAME" or "NAME:PART", a function of data/sources.py
    c.path = ""  # the folder or shards the source reads, where it reads any
    c.files = ""  # the folder or tars that hold the files which records name
    c.validation_path = ""  # shards of the validation split
    c.held_out = 100  # where there are none: one record in so many is held out for it; 0 = none
    c.options = ConfigDict()  # the corpus's own (flamingo_jax/data/corpora)
    c.layout = "pair"  # page | pair | clip | text | contrastive
    c.weight = 1.0  # λ of Flamingo eq. (2): what the dataset's loss is multiplied by
    c.batch = 8  # B, over all hosts
    c.length = 32  # T, tokens of a row
    c.images = 1  # M, at most so many media a row; those beyond are dropped with their text kept
    c.frames = 1  # F, frames of a medium
    c.fps = 1.0  # clips: frames a second that are taken
    c.p_next = 0.0  # pages: probability that text belongs to the image after it (v1 §3.2.2)
    c.next_layout = "kept"  # kept (as in the paper) | text_first: a 'next' page has its text first
    c.leading_space = 0.0  # pairs, clips: probability of a space before the text (Flamingo v1 §3.2)
    # The paper's pages and pairs; OpenFlamingo's have False, False and, of pairs, True.
    c.first_eoc = True  # is text before the first image closed by an <EOC>?
    c.loss_before_media = True  # is text before the first image a target of the loss?
    c.loss_on_eos = False  # is <EOS> a target, where the language model has one?
    c.versions = 0  # augmented versions of each medium; 0 = config.data.versions
    c.validation = True  # has the source a validation split to measure during training?
    c.lock()
    c.options.unlock()  # which there are, the corpus knows
    c.update(fields)
    return c


benchmark, evaluation = eval_fields.benchmark, eval_fields.evaluation


def _stage() -> Config:
    """What a training stage needs."""
    c: Config = ConfigDict()
    c.steps = 0
    c.log_every = 10  # steps between rows of metrics.jsonl
    c.eval_every = 0  # steps between validations; 0 = only at the end
    c.eval_batches = 4  # batches of each dataset a validation takes
    c.most_skipped = 50  # the run ends after so many steps in a row that were not taken; 0 = never
    # Parts of all batches that the gradient is summed over, one after the other: the same gradient
    # with the activations of one part (not in the contrastive stage, whose loss couples rows).
    c.micro_batches = 1
    c.datasets = ConfigDict()
    c.optimizer = ConfigDict()
    c.optimizer.lr = 1e-4
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.1
    c.optimizer.no_decay = (
        "^resampler/",
        "(^|[/_])(bias|scale|gain)$",
        "/gate_(attention|dense)$",
    )
    c.optimizer.clip = 1.0  # global norm; 0 = off
    c.optimizer.agc = 0.0  # adaptive clipping of the paths in agc_paths (NFNet); 0 = off
    c.optimizer.agc_paths = ("^vision/.*kernel$",)
    c.optimizer.warmup = 0  # steps of linear warm-up from 0
    c.optimizer.schedule = (
        "constant"  # constant | cosine | linear, after the warm-up, down to `end`
    )
    c.optimizer.end = 0.0  # the schedule's last value as a share of lr
    # A step is not taken if its gradient's norm is not finite or, with a factor above 0, more than
    # so many times the running mean of those before.
    c.optimizer.skip_above = 0.0
    c.optimizer.multipliers = ()  # (regex, factor) pairs: those paths' updates times the factor
    return c


def _data() -> Config:
    c: Config = ConfigDict()
    c.image_size = 0  # sides of the pixels fed; 0 = model.vision.image_size
    # pad (mean colour, aspect kept) | crop | squash; bicubic, or with ":hamming" behind it by that
    # filter, which takes two thirds of the time.
    c.resize = "pad"
    c.versions = 0  # augmented versions of each picture; 0 = fresh at each visit
    c.cache_features = False  # encode each version once before the Flamingo stage, in memory
    c.features = ""  # a folder that `prepare features` made, read instead of encoding; "" = none
    c.threads = 0  # that make rows: more for storage far away; 0 = processors + 1, at most 16
    c.prefetch = 4  # steps read ahead
    c.max_bad = 0.2  # share of a dataset's records, unusable ones, from which on the run stops
    c.record_rows = False  # write (step, dataset, index) of every row used to rows*.jsonl
    c.augment = ConfigDict()
    c.augment.flip = 0.5  # probability of a horizontal flip
    c.augment.brightness = 0.1  # ± added, as a share of the range
    c.augment.contrast = 0.1  # ± factor
    c.augment.saturation = 0.1  # ± factor
    c.augment.hue = 0.05  # ± turns
    c.augment.scale = (1.0, 1.0)  # the picture's size, drawn from this range
    c.augment.shift = 0.0  # ± share of a side
    return c


def _eval() -> Config:
    c: Config = ConfigDict()
    c.tasks = ()  # names of eval/tasks, run when the last stage ends
    c.queries = 0  # at most so many of each; 0 = all
    c.split = "test"  # test | validation: choose settings on the latter
    c.shots = (0, 2, 4, 8)
    c.max_new_tokens = 16
    c.batch = 64
    c.every = 0  # steps of the Flamingo stage between evaluations on benchmarks; 0 = none
    c.during = evaluation()  # which, and how they are asked; its fsdp, tensor: see periodic.py
    return c


def base() -> Config:
    """Every legal key with its default: Flamingo-3B's model (Flamingo v2 Tables 4 and 5)."""
    c: Config = ConfigDict()
    c.name = "flamingo"
    c.seed = 0
    c.stages = ("flamingo",)  # in this order, each starting from what the one before has made

    c.tokenizer = ConfigDict()
    c.tokenizer.kind = "bytes"  # bytes | sentencepiece | tokenizers | saved | train (BPE on texts)
    # The model file of sentencepiece (.model) or tokenizers (.json); saved: a run's tokenizer/.
    c.tokenizer.path = ""
    c.tokenizer.vocab = 0  # train: how many tokens to learn
    c.tokenizer.source = ""  # train: the source whose texts it is learnt on; `path` is its path
    c.tokenizer.image = "new"  # <image> is a new token ("new") or plain text ("text")

    c.model = model_fields.model()

    c.trainable = ("^resampler/", "^xattn/", "^project/", "^embed/new$", "^head/new$")

    c.init = ConfigDict()  # parameters to begin with that another run has trained
    c.init.run = ""  # its workdir, or a step in it
    c.init.paths = ("",)  # those whose path one of these regexes finds; the others begin anew

    c.data = _data()

    c.train = _stage()  # the Flamingo stage
    c.pretrain = ConfigDict()
    c.pretrain.language = _stage()
    c.pretrain.contrastive = _stage()

    c.alarm = ConfigDict()  # the text-only plateau: is a shuffled picture worse than the right one?
    c.alarm.step = 250  # from this step of the Flamingo stage on; 0 = off
    c.alarm.nats = 0.1  # alarm below this difference of negative log-likelihood a token

    c.mesh = ConfigDict()  # -1: what the others leave
    c.mesh.replica = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1
    c.mesh.slices = 1  # groups of chips with a fast network of their own; they must divide replica
    # Frozen weights: sharded, over fsdp too, and gathered in every step, as what is trained is; or
    # replicated, over tensor alone, and never gathered: where there is memory for them.
    c.mesh.frozen = "sharded"
    # Where frozen weights lie: none, on the devices; frozen: the matrices of the frozen language
    # model's blocks and of the frozen encoder on the hosts, each layer brought when it is used, in
    # the forward and in the backward pass. For what does not fit; `plan` tells what it costs.
    c.mesh.offload = "none"
    c.mesh.sequence = True  # with tensor > 1, tokens too are split over it, between the layers

    c.hang_seconds = 1_800.0  # of a step, save or validation batch: the process ends; 0 = never
    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1_000
    c.checkpoint.keep = 2  # the newest so many steps of a stage; its last one always stays
    c.checkpoint.keep_every = 0  # and for ever those that are multiples of it; 0 = none
    c.checkpoint.min_free_gb = 0.0  # refuse to start with less; 0 = thrice the state's own size

    c.log = ConfigDict()
    c.log.wandb = ""  # a project of Weights & Biases (the extra `wandb`); "" = none

    c.eval = _eval()
    c.lock()
    for stage in STAGES:
        stage_settings(c, stage).datasets.unlock()  # its rows are named by the user
    c.eval.during.benchmarks.unlock()  # and so are these
    return c


def load(spec: str, overrides: dict[str, str] | None = None) -> Config:
    """Reads `FILE.py[:variant]` and applies overrides {"a.b": "value"}; not yet checked.

    Raises:
      InputError: if the file, the variant or a field does not exist, or a value has the wrong type.
    """
    name, _, variant = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputError(f"there is no config file {name!r}; give --config=FILE.py[:variant]")
    module_spec = importlib.util.spec_from_file_location(f"flamingo_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{name!r} is not a Python file; give --config=FILE.py[:variant]")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"{name!r} defines no get_config(variant); see experiments/")
        c = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"config file {name!r}, line {error.lineno}: {error.msg}") from error
    except (AttributeError, KeyError, TypeError) as error:
        # A locked ConfigDict's own words name the key and the ones there are.
        text = str(error.args[0] if error.args else error).splitlines()[0]
        raise InputError(f"config file {name!r} cannot be used: {text}") from error
    if not isinstance(c, ConfigDict):
        raise InputError(f"get_config of {name!r} returns no ConfigDict; start from config.base()")
    for field, text in (overrides or {}).items():
        override(c, field, text)
    return c


def pick(variant: str, variants: tuple[str, ...]) -> str:
    """Returns `variant`, or says which there are.

    Raises:
      InputError: if it is none of `variants`.
    """
    if variant not in variants:
        raise InputError(
            f"unknown variant {variant!r} of the config; there are {', '.join(variants)}"
        )
    return variant


def override(c: Config, field: str, text: str) -> None:
    """Sets one field from a string, keeping its type.

    Raises:
      InputError: for a field that there is not, or a value that is not of its type.
    """
    *parents, last = field.split(".")
    node: Any = c
    for depth, key in enumerate([*parents, last]):
        if depth == len(parents) and parents[-1:] == ["options"] and isinstance(node, ConfigDict):
            break  # which options there are, the corpus knows
        if not isinstance(node, ConfigDict) or key not in node:
            keys = list(node.keys()) if isinstance(node, ConfigDict) else []
            near = difflib.get_close_matches(key, keys, n=1)
            where = ".".join(field.split(".")[:depth]) or "the config"
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(keys))}"
            raise InputError(f"--config.{field}: there is no field {key!r} in {where}; {hint}")
        if depth < len(parents):
            node = node[key]
    node[last] = _parse(field, text, node[last]) if last in node else _literal(text)


def _parse(field: str, text: str, old: Any) -> Any:
    """`text` as a value of `old`'s type."""
    kind = type(old)
    if kind is str:
        return text
    if isinstance(old, ConfigDict):
        raise InputError(
            f"--config.{field} is a group of fields; give --config.{field}.FIELD=VALUE"
        )
    value = _literal(text)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is tuple and not isinstance(value, tuple):
        # random,rices: words need no quotes; a comma that is meant stands in ("a,b",).
        words = tuple(word.strip() for word in value.split(",")) if type(value) is str else ()
        value = words or (value,)
    if type(value) is not kind:
        raise InputError(f"--config.{field}={text}: expected a value of type {kind.__name__}")
    return value


def _literal(text: str) -> Any:
    """A Python literal, true or false; any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def finish(c: Config) -> Config:
    """Checks the fields against each other and freezes the config.

    Raises:
      InputError: one sentence naming the field.
    """
    checks.check(c, set(dataset().keys()))
    return FrozenConfigDict(c)


def to_json(c: Config) -> str:
    """The resolved config as JSON, keys sorted, ending in a newline."""
    return json.dumps(json.loads(c.to_json_best_effort()), indent=1, sort_keys=True) + "\n"


def from_json(text: str) -> Config:
    """A config written by `to_json`: fields added since then have their defaults."""
    filled = _filled(_tuples(json.loads(text)), base().to_dict())
    for stage in (filled["train"], *filled["pretrain"].values()):
        rows = stage["datasets"].items()
        stage["datasets"] = {name: _filled(row, dataset().to_dict()) for name, row in rows}
    rows = filled["eval"]["during"]["benchmarks"].items()
    filled["eval"]["during"]["benchmarks"] = {
        name: _filled(row, benchmark().to_dict()) for name, row in rows
    }
    stored: Config = ConfigDict(filled)
    return FrozenConfigDict(stored.lock())


def _filled(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`stored` with what it lacks of `defaults`."""
    found = dict(defaults)
    for key, value in stored.items():
        below = defaults.get(key)
        found[key] = _filled(value, below) if isinstance(below, dict) and value else value
    return found


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
