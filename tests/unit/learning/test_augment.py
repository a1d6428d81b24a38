"""Changes to training pictures."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from app.core.errors import InvalidSpec
from app.specs.augment import AugmentSpec
from workers.jobs import train
from workers.training.augment import Augment
from workers.training.batches import Batches, Tensors
from workers.training.rand_augment import OPERATIONS

EACH: list[dict[str, Any]] = [
    {"flip": True}, {"flip_vertical": True}, {"crop": 2}, {"rotate": 30}, {"scale": 0.3}, {"brightness": 0.4},
    {"contrast": 0.4}, {"saturation": 0.9}, {"erase": 0.2}, {"mixup": 1.0}, {"cutmix": 1.0},
    {"rand_augment": {"operations": 2, "magnitude": 9}},
]  # fmt: skip
BYTES = {"flip", "flip_vertical", "crop", "erase", "cutmix"}
ALL: dict[str, Any] = {name: value for one in EACH for name, value in one.items()}


def pictures(channels: int = 3, height: int = 10, width: int = 14) -> torch.Tensor:
    draw = np.random.default_rng(3).integers(0, 256, (12, channels, height, width), np.uint8)
    return torch.from_numpy(draw)


def changed(spec: dict[str, Any], images: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    augment = Augment(AugmentSpec.model_validate(spec), images.shape[1], 4)
    (found,), y = augment((images,), torch.arange(len(images)) % 4, np.random.default_rng(seed))
    return found, y


@pytest.mark.parametrize("spec", [*EACH, ALL], ids=lambda spec: "+".join(spec) if len(spec) == 1 else "all")
def test_each_change_keeps_shape_and_range_and_follows_its_seed(spec: dict[str, Any]):
    images = pictures()
    before = images.clone()
    found, y = changed(spec, images)
    assert found.shape == images.shape
    assert found.dtype == (torch.uint8 if set(spec) <= BYTES else torch.float32)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 255
    assert not torch.equal(found.float(), images.float())
    assert torch.equal(images, before)
    again, labels = changed(spec, images)
    assert torch.equal(found, again)
    assert torch.equal(y, labels)
    assert not torch.equal(found, changed(spec, images, seed=2)[0])


def test_nothing_asked_for_changes_nothing():
    found, y = changed({}, images := pictures())
    assert found is images
    assert y.tolist() == [i % 4 for i in range(12)]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_shared_as_the_pixels_are(name: str):
    """Each picture is of one value, a class of its own; so its mean tells the shares."""
    images = (torch.arange(4, dtype=torch.uint8) * 60)[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    found, y = changed({name: 1.0}, images)
    assert y.dtype == torch.float32
    assert torch.allclose(y.sum(dim=1), torch.ones(4))
    assert (y >= 0).all()
    means = (y * torch.arange(4) * 60).sum(dim=1)
    assert torch.allclose(found.float().mean((1, 2, 3)), means, atol=1e-3)
    assert ((y > 0).sum(dim=1) == 2).any()


def test_a_flip_mirrors_half_of_the_pictures():
    images = pictures()
    found, _ = changed({"flip": True}, images)
    mirrored = [torch.equal(one, was.flip(-1)) for one, was in zip(found, images, strict=True)]
    kept = [torch.equal(one, was) for one, was in zip(found, images, strict=True)]
    assert sum(mirrored) + sum(kept) == 12
    assert 0 < sum(mirrored) < 12


def test_a_crop_shifts_and_repeats_the_edge():
    images = torch.arange(8, dtype=torch.uint8).expand(50, 1, 8, 8).contiguous()  # each pixel holds its column
    found, _ = changed({"crop": 3}, images)
    shifts = set()
    for picture in found:
        shift = int(picture[0, 0, 4]) - 4
        shifts.add(shift)
        assert picture[0, 2].tolist() == np.clip(np.arange(8) + shift, 0, 7).tolist()
    assert shifts == {-3, -2, -1, 0, 1, 2, 3}


def test_a_turn_of_nothing_is_the_picture_and_one_of_half_a_circle_its_double_mirror():
    images = pictures()
    augment = Augment(AugmentSpec(rotate=180), 3, 4)
    for angle, expected in ((0.0, images), (180.0, images.flip(-1, -2))):

        class Fixed:
            def uniform(self, low: float, _high: float, count: int, angle: float = angle) -> np.ndarray:
                return np.full(count, angle if low < 0 else 1.0)

        (found,), _ = augment((images,), torch.zeros(12, dtype=torch.int64), Fixed())  # type: ignore[arg-type]
        assert torch.allclose(found, expected.float(), atol=0.1)


def test_erasing_takes_its_share_of_the_picture():
    images = pictures(1, 20, 20)
    found, _ = changed({"erase": 0.25}, images)
    assert {int((one != was).sum()) for one, was in zip(found, images, strict=True)} <= set(range(90, 101))


def test_grey_pictures_have_no_saturation():
    with pytest.raises(InvalidSpec) as caught:
        changed({"saturation": 0.2}, pictures(1))
    assert caught.value.errors[0].loc == ("training", "augment", "saturation")


def test_batches_of_an_epoch_are_changed_alike_again():
    data = Tensors((pictures(),), torch.arange(12) % 4)
    batches = Batches(data, 5, 7, Augment(AugmentSpec.model_validate(ALL), 3, 4))
    first, again = list(batches), list(batches)
    batches.epoch = lambda: 1
    other = list(batches)
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, other, strict=True))


def test_only_training_rows_are_changed(
    make_job: Callable[..., Any], digits: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []
    right = Augment.__call__

    def counted(self: Augment, inputs: Any, y: Any, rng: Any) -> Any:
        seen.append(len(y))
        return right(self, inputs, y, rng)

    monkeypatch.setattr(Augment, "__call__", counted)
    spec = {
        "training": {"epochs": 2, "augment": {"crop": 1, "cutmix": 1}},
        "params": {"channels": [4]},
        "limits": {"threads": 1},
    }
    job = make_job(digits.head(200), data="image", family="cnn", target="label", **spec)
    train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    assert sum(seen) == 2 * card["split"]["rows"]["train"]
    assert card["training"]["augment"]["cutmix"] == 1


HEIGHT, WIDTH, HALF = 16, 20, 0.5
SHEAR, ACROSS, DOWN = 0.3 * HALF, 150 / 331 * HALF * WIDTH, 150 / 331 * HALF * HEIGHT
MAPS = {
    "shear_x": (1, SHEAR, -SHEAR * HEIGHT / 2, 0, 1, 0), "shear_y": (1, 0, 0, SHEAR, 1, -SHEAR * WIDTH / 2),
    "shift_x": (1, 0, ACROSS, 0, 1, 0), "shift_y": (1, 0, 0, 0, 1, DOWN),
}  # fmt: skip
BY_PILLOW: dict[str, Callable[[Image.Image], Image.Image]] = {
    "identity": lambda picture: picture,
    "rotate": lambda picture: picture.rotate(30 * HALF, Image.Resampling.BILINEAR),
    "brightness": lambda picture: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * HALF),
    "saturation": lambda picture: ImageEnhance.Color(picture).enhance(1 + 0.9 * HALF),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * HALF),
    "sharpness": lambda picture: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * HALF),
    "posterize": lambda picture: ImageOps.posterize(picture, 6),
    "solarize": lambda picture: ImageOps.solarize(picture, 128),
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}


def by_pillow(name: str, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What Pillow makes of uint8 [C, H, W]."""
    picture = Image.fromarray(np.moveaxis(pixels, 0, 2))
    if name in MAPS:
        how = Image.Transform.AFFINE, MAPS[name], Image.Resampling.BILINEAR
        return np.moveaxis(np.asarray(picture.transform(picture.size, *how), np.float32), 2, 0)
    return np.moveaxis(np.asarray(BY_PILLOW[name](picture), np.float32), 2, 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rand_augment_are_those_of_pillow(name: str):
    slope = np.arange(HEIGHT)[:, None] * 9 + np.arange(WIDTH)[None] * 3
    pixels = (slope + np.random.default_rng(4).integers(1, 40, (3, HEIGHT, WIDTH))).astype(np.uint8)
    found = OPERATIONS[name](torch.from_numpy(pixels)[None].float(), torch.tensor([HALF]))[0].clamp(0, 255).numpy()
    wanted = by_pillow(name, pixels)
    # Pillow fills what comes from outside with black; here edges are repeated.
    inside = wanted > 0 if name in {*MAPS, "rotate"} else np.full(wanted.shape, fill_value=True)
    inside[:, [0, -1]] &= name not in {*MAPS, "rotate"}
    assert inside.mean() > 0.5
    assert np.abs(found - wanted)[inside].max() <= 2
    assert name == "identity" or np.abs(found - pixels).max() > 2
