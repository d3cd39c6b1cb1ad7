"""Curves for Weights & Biases, where a config names a project: an extra, `wandb`."""

from __future__ import annotations

import importlib
import json
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.processes import is_primary

RUN_ID = "wandb.txt"
"""In a workdir: the run there that this one goes on with."""


class Tracker:
    """Sends rows of metrics and speed to a run of a W&B project, from the first process alone."""

    def __init__(
        self, project: str = "", workdir: pathlib.Path = pathlib.Path(), config_json: str = "{}"
    ):
        """Begins a run, or goes on with the workdir's; "" = no project, and nothing is sent.

        Without a login W&B's own rules hold: WANDB_MODE=offline keeps everything in the workdir.

        Raises:
          InputError: if the package is not installed, or W&B cannot be reached.
        """
        self._run: Any = None
        if not project or not is_primary():
            return
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"config.log.wandb={project!r} needs a package that cannot be imported ({error}); "
                "pip install 'flamingo_jax[wandb]', or leave the field empty"
            ) from error
        kept = workdir / RUN_ID
        if not kept.exists():
            kept.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
        try:
            self._run = wandb.init(
                project=project,
                id=kept.read_text(encoding="ascii").strip(),
                resume="allow",
                name=workdir.name,
                dir=str(workdir),
                config=json.loads(config_json),
            )
        except Exception as error:  # the package has errors of its own
            raise InputError(
                f"config.log.wandb={project!r}: {error}; log in by `wandb login`, set "
                "WANDB_MODE=offline, or leave the field empty"
            ) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Sends a row's numbers as STAGE/KIND/KEY over STAGE/step.

        W&B's own step only grows: after a kill rows come again, and their step says where.
        """
        if self._run is None:
            return
        stage = row["stage"]
        prefix = f"{stage}/{row['kind']}/" if "kind" in row else f"{stage}/speed/"
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        numbers = {
            prefix + key: value
            for key, value in row.items()
            if key not in ("step", "time") and isinstance(value, int | float)
        }
        self._run.log(numbers | {f"{stage}/step": row["step"]})

    def close(self) -> None:
        """Sends what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None
