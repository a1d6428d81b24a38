"""The form of an upload, however its body is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidInput
from app.gateway.form import Files, FormReader, Text

BOUNDARY = "B-o"
TRICKY = [
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n-",
    b"\r\n--",
    b"\r\n--B",
    b"\r\n--B-",
    b"--B-",
    b"o",
    b"a,b\r\n1,2",
    b"\x00\xff",
]
contents = st.lists(st.sampled_from(TRICKY), max_size=6).map(b"".join).filter(lambda data: b"--B-o" not in data)


def body(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    """`parts` are what stands in Content-Disposition after form-data, and the content."""
    told = [
        f"--{BOUNDARY}\r\nContent-Type: x/y\r\ncontent-disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join(told) + f"--{BOUNDARY}".encode() + end


def read(data: bytes, sizes: list[int]) -> tuple[Text, Files, bool]:
    """In pieces of these sizes by turns."""
    text, files = Text("name"), Files("file", 2)
    reader, at, turn = FormReader(BOUNDARY, [files], [text]), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        reader.write(data[at : at + size])
        at, turn = at + size, turn + 1
    return text, files, reader.ended


@given(contents, contents, st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_pieces_of_any_size_are_the_same_form(first: bytes, second: bytes, sizes: list[int]):
    parts = [('name="file"; filename="C:\\up\\a.csv"', first), ('name="name"', b"mine"), ('name="file"', second)]
    text, files, ended = read(body(*parts), sizes)
    found = dict(files.take())
    assert (text.value, files.names, ended) == (b"mine", ["a.csv", "upload"], True)
    assert (found.get(0, b""), found.get(1, b"")) == (first, second)
    assert files.take() == []


@pytest.mark.parametrize("end", [b"", b"-", b"\r\n"])
def test_without_its_end_a_form_has_not_ended(end: bytes):
    assert not read(body(('name="file"', b"a"), end=end), [7])[2]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/etc/passwd", "passwd"), ("..\\..\\x.csv", "x.csv"), ("a%22b.csv", 'a"b.csv'), ("数据.csv", "数据.csv"),
        ("a\tb\x7f.csv", "ab.csv"), ("", "upload"), ("/", "upload"), ("x" * 300, "x" * 255),
    ],
)  # fmt: skip
def test_file_names_are_shown_without_folders(name: str, shown: str):
    assert read(body((f'name="file"; filename="{name}"', b"a")), [4096])[1].names == [shown]


@pytest.mark.parametrize(
    ("data", "loc"),
    [
        (b"no form", "body"),
        (body(('name="other"', b"a")), "other"),
        (body(("x=1", b"a")), "body"),
        (body(('name="name"', b"a"), ('name="name"', b"b")), "name"),
        (body(*[('name="file"', b"a")] * 3), "file"),
        (body(('name="name"', b"x" * 4097)), "name"),
        (b"--B-o\r\n" + b"x: y\r\n" * 100, "body"),
        (b"--B-o\r\nx: " + b"y" * 100_000, "body"),
    ],
)
def test_what_is_no_form_or_another_is_refused(data: bytes, loc: str):
    with pytest.raises(InvalidInput) as caught:
        read(data, [1000])
    assert caught.value.errors[0].loc == (loc,)
