"""Decoding pictures, and archives of them."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.core.errors import InvalidTensor, Overloaded
from app.core.signature import ImageFormat
from app.serving import images

decode_image = partial(images.decode_image, max_megapixels=50.0)
open_image = partial(images.open_image, max_megapixels=50.0)


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(colour: str, size: tuple[int, int] = (4, 4)) -> bytes:
    return encode(Image.new("RGB", size, colour))


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


def test_decode_is_channels_first_and_exact():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    decoded = decode_image(encode(Image.fromarray(pixels)), ImageFormat("RGB", 2, 3))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels.transpose(2, 0, 1))
    grey = decode_image(encode(Image.fromarray(pixels[..., 0])), ImageFormat("L", 2, 3))
    np.testing.assert_array_equal(grey, pixels[None, ..., 0])


def test_decode_resizes_and_converts():
    decoded = decode_image(solid("red", (8, 6)), ImageFormat("RGB", 3, 5))
    assert decoded.shape == (3, 3, 5)
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]
    assert decode_image(solid("red", (8, 6)), ImageFormat("L", 3, 5))[0, 0, 0] == 76
    assert decode_image(encode(Image.new("L", (2, 2), 9)), ImageFormat("RGB", 2, 2))[:, 0, 0].tolist() == [9, 9, 9]


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))


@pytest.mark.parametrize(
    ("picture", "mode", "expected"),
    [
        (Image.new("1", (1, 1), 1), "L", 255),
        (Image.new("LA", (1, 1), (0, 0)), "L", 255),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "RGB", (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), "RGB", (10, 20, 30)),
        (Image.new("RGB", (1, 1), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), "RGB", (10, 20, 30)),
        (sixteen_bit().crop((1, 0, 2, 1)), "L", 128),
        (sixteen_bit().crop((2, 0, 3, 1)), "L", 255),
    ],
)
def test_modes(picture: Image.Image, mode: str, expected: int | tuple[int, ...]):
    opened = open_image(encode(picture))
    assert opened.mode == mode
    assert opened.getpixel((0, 0)) == expected


def test_cmyk_and_orientation():
    assert open_image(encode(Image.new("CMYK", (8, 8)), "JPEG")).mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (16, 8), "black")
    picture.paste((255, 255, 255), (0, 0, 8, 8))  # left half white: after a quarter turn clockwise, the upper half
    upright = open_image(encode(picture, "JPEG", exif=exif, quality=95))
    assert upright.size == (8, 16)
    assert np.asarray(upright)[0].min() > 240
    assert np.asarray(upright)[-1].max() < 15


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    raw = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(raw).getpixel((0, 0)) == (255, 0, 0)


def test_size_is_checked_before_decoding():
    raw = encode(Image.new("1", (3000, 3000)))
    with pytest.raises(InvalidTensor, match="3000 x 3000 pixels; at most 5 megapixels"):
        open_image(raw, max_megapixels=5)


@pytest.mark.parametrize(
    "raw", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n", solid("red")[:-30], encode(Image.new("F", (2, 2)), "TIFF")]
)
def test_what_is_no_picture(raw: bytes):
    with pytest.raises(InvalidTensor):
        open_image(raw)


@pytest.mark.parametrize(("kind", "mode", "a_pixel"), [("PNG", "RGBA", 8), ("JPEG", "RGB", 8), ("WEBP", "RGB", 20)])
def test_what_decoding_takes_is_told_before_it_is_done(kind: str, mode: str, a_pixel: int):
    raw = encode(Image.new(mode, (50, 40)), kind)
    told: list[int] = []
    decode_image(raw, ImageFormat("RGB", 2, 3), before=told.append)
    assert told == [50 * 40 * a_pixel]
    with pytest.raises(InvalidTensor):
        decode_image(raw, ImageFormat("RGB", 2, 3), max_megapixels=0.001, before=told.append)
    assert len(told) == 1

    def refuse(_: int) -> None:
        raise Overloaded("no room")

    with pytest.raises(Overloaded):
        decode_image(raw, ImageFormat("RGB", 2, 3), before=refuse)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "CMYK", "I;16"])
def test_strips_make_the_same_picture_as_one_step(mode: str, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (61, 83, 4), np.uint8), "RGBA")
    transparent: dict[str, object] = {}
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 65536, (61, 83), np.uint16))
    elif mode in {"P", "PA"}:
        picture = pixels.convert("RGB").quantize(200).convert(mode)
        transparent = {"transparency": 3} if mode == "P" else {}
    else:
        picture = pixels.convert(mode)
    raw = encode(picture, "TIFF" if mode in {"CMYK", "PA"} else "PNG", **transparent)
    whole = open_image(raw)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 500)
    strips = open_image(raw)
    assert (strips.mode, strips.size, strips.tobytes()) == (whole.mode, whole.size, whole.tobytes())


_PEAK = """
import pathlib, re
from app.serving.images import open_image

def highest():  # of this process alone, which getrusage does not say
    return int(re.search("VmHWM: *(.*) kB", pathlib.Path("/proc/self/status").read_text().replace("\\t", " "))[1])

raw = bytes.fromhex(input())
before = highest()
open_image(raw, 50)
print((highest() - before) * 1024 / 16e6)
"""


def test_a_transparent_picture_takes_two_copies_of_memory():
    raw = encode(Image.new("RGBA", (4000, 4000), (9, 9, 9, 9)))
    found = subprocess.run([sys.executable, "-c", _PEAK], input=raw.hex(), capture_output=True, text=True, check=True)
    assert float(found.stdout) < 10  # bytes a pixel; a copy has 4


def test_formats_outside_the_list_are_not_opened():
    with pytest.raises(InvalidTensor, match="not a picture"):
        open_image(encode(Image.new("RGB", (2, 2)), "PPM"))


def test_folders_are_labels_and_splits(ingest: Callable[..., Any]):
    raw = packed(**{
        "set/train/ants/1.a.png": solid("red", (4, 5)),
        "set/train/bees/2.png": solid("blue"),
        "set/val/ants/3.png": solid("green"),
        "set/.DS_Store": b"litter",
        "set/README.txt": b"about",
    })  # fmt: skip
    got = ingest(raw, "set.zip")
    assert got.result.kind == "image"
    assert got.table.drop("image").rows() == [
        (0, "ants", "set/train/ants/1.a.png", 4, 5, "train"),
        (1, "bees", "set/train/bees/2.png", 4, 4, "train"),
        (2, "ants", "set/val/ants/3.png", 4, 4, "validation"),
    ]
    assert got.table["image"][1] == solid("blue")
    assert got.column("label")["top"] == [{"value": "ants", "count": 2}, {"value": "bees", "count": 1}]
    assert got.column("height")["max"] == 5
    assert [r.path for r in got.result.rejected_first] == ["set/README.txt"]


def test_pictures_outside_class_folders(ingest: Callable[..., Any], refused: Callable[..., str]):
    assert "not in a class folder" in refused(packed(**{"1.png": solid("red"), "train/2.png": solid("red")}), "a.zip")
    got = ingest(packed(**{"1.png": solid("red"), "a/2.png": solid("red")}), "a.zip")
    assert got.result.rows == 1
    assert got.warned("of one class, 'a'")


def test_repeated_pictures_are_counted(ingest: Callable[..., Any]):
    same = solid("red")
    got = ingest(packed(**{"a/1.png": same, "a/2.png": same, "b/3.png": same, "b/4.png": solid("blue")}), "a.zip")
    assert got.result.details["duplicate_rows"] == 2
    assert got.warned("2 pictures repeat an earlier one, 1 of them under another label")


def test_chinese_folder_names_of_old_zip_tools(ingest: Callable[..., Any]):
    raw = packed(**{"XXXX/1.png": solid("red"), "b/2.png": solid("blue")})
    got = ingest(raw.replace(b"XXXX", "猫狗".encode("gb18030")), "a.zip")
    assert got.table["label"].to_list() == ["猫狗", "b"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("train_name", "test_name"), [("train", "t10k"), ("emnist-letters-train", "emnist-letters-test")]
)
def test_idx_pairs_become_a_split(ingest: Callable[..., Any], train_name: str, test_name: str):
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (3, 4, 5), np.uint8), rng.integers(0, 256, (2, 4, 5), np.uint8)
    raw = packed(**{
        f"{train_name}-images-idx3-ubyte.gz": gzip.compress(idx(train)),
        f"{train_name}-labels-idx1-ubyte.gz": gzip.compress(idx(np.array([7, 0, 7], np.uint8))),
        f"{test_name}-images-idx3-ubyte": idx(test),
        f"{test_name}-labels-idx1-ubyte": idx(np.array([1, 0], np.uint8)),
    })  # fmt: skip
    got = ingest(raw, "mnist.zip")
    assert got.table["label"].to_list() == ["7", "0", "7", "1", "0"]
    assert got.table["split"].to_list() == ["train"] * 3 + ["test"] * 2
    assert got.table["width"].to_list() == [5] * 5
    for row, pixels in zip(got.table["image"], [*train, *test], strict=True):
        np.testing.assert_array_equal(decode_image(row, ImageFormat("L", 4, 5))[0], pixels)


def test_idx_that_claims_too_much(refused: Callable[..., str]):
    images = idx(np.zeros((2, 4, 4), np.uint8))
    labels = idx(np.zeros(2, np.uint8))
    huge = struct.pack(">IIII", 2051, 2**32 - 1, 28, 28) + bytes(784)
    both = {"train-images-idx3-ubyte": huge, "train-labels-idx1-ubyte": labels}
    assert "the idx header claims (4294967295, 28, 28)" in refused(packed(**both), "a.zip")
    assert "images only; put its labels-idx1 file" in refused(packed(**{"train-images-idx3-ubyte": images}), "a.zip")
    both = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": idx(np.zeros(3, np.uint8))}
    assert "holds 2 pictures, but its labels are 3" in refused(packed(**both), "a.zip")


def test_archive_limits(refused: Callable[..., str]):
    files = {f"a/{i}.png": solid("red") for i in range(5)}
    assert "over 4 members" in refused(packed(**files), "a.zip", archive_members=4)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(8 << 20))
    assert "200 times its size" in refused(buffer.getvalue(), "a.zip")


def test_a_damaged_member_is_named_and_the_others_kept(ingest: Callable[..., Any]):
    raw = packed(**{"a/1.png": solid("red"), "b/2.png": solid("blue", (7, 7))})
    at = raw.index(b"IDAT", raw.index(b"IDAT") + 4)
    got = ingest(raw[: at + 6] + b"\xff" + raw[at + 7 :], "a.zip")
    assert got.table["path"].to_list() == ["a/1.png"]
    assert [(r.path, r.reason[:22]) for r in got.result.rejected_first] == [("b/2.png", "damaged in the archive")]


def test_encrypted_archive(refused: Callable[..., str]):
    raw = bytearray(packed(**{"a/1.png": solid("red")}))
    central = raw.index(b"PK\x01\x02")
    raw[central + 8] |= 1
    assert "encrypted" in refused(bytes(raw), "a.zip")


def test_tar_names_in_old_encodings_and_with_joined_emoji(ingest: Callable[..., Any]):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="gb18030") as archive:
        for name, colour in (("猫/1.png", "red"), ("狗/2.png", "blue")):
            info = tarfile.TarInfo(name)
            info.size = len(solid(colour))
            archive.addfile(info, io.BytesIO(solid(colour)))
    assert ingest(buffer.getvalue(), "a.tar").table["label"].to_list() == ["猫", "狗"]
    got = ingest(packed(**{"👩\u200d🌾/1.png": solid("red"), "b\x07/2.png": solid("red")}), "a.zip")
    assert got.table["label"].to_list() == ["👩\u200d🌾"]
    assert "control characters" in got.result.rejected_first[0].reason


def test_huge_members_are_not_read(ingest: Callable[..., Any]):
    got = ingest(packed(**{"a/1.png": bytes(3 << 20), "a/2.png": solid("red")}), "a.zip", image_megapixels=0.1)
    assert "larger than 1 MiB" in got.result.rejected_first[0].reason
    assert got.result.rows == 1


@pytest.mark.parametrize("size", [0, 3, 9, 15])
def test_idx_shorter_than_its_header(refused: Callable[..., str], size: int):
    cut = {"train-images-idx3-ubyte": idx(np.zeros((2, 4, 4), np.uint8))[:size], "train-labels-idx1-ubyte": b"x"}
    assert "the idx header claims" in refused(packed(**cut), "a.zip")
