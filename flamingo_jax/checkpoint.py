"""Checkpoints of a run: the steps of each stage, and the frozen weights.

WORKDIR/checkpoints/STAGE/STEP/{params,opt,meta} and WORKDIR/frozen/DIGEST/{params,meta} are sealed
folders (sealed.py): a save is seen whole or not at all, and a restore verifies what it loads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath

from flamingo_jax import fingerprint, sealed, storage
from flamingo_jax.errors import InputError
from flamingo_jax.processes import barrier, is_primary

Place = str | os.PathLike[str]
"""A folder, or the address of one in a bucket."""

Report = Callable[[int, str], None]
"""Is told (step, sentence) when a damaged step is passed over."""


class Restored(NamedTuple):
    """A step that was read and verified; `opt` is None where only parameters were asked for."""

    step: int
    params: Any
    opt: Any
    meta: dict[str, Any]


def list_steps(folder: Place) -> list[int]:
    """The steps in a stage's folder, ascending; whether they are sound shows when they are read."""
    numbered = [f for f in storage.entries(storage.to_path(folder)) if f.name.isdecimal()]
    return sorted(int(f.name) for f in numbered if sealed.is_whole(f))


class StageCheckpoints:
    """Writes and restores the steps of one stage; every process makes one and calls it alike.

    The newest `keep` steps stay, and thereby a finished stage's last one, and one in every
    `keep_every`. A damaged step is moved to STEP.damaged when a restore passes over it: nothing is
    lost that might be wanted, and its number is free to be saved again.
    """

    def __init__(
        self,
        folder: Place,
        *,
        keep: int,
        every: int,
        keep_every: int = 0,
        report: Report | None = None,
    ):
        """Opens `folder`, which is made where it does not exist, and clears up after killed saves.

        Args:
          folder: WORKDIR/checkpoints/STAGE; its last part is the stage's name.
          keep: how many steps stay, at least 1. While one is saved there is one more.
          every: steps between saves that are not forced; 0 = only forced ones.
          keep_every: saved steps that are multiples of it stay for ever; 0 = none.
          report: is told of damaged steps.

        Raises:
          InputError: if `keep`, `every` or `keep_every` makes no sense.
        """
        if keep < 1 or every < 0:
            raise InputError(
                f"checkpoint.keep={keep} and checkpoint.every={every}: keep at least 1 step, and "
                "save every so many steps, or 0 for only at the end"
            )
        if keep_every < 0 or (every and keep_every % every):
            raise InputError(
                f"checkpoint.keep_every={keep_every} is no multiple of checkpoint.every={every}: "
                "no step, or only some of them, would be kept; 0 keeps none for ever"
            )
        self.folder = storage.to_path(folder)
        self.stage = self.folder.name
        self._keep, self._every, self._keep_every = keep, every, keep_every
        self._report = report or (lambda step, text: None)
        if is_primary():
            self.folder.mkdir(parents=True, exist_ok=True)
        sealed.remove_unfinished(self.folder)
        self._steps = list_steps(self.folder)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._removals: list[threading.Thread] = []

    def steps(self) -> list[int]:
        """The steps there are, ascending, with the one that is being saved."""
        return list(self._steps)

    def due(self, step: int) -> bool:
        """Whether an unforced save of this step would be made."""
        newest = self._steps[-1] if self._steps else -1
        return self._every > 0 and step % self._every == 0 and step > newest

    def save(
        self, step: int, params: Any, opt: Any, meta: dict[str, Any], force: bool = False
    ) -> bool:
        """Starts to save a step, and returns when its arrays may be donated.

        Waits for the step's arrays and for the save before this one; the files are written in the
        background, and an error of theirs is raised by the next call here. Rows of the metrics up
        to `step` must be in their files before: a kill may come right after.

        Args:
          step: updates made so far.
          params: the trained parameters, nested dicts of arrays.
          opt: the optimizer's state.
          meta: what else to keep, as JSON; `stage`, `step`, `fingerprints` and
            `sha256` are added.
          force: save even if `step` is no multiple of `every` (a stage's last step, a preemption).

        Returns:
          Whether a save was started: not if it is not due, or there already.

        Raises:
          ValueError: if a later step has been saved already.
        """
        newest = self._steps[-1] if self._steps else -1
        if step == newest or not (force or self.due(step)):
            return False
        if step < newest:
            raise ValueError(f"step {step} is older than {self.folder / str(newest)}")
        self.wait()
        trees = {"params": params, "opt": opt}
        items = sealed.composite(trees, {**meta, "stage": self.stage, "step": step})
        self._checkpointer.save(self.folder / str(step), args=items)
        self._steps.append(step)
        return True

    def restore(self, params: Any, opt: Any) -> Restored | None:
        """Reads the newest sound step; None where nothing was saved yet.

        Damaged steps after it are moved aside and reported. Where steps are left but none is sound
        nothing is touched: to begin anew, or to mend the file system, is the user's choice.

        Args:
          params: abstract parameters with the shardings to restore to (any mesh, any devices).
          opt: the abstract optimizer state, likewise.

        Raises:
          InputError: if the newest sound step holds other arrays than the config makes, or no step
            is sound.
        """
        self.wait()
        barrier("checkpoint:restore")  # all see the same steps
        self._steps = list_steps(self.folder)
        restored, damaged = _newest_sound(self.folder, {"params": params, "opt": opt})
        if restored is None:
            if damaged:
                why = _none_sound(self.folder, damaged)
                raise InputError(f"{why}; put back a sound copy, or remove it to begin anew")
            return None
        for step, problem in damaged:
            aside = sealed.move_aside(self.folder / str(step))
            self._steps.remove(step)
            text = f"step {step} is damaged ({problem}), using step {restored.step}"
            self._report(step, f"{text}; the damaged one is kept as {aside.name}")
        return restored

    def wait(self) -> None:
        """Waits until the save under way is on disk, and lets go of the steps beyond `keep`.

        Raises:
          InputError: if the disk is full.
          Exception: whatever else made the save fail; the steps before are as they were.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            self._steps = list_steps(self.folder)
            if "No space left on device" in str(error):
                raise InputError(
                    f"{self.folder} could not be written, as its disk is full; free some space and "
                    "start again: the run goes on from its newest step"
                ) from error
            raise
        for step in self._steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._steps.remove(step)
                self._remove(step)

    def close(self) -> None:
        """Waits for everything, and ends the threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            for thread in self._removals:
                thread.join()

    def __enter__(self) -> StageCheckpoints:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _remove(self, step: int) -> None:
        """Makes a step none at once, and removes the files in the background."""
        if not is_primary():
            return
        leaving = sealed.withdraw(self.folder / str(step))
        self._removals = [thread for thread in self._removals if thread.is_alive()]
        thread = threading.Thread(target=sealed.sweep, args=(leaving,), daemon=True)
        thread.start()
        self._removals.append(thread)


def load_params(
    folder: Place,
    params: Any = None,
    *,
    step: int | None = None,
    report: Report | None = None,
) -> Restored:
    """Reads parameters for use, without the optimizer's state, and changes nothing on disk.

    Args:
      folder: WORKDIR/checkpoints/STAGE.
      params: abstract parameters with the shardings to restore to; None = as they were saved, on
        the first local device.
      step: this step and no other; None = the newest sound one.
      report: is told of damaged steps that were passed over.

    Raises:
      InputError: if there is no such sound step, or `params` differ from what was saved.
    """
    folder = storage.to_path(folder)
    there = list_steps(folder)
    if step is not None and step not in there:
        have = ", ".join(map(str, there)) or "no steps"
        raise InputError(f"{folder} holds no step {step}; it holds {have}")
    restored, damaged = _newest_sound(folder, {"params": params}, step)
    if restored is None:
        raise InputError(f"{_none_sound(folder, damaged)}; give the folder of a run that has saved")
    for number, problem in damaged:
        text = f"step {number} is damaged ({problem}), using step {restored.step}"
        (report or (lambda step, text: None))(number, text)
    return restored


def _newest_sound(
    folder: epath.Path, targets: dict[str, Any], only: int | None = None
) -> tuple[Restored | None, list[tuple[int, str]]]:
    """The newest step that is sound, and (step, problem) of the damaged ones after it."""
    damaged = []
    for step in reversed(list_steps(folder) if only is None else [only]):
        try:
            trees, meta = sealed.read(folder / str(step), targets, {"step": step})
        except sealed.Damaged as error:
            damaged.append((step, str(error)))
        else:
            return Restored(step, trees["params"], trees.get("opt"), meta), damaged
    return None, damaged


def _none_sound(folder: epath.Path, damaged: list[tuple[int, str]]) -> str:
    why = "; ".join(f"step {step}: {problem}" for step, problem in damaged)
    return f"{folder} holds no sound step ({why or 'nothing was saved'})"


def save_frozen(workdir: Place, tree: Any) -> str:
    """Writes frozen weights to WORKDIR/frozen/DIGEST, unless they are there and sound already.

    A damaged folder of that digest is moved to DIGEST.damaged and written anew.

    Args:
      workdir: the run's folder.
      tree: nested dicts of arrays, sharded in any way; dtypes are kept.

    Returns:
      The digest of paths, dtypes, shapes and values: what `load_frozen` takes.
    """
    barrier("checkpoint:made")  # the first collective of a run: see training.py
    prints, signatures = fingerprint.fingerprints(tree), fingerprint.signature(tree)
    digest = fingerprint.digest(prints, signatures)
    parent = storage.to_path(workdir) / "frozen"
    folder = parent / digest
    sealed.remove_unfinished(parent)
    if sealed.is_whole(folder):
        try:
            sealed.verify_on_disk(folder, "params", tree)
        except sealed.Damaged:
            sealed.move_aside(folder)
        else:
            return digest
    if is_primary():
        parent.mkdir(parents=True, exist_ok=True)
    barrier("checkpoint:frozen")
    items = sealed.composite({"params": tree}, {})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=items)
    return digest


def load_frozen(workdir: Place, digest: str, params: Any = None) -> Any:
    """Reads the frozen weights of this digest, verified.

    Args:
      workdir: the run's folder.
      digest: what `save_frozen` returned.
      params: abstract arrays with the shardings to restore to; None = as they were saved, on the
        first local device.

    Raises:
      InputError: if the folder is missing or damaged, or holds other arrays than `params`.
    """
    folder = storage.to_path(workdir) / "frozen" / digest
    remedy = "put back a sound copy of that folder, or start again in another workdir"
    if not sealed.is_whole(folder):
        raise InputError(f"the frozen weights {folder} are missing; {remedy}")
    try:
        trees, meta = sealed.read(folder, {"params": params})
        rows = {path: row.split(" ") for path, row in meta["fingerprints"]["params"].items()}
        signatures = {path: row[0] for path, row in rows.items()}
        prints = {path: row[1] for path, row in rows.items()}
        if fingerprint.digest(prints, signatures) != digest:
            raise sealed.Damaged("its arrays are those of another digest")
    except sealed.Damaged as error:
        raise InputError(f"the frozen weights {folder} are damaged ({error}); {remedy}") from error
    return trees["params"]
