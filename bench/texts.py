"""Texts with their published divisions: rows to train on, and rows that judge."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path

Rows = list[tuple[str, str]]  # text, label
_FOLDS = 5


def divisions(name: str, folder: Path) -> Iterator[tuple[Rows, Rows]]:
    """(train, test) of a data set as it is published, or of each of five folds where nothing is."""
    if name == "ag-news":  # the labels of one file are 0 to 3, and of the other 1 to 4
        train = [(text, str(int(label) + 1)) for text, label in _comma(folder / "ag_news_train5000.csv")]
        test = [(f"{title} {text}", label) for label, title, text in _comma(folder / "ag_news_test.csv")]
        yield train, test
    elif name == "sst2":
        yield _tab(folder / "sst2" / "train.tsv"), _tab(folder / "sst2" / "test.tsv")
    elif name == "thucnews":
        yield _tab(folder / "thucnews_titles" / "dev.txt"), _tab(folder / "thucnews_titles" / "test.txt")
    else:
        rows = [(text, label) for label, text in _comma(folder / "ChnSentiCorp_htl_all.csv")[1:]]
        random.Random(0).shuffle(rows)  # noqa: S311 - folds
        for fold in range(_FOLDS):
            yield [row for at, row in enumerate(rows) if at % _FOLDS != fold], rows[fold::_FOLDS]


def as_csv(rows: Rows, path: Path) -> None:
    """Columns `text` and `label`; every cell is quoted, and labels are words."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows((text, f"class {label}") for text, label in rows)


def _comma(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def _tab(path: Path) -> Rows:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [(text, label) for text, label in (line.split("\t") for line in lines if line.strip())]
