"""What `rows` shows of a data set."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image


def test_values_as_parsed(ingest: Callable[..., Any]):
    raw = b"n,x,flag,when,word\n9007199254740993,0.5,true,2024-02-29,a\n-2,,,,\n"
    assert ingest(raw).profile["preview"] == [
        {"n": 9007199254740993, "x": 0.5, "flag": True, "when": "2024-02-29T00:00:00", "word": "a"},
        {"n": -2, "x": None, "flag": None, "when": None, "word": None},
    ]


def test_the_first_hundred_rows(ingest: Callable[..., Any]):
    raw = "a,b\n" + "".join(f"{i},{i}.5\n" for i in range(250))
    preview = ingest(raw.encode()).profile["preview"]
    assert len(preview) == 100
    assert preview[99] == {"a": 99, "b": 99.5}


def test_pictures_without_their_bytes(ingest: Callable[..., Any]):
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("L", (5, 7), 128).save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("cats/1.png", picture.getvalue())
        packed.writestr("dogs/2.png", picture.getvalue())
    assert ingest(archive.getvalue(), "pets.zip").profile["preview"] == [
        {"label": "cats", "path": "cats/1.png", "width": 5, "height": 7},
        {"label": "dogs", "path": "dogs/2.png", "width": 5, "height": 7},
    ]


def test_long_cells_and_wide_tables_are_cut(ingest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    [row] = ingest(b"a,b\n" + b"x" * 5000 + b",y\n").profile["preview"]
    assert row == {"a": "x" * 999 + "…", "b": "y"}
    monkeypatch.setattr("workers.data.preview._CELLS", 6)
    assert len(ingest(b"a,b\n" + b"1,2\n" * 50).profile["preview"]) == 3


def test_names_that_are_patterns_elsewhere(ingest: Callable[..., Any]):
    assert ingest(b"^.*$,*\n1,2\n3,4\n").profile["preview"] == [{"^.*$": 1, "*": 2}, {"^.*$": 3, "*": 4}]
