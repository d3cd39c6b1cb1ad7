"""Errors that a user can mend, and the exit codes every verb keeps to (DESIGN.md §4.1)."""

from __future__ import annotations

EXIT_OK = 0
EXIT_DEFECT = 1
EXIT_BAD_INPUT = 2
EXIT_DOES_NOT_FIT = 3
EXIT_PREEMPTED = 143


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do; exit code 2."""


class OutOfReach(Exception):
    """A bucket does not answer: one sentence; exit code 1, as a new start may well work."""


class Preempted(Exception):
    """The run was asked to stop and has saved everything; exit code 143."""
