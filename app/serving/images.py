"""Pictures to tensors. Ingest, training and prediction all decode here, so that serving cannot differ from training."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from app.core.errors import InvalidTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.core.signature import ImageFormat

# Bytes of memory: four as it was decoded, and four as it is flattened. WebP's decoder has canvases of its own.
_PIXEL_BYTES = 8
_WEBP_PIXEL_BYTES = 20
_STRIP_PIXELS = 1 << 20
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
# What Pillow's decoders raise on damaged input, besides its own errors.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
# `open_image` compares the size in the header with the caller's limit before anything is decoded. Pillow's own limit
# would only warn, through the process-wide warnings filter, which threads share.
Image.MAX_IMAGE_PIXELS = None


def decode_image(
    raw: bytes, fmt: "ImageFormat", *, max_megapixels: float, before: Callable[[int], None] | None = None
) -> "NDArray[np.uint8]":
    """Decode one encoded picture to uint8 [C, H, W], 0-255, as `fmt` wants it; resized bilinearly if its size differs.

    `before` is told the bytes that this takes before it is done; what it raises is raised.
    InvalidTensor: not a picture of FORMATS, damaged, or larger than `max_megapixels`.
    """
    picture = open_image(raw, max_megapixels, before)
    if picture.mode != fmt.mode:
        picture = picture.convert(fmt.mode)
    if picture.size != (fmt.width, fmt.height):
        picture = picture.resize((fmt.width, fmt.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)  # [H, W] or [H, W, C]
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))  # noqa: PLR2004 - rank


def open_image(raw: bytes, max_megapixels: float, before: Callable[[int], None] | None = None) -> Image.Image:
    """Decode the first frame, upright (EXIF orientation applied), in mode L or RGB; transparency lies on white.

    `before` as in `decode_image`.
    InvalidTensor: not a picture of FORMATS, damaged, or larger than `max_megapixels` (10^6 pixels).
    """
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as probe:
            _check_size(probe, max_megapixels)
            if probe.format == "PNG":
                probe.verify()  # checksums; decoding alone does not look at all of them
            if before is not None:
                a_pixel = _WEBP_PIXEL_BYTES if probe.format == "WEBP" else _PIXEL_BYTES
                before(probe.width * probe.height * a_pixel)
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
        picture.load()
        _check_size(picture, max_megapixels)
        ImageOps.exif_transpose(picture, in_place=True)
        return _flatten(picture)
    except UnidentifiedImageError:
        raise InvalidTensor(f"not a picture; send {', '.join(FORMATS)}") from None
    except _DAMAGED as error:
        raise InvalidTensor(f"the picture is damaged: {error}; save it again") from None


def _check_size(picture: Image.Image, max_megapixels: float) -> None:
    width, height = picture.size
    if width * height > max_megapixels * 1e6:
        raise InvalidTensor(
            f"the picture has {width} x {height} pixels; at most {max_megapixels:g} megapixels are taken "
            "(AIMASS_LIMIT_IMAGE_MEGAPIXELS), so scale it down"
        )


def _flatten(picture: Image.Image) -> Image.Image:
    """Any mode to L or RGB, in strips: of the whole picture at once it would take several copies."""
    if picture.mode in {"L", "RGB"} and "transparency" not in picture.info:
        return picture
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // width)
    flat: Image.Image | None = None
    for top in range(0, height, rows):
        strip = _flatten_strip(picture.crop((0, top, width, min(height, top + rows))))
        flat = flat or Image.new(strip.mode, picture.size)
        flat.paste(strip, (0, top))
    return flat or picture


def _flatten_strip(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        pixels = np.asarray(picture.convert("I"))  # int32, 0-65535
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    if picture.mode in {"I", "F"}:
        raise InvalidTensor(
            f"the picture has 32-bit pixels (mode {picture.mode}), whose range is unknown; save it with 8 or 16 bits"
        )
    if picture.mode in {"LA", "La", "RGBA", "RGBa", "PA"} or "transparency" in picture.info:
        grey = picture.mode in {"L", "LA", "La", "1"}
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("L" if grey else "RGB")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def encode_image(pixels: "NDArray[np.generic]") -> bytes:
    """[C, H, W] of 0-255 as a PNG."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()
