"""Writes small files: JSON, JSON lines, CSV, drawn pictures, and clips that nobody opens."""

import csv
import json
import pathlib
from typing import Any

from PIL import Image

SHADES = iter(range(1, 10_000))


def put(path: pathlib.Path, value: Any) -> None:
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def lines(path: pathlib.Path, values: list[Any]) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def sheet(path: pathlib.Path, header: str, rows: list[list[Any]]) -> None:
    """Writes CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def draw(*paths: pathlib.Path) -> None:
    """Draws pictures, each in another colour."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = next(SHADES)
        Image.new("RGB", (8, 6), (shade % 256, shade * 7 % 256, 90)).save(path)


def clips(folder: pathlib.Path, *names: str) -> None:
    """Clips that nobody opens."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
