"""Archives of text files in class folders."""

import io
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from tests.unit.data.conftest import Ingest

ROOMS = {"good": ["lovely room", "房间很干净", "the best stay"], "bad": ["dirty room", "房间太差", "never again"]}


def packed(files: dict[str, bytes], kind: str = "zip") -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, raw in files.items():
                archive.writestr(name, raw)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def rooms(codec: str = "utf-8", prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{label}/{i}.txt": f"\n{text}\n".encode(codec)
        for label, texts in ROOMS.items()
        for i, text in enumerate(texts)
    }


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_are_labels_and_parts(ingest: Ingest, kind: str):
    got = ingest(packed(rooms(prefix="set/train/") | rooms(prefix="set/test/"), kind), "reviews.zip")
    assert got.table.columns == ["__row_id", "text", "label", "split"]
    train = got.table.filter(split="train")
    assert train["text"].to_list() == [text for texts in ROOMS.values() for text in texts]
    assert train["label"].to_list() == ["good"] * 3 + ["bad"] * 3
    assert got.table.filter(split="test")["text"].to_list() == train["text"].to_list()
    assert got.result.kind == "tabular"
    assert got.result.details["format"] == "texts"
    assert got.warned('{"column": "split"}')
    assert got.result.rejected_count == 0


def test_one_file_outside_of_the_parts_leaves_them_out(ingest: Ingest):
    got = ingest(packed(rooms(prefix="train/") | {"more/good/9.txt": b"fine"}), "reviews.zip")
    assert got.table.columns == ["__row_id", "text", "label"]
    assert len(got.table) == 7


@pytest.mark.parametrize("codec", ["gb18030", "utf-16", "utf-8-sig"])
def test_encodings(ingest: Ingest, codec: str):
    got = ingest(packed(rooms(codec)), "reviews.zip")
    assert got.table["text"].to_list() == [text for texts in ROOMS.values() for text in texts]
    assert got.warned("GB18030") == (codec == "gb18030")


def test_what_is_no_text_is_rejected_by_name(ingest: Ingest):
    bad = {
        "good/long.txt": b"x" * (1 << 20) + b"x",
        "good/sound.txt": b"\x00\x01\x02\x03" * 50,
        "good/damaged.txt": "房间\n干净\n".encode() + b"\xff\xfe\xff",
        "good/blank.txt": b" \n",
        "good/empty.txt": b"",
        "good/notes.doc": b"words",
        "README.txt": b"about",
        "../bad/escape.txt": b"words",
    }
    got = ingest(packed(rooms() | bad | {"good/nul.txt": b"a\0b and more"}), "reviews.zip", line_mb=1)
    assert len(got.table) == 7
    assert got.table["text"].to_list()[-1] == "ab and more"
    reasons = {r.path: r.reason for r in got.result.rejected_first}
    assert reasons.keys() == bad.keys()
    assert "AIMASS_LIMIT_LINE_MB" in reasons["good/long.txt"]
    assert "damaged" in reasons["good/damaged.txt"]
    assert "class folder" in reasons["README.txt"]


def test_numbers_as_texts_stay_texts(ingest: Ingest):
    got = ingest(packed({f"{label}/{i}.txt": str(i).encode() for label in "01" for i in range(3)}), "t.zip")
    assert got.table["text"].to_list() == ["0", "1", "2"] * 2
    assert got.table["label"].to_list() == ["0"] * 3 + ["1"] * 3


def test_tables_and_single_folders_are_none(ingest: Ingest, refused: Callable[..., str]):
    assert "2 tables" in refused(packed({"set/a.txt": b"a,b\n1,2\n", "set/b.txt": b"a,b\n1,2\n"}), "d.zip")
    got = ingest(packed({"data.csv": b"a,b\n1,2\n3,4\n", "x/a.txt": b"about", "y/b.txt": b"about"}), "d.zip")
    assert got.table.columns == ["__row_id", "a", "b"]
    assert "no usable text" in refused(packed({"a/1.txt": b" ", "b/2.txt": b" "}), "d.zip")
