import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from mstr_hf.models.image_processing_mstr import MAX_RATIO, MSTRImageProcessor, load_image, resize, resized_width

PROCESSOR = MSTRImageProcessor()


def word(width=90, height=30):
    """A dark bar on light ground, heavier on the left and at the top, in grey."""
    pixels = np.full((height, width), 230, np.uint8)
    pixels[height // 5 : height // 2, width // 10 : width // 2] = 20
    return pixels


def read(source):
    return np.asarray(load_image(source))


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ink(values, alpha):
    """A transparent picture whose bar alone is visible."""
    bar = word() < 100
    pixels = np.zeros((*bar.shape, 4), np.uint8)
    pixels[bar] = (values, values, values, alpha)
    return Image.fromarray(pixels)


# ---- What goes in


IN_MODE = {
    "P": lambda image: image.quantize(2),
    "PA": lambda image: image.quantize(2).convert("PA"),
    "RGBa": lambda image: image.convert("RGBA").convert("RGBa"),
    **{mode: lambda image, mode=mode: image.convert(mode) for mode in ("L", "LA", "RGB", "RGBA", "RGBX")},
    **{
        mode: lambda image, mode=mode: image.convert("RGB").convert(mode) for mode in ("CMYK", "HSV", "YCbCr")
    },
}


@pytest.mark.parametrize("mode", IN_MODE)
def test_modes_of_eight_bits_read_alike(mode):
    image = IN_MODE[mode](Image.fromarray(word()))
    assert image.mode == mode
    np.testing.assert_allclose(read(image).astype(int), word().astype(int), atol=2)


def test_black_and_white():
    np.testing.assert_array_equal(read(Image.fromarray(word() > 100)), np.where(word() > 100, 255, 0))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_sixteen_bits_are_scaled(mode):
    deep = word().astype(np.uint16) * 257
    image = Image.fromarray(deep.astype(">u2") if mode == "I;16B" else deep)
    if mode in ("I", "F"):
        image = Image.fromarray(deep.astype(np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    np.testing.assert_array_equal(read(image), word())


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_depths_between_keep_their_levels(bits):
    deep = word().astype(np.uint16) << (bits - 8)
    np.testing.assert_allclose(read(deep).astype(int), word().astype(int), atol=1)
    assert len(np.unique(read(np.arange(2**bits, dtype=np.uint16).reshape(32, -1)))) == 256


def test_sixteen_bit_file():
    np.testing.assert_array_equal(read(encode(Image.fromarray(word().astype(np.uint16) * 257))), word())


@pytest.mark.parametrize(
    "array",
    [
        word().astype(np.int64),
        word() / 255,
        (word() / 255).astype(np.float16),
        word().astype(np.float32),
        word().astype(np.uint16) * 257,
        word()[..., None],
        word()[None],
        np.stack([word()] * 3),
        np.stack([word()] * 3, -1),
        np.stack([word(), word(), word(), np.full_like(word(), 255)], -1),
        torch.from_numpy(word()),
        torch.from_numpy(word())[None].expand(3, -1, -1) / 255,
        torch.from_numpy(word())[..., None],
        torch.from_numpy(word()).to(torch.bfloat16) / 256,
        (torch.from_numpy(word()) / 255).requires_grad_(),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}-{'x'.join(map(str, array.shape))}",
)
def test_arrays_and_tensors_read_alike(array):
    np.testing.assert_allclose(read(array).astype(int), word().astype(int), atol=1)


def test_booleans_are_black_and_white():
    np.testing.assert_array_equal(read(word() > 100), np.where(word() > 100, 255, 0))


def test_floats_may_overshoot_their_range():
    bright = word() / 255
    bright[0, 0] = 1.04
    np.testing.assert_array_equal(read(bright)[1:], word()[1:])
    assert read(bright)[0, 0] == 255


def test_ambiguous_shape_has_channels_last_in_arrays_and_first_in_tensors():
    array = np.zeros((3, 20, 3), np.uint8)
    assert load_image(array).size == (20, 3)
    assert load_image(torch.from_numpy(array)).size == (3, 20)


def test_paths_and_bytes_read_as_the_image(tmp_path):
    path = tmp_path / "word.png"
    path.write_bytes(encode(Image.fromarray(word())))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(read(source), word())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_dark_ink_is_put_on_white(mode):
    image = ink(0, 255)
    if mode == "P":
        image = Image.open(io.BytesIO(encode(image.quantize(4))))
        assert image.mode == "P"
    elif mode == "L":  # one grey level is declared transparent
        image = Image.open(io.BytesIO(encode(Image.fromarray(word()), transparency=230)))
        assert image.mode == "L"
    else:
        image = image.convert(mode)
    expected = np.where(word() < 100, 20 if mode == "L" else 0, 255)
    np.testing.assert_array_equal(read(image), expected)


@pytest.mark.parametrize("level", [255, 235])
def test_light_ink_is_put_on_black(level):
    np.testing.assert_array_equal(read(ink(level, 255)), np.where(word() < 100, level, 0))


def test_half_transparent_ink_is_mixed():
    np.testing.assert_array_equal(read(ink(0, 128)), np.where(word() < 100, 127, 255))


def test_picture_with_a_transparent_margin_keeps_to_white():
    pixels = np.dstack([word()] * 3 + [np.full_like(word(), 255)])
    pixels[:, -20:] = 0
    expected = word()
    expected[:, -20:] = 255
    np.testing.assert_array_equal(read(Image.fromarray(pixels)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "open"])
def test_exif_orientation_is_undone(orientation, kind):
    turn = {  # how a camera stores an upright picture
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(turn(word())))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(image, "PNG" if kind == "open" else kind, exif=exif)
    source = Image.open(io.BytesIO(data)) if kind == "open" else data
    for _ in range(2):  # an image in memory is not turned in place
        np.testing.assert_array_equal(read(source), word())


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(Image.fromarray(word()), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read(data), word())


def test_user_image_is_left_alone():
    image = Image.fromarray(word())
    load_image(image).paste(0, (0, 0, 90, 30))
    np.testing.assert_array_equal(np.asarray(image), word())


# ---- What is refused


JPEG = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90), dtype=np.uint8)), "JPEG")
BAD_FILES = {
    "truncated.jpg": (JPEG[: -len(JPEG) // 2], "image file is truncated"),
    "truncated.png": (encode(Image.fromarray(word()))[:60], "complete image file"),
    "empty.png": (b"", "not in an image format"),
    "text.png": (b"this is not a picture\n", "not in an image format"),
    "header.png": (encode(Image.fromarray(word()))[:20], "complete image file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path, name):
    path = tmp_path / name
    content, reason = BAD_FILES[name]
    path.write_bytes(content)
    for images, called in (
        (path, str(path)),
        (content, "the image"),
        ([word(), str(path)], str(path)),
        ([word(), content], "image 2 of the batch"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            PROCESSOR(images)
        assert str(caught.value).startswith(f"{called}: ")
        assert "\n" not in str(caught.value)


def test_lazily_opened_image_is_named_by_its_file(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(JPEG[: -len(JPEG) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read \(image file is truncated"):
        PROCESSOR([Image.open(path)])


@pytest.mark.parametrize("path", ["missing.png", "."])
def test_bad_paths_are_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read \((No such file|Is a directory)"):
        load_image(Path(path))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Image.new("L", (20000, 10)), "20000x10 is more than 20 times as wide as high, cut it"),
        (Image.new("L", (0, 10)), "no pixels"),
        (np.zeros((0, 10), np.uint8), "no pixels"),
        (np.zeros((10, 0, 3)), "no pixels"),
        (np.full((10, 10), np.nan), "values from nan to nan"),
        (Image.fromarray(np.full((10, 10), np.nan, np.float32)), "values from nan"),
        (torch.full((3, 10, 10), torch.nan), "values from nan"),
        (np.full((10, 10), np.inf), "values from 0.0 to inf"),
        (np.full((10, 10), -1), "values from -1.0 to 0.0"),
        (np.full((10, 10), 70000), "values from 0.0 to 70000.0"),
        (np.full((10, 10), "a"), "values of type <U1"),
        (np.zeros((5, 7, 9)), r"shape \(5, 7, 9\)"),
        (np.zeros((5, 1, 9)), r"shape \(5, 1, 9\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (torch.zeros(2, 3, 4, 5, 6), r"shape \(2, 3, 4, 5, 6\)"),
        (Image.new("LAB", (10, 10)), "LAB"),
        (None, "NoneType is not an image"),
        (3, "int is not an image"),
    ],
)
def test_bad_images_are_named(source, reason):
    with pytest.raises(ValueError, match=f"^the image: .*{reason}"):
        PROCESSOR(source)
    with pytest.raises(ValueError, match=f"^image 2 of the batch: .*{reason}"):
        PROCESSOR([word(), source])


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 3, 32, 64), np.uint8)], ids=repr)
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match="no images"):
        PROCESSOR(images)


# ---- What comes out


def test_output_of_one_image():
    output = PROCESSOR(word(90, 30), return_tensors="pt")
    assert list(output) == PROCESSOR.model_input_names == ["pixel_values", "pixel_mask"]
    assert output["pixel_values"].shape == (1, 1, 32, 96) and output["pixel_values"].dtype == torch.float32
    assert output["pixel_mask"].shape == (1, 96) and output["pixel_mask"].dtype == torch.bool
    assert output["pixel_mask"].all()


def test_values():
    # Needs no resizing; the ends are held by more pixels than may be cut off when contrast is stretched.
    levels = np.arange(256).clip(4, 251).reshape(32, 8)
    levels = np.rint((levels - 4) * (255 / 247)).astype(np.uint8)
    output = PROCESSOR(levels)
    np.testing.assert_allclose(output["pixel_values"][0, 0, :, :8], (levels / 255 - 0.5) / 0.5, atol=1e-6)
    assert not output["pixel_values"][..., 8:].any()
    np.testing.assert_array_equal(output["pixel_mask"], [[True] * 8 + [False] * 24])


def test_contrast_is_stretched_to_the_full_range():
    fresh = np.full((32, 96), 230, np.uint8)
    fresh[8:24, 20:70] = 20
    faded = np.where(fresh > 128, 140, 120).astype(np.uint8)
    values = PROCESSOR([fresh, faded])["pixel_values"]
    np.testing.assert_array_equal(values[0], values[1])
    assert values[0].min() == -1 and values[0].max() == 1
    faded[0, :10] = 255  # a glint of ten pixels in three thousand does not undo it
    assert (PROCESSOR(faded)["pixel_values"][0, 0, 8:24, 20:70] < -0.9).all()
    flat = PROCESSOR(np.full((32, 96), 90, np.uint8))["pixel_values"]
    np.testing.assert_allclose(flat, 90 / 127.5 - 1, atol=1e-6)


def test_resizing_averages_what_it_shrinks():
    stripes = np.tile(np.array([0, 255], np.uint8), (640, 640))
    inner = PROCESSOR(stripes)["pixel_values"][0, 0, 2:-2, 2:30]
    assert np.abs(inner).max() < 0.05


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3, 2), (200, 10), (3000, 2000)])
def test_odd_sizes(width, height):
    output = PROCESSOR(np.full((height, width), 255, np.uint8))
    assert output["pixel_mask"].sum() == resized_width(width, height)
    np.testing.assert_allclose(output["pixel_values"][0, 0][:, output["pixel_mask"][0]], 1)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_width_follows_the_ratio(width, height):
    resized = resized_width(width, height)
    assert resized % 8 == 0 and 8 <= resized <= 640
    if 8 <= 32 * width / height <= 640:
        assert -0.5 <= resized - 32 * width / height < 8.5


@given(st.data(), st.integers(1, 30))
def test_ratio_decides_what_is_read(data, height):
    width = data.draw(st.integers(1, 40 * height))
    image = Image.new("L", (width, height))
    if width > MAX_RATIO * height:
        with pytest.raises(ValueError, match=f"the image: {width}x{height}"):
            PROCESSOR(image)
    else:
        output = PROCESSOR(image)
        assert output["pixel_mask"].sum() == resized_width(width, height)
        assert output["pixel_values"].shape[-1] % 32 == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 60)).filter(lambda s: s[0] <= 20 * s[1]), min_size=1
    )
)
def test_batch_equals_single_images(sizes):
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (height, width), dtype=np.uint8) for width, height in sizes]
    batch = PROCESSOR(images)
    for image, values, mask in zip(images, batch["pixel_values"], batch["pixel_mask"], strict=True):
        single = PROCESSOR(image)
        np.testing.assert_array_equal(
            values[..., mask], single["pixel_values"][0][..., single["pixel_mask"][0]]
        )
        assert not values[..., ~mask].any()
        assert not np.diff(mask.astype(int)).clip(0).any()  # the image stands on the left
    assert batch["pixel_values"].shape[-1] - batch["pixel_mask"].sum(1).max() < 32


def test_mixed_kinds_in_a_batch(tmp_path):
    path = tmp_path / "word.png"
    path.write_bytes(encode(Image.fromarray(word())))
    kinds = [
        word(),
        Image.fromarray(word()).convert("RGB"),
        torch.from_numpy(word()),
        path,
        str(path),
        path.read_bytes(),
    ]
    values = PROCESSOR(kinds)["pixel_values"]
    assert len(values) == len(kinds) and (values == values[0]).all()


def test_four_dimensions_are_a_batch():
    pair = np.stack([word(), word()[:, ::-1]])
    expected = PROCESSOR(list(pair))["pixel_values"]
    np.testing.assert_array_equal(PROCESSOR(pair[:, None])["pixel_values"], expected)
    np.testing.assert_array_equal(PROCESSOR(torch.from_numpy(pair)[..., None])["pixel_values"], expected)


def test_loading_first_changes_nothing():
    image = Image.fromarray(word()).convert("RGBA")
    np.testing.assert_array_equal(
        PROCESSOR(load_image(image))["pixel_values"], PROCESSOR(image)["pixel_values"]
    )


# ---- Settings


@pytest.mark.parametrize(
    "settings", [{}, {"size": {"height": 48, "width": 960}, "resample": 1, "image_mean": 0.4}]
)
def test_saved_and_loaded(tmp_path, settings):
    first = MSTRImageProcessor(**settings)
    first.save_pretrained(tmp_path)
    second = MSTRImageProcessor.from_pretrained(tmp_path)
    assert second.to_dict() == first.to_dict()
    np.testing.assert_array_equal(second(word())["pixel_values"], first(word())["pixel_values"])


def test_settings_are_used():
    assert MSTRImageProcessor(size={"height": 48, "width": 96})(word(900, 100))["pixel_values"].shape == (
        1,
        1,
        48,
        96,
    )
    white = MSTRImageProcessor(image_mean=0.2, image_std=0.4)(np.full((30, 30), 255, np.uint8))
    np.testing.assert_allclose(white["pixel_values"], 2, atol=1e-6)
    nearest = MSTRImageProcessor(resample=Image.Resampling.NEAREST)(word(300, 100))["pixel_values"]
    assert len(np.unique(nearest)) == 2


def test_settings_belong_to_one_processor():
    changed = MSTRImageProcessor()
    changed.size["height"] = 64
    assert MSTRImageProcessor().size["height"] == 32


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"resampel": 3}, TypeError, "no resampel: its keywords are size"),
        ({"do_resize": False}, TypeError, "no do_resize"),
        ({"size": {"height": 32}}, ValueError, "give a height and a width"),
        ({"size": {"height": 32, "width": 0}}, ValueError, "give a height and a width"),
        ({"image_std": 0}, ValueError, "positive"),
        ({"resample": 99}, ValueError, "99"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        MSTRImageProcessor(**settings)


def test_wrong_call_keyword_is_refused():
    with pytest.raises(TypeError, match="return_tensor"):
        PROCESSOR(word(), return_tensor="pt")


def test_contrast_is_stretched_as_pillow_does():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 60, 2)
        grey, spread = rng.uniform(0, 255), rng.choice([0, 1, 10, 60])
        pixels = rng.normal(grey, spread, (height, width)).clip(0, 255).astype(np.uint8)
        pixels[rng.random(pixels.shape) < 0.01] = rng.integers(256)
        image = Image.fromarray(pixels)
        expected = np.asarray(ImageOps.autocontrast(image, cutoff=0.5))
        assert np.array_equal(np.asarray(resize(image, int(width), int(height))), expected)
