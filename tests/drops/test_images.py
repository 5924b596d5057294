import hashlib
import pickle
import struct
import zlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, features
from raw_drops import CLASSES, GRAY8, RGB8, pixels, write_image

from crt.drops.images import (
    CHANGES,
    SUFFIXES,
    MisfitImageError,
    UnreadableImageError,
    decode_image,
    fit_array,
    pixel_hash,
    read_header,
    read_picture,
)
from crt.spec import ImageSpec


def spec(channels, size, resize):
    return ImageSpec(tuple(CLASSES), size, channels, resize)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm", "webp"])
def test_lossless_formats_give_back_the_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    form = RGB8 if suffix == "webp" else GRAY8
    array = pixels(1, 8, 8, 3) if suffix == "webp" else pixels(1)
    path = write_image(tmp_path / f"a.{suffix}", array, **options)
    assert np.array_equal(decode_image(path, form), array.reshape(8, 8, form.channels))


def test_jpeg_decodes_like_pillow(tmp_path):
    path = write_image(tmp_path / "a.JPEG", pixels(2, 8, 8, 3))
    assert np.array_equal(decode_image(path, RGB8), np.asarray(Image.open(path)))


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_loses_nothing(tmp_path, suffix):
    colors = pixels(3, 8, 8, 3) // 128 * 255  # eight colors fit a palette
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colors).quantize(256).save(path)
    assert read_header(path) == ("P", (8, 8))
    assert np.array_equal(decode_image(path, RGB8), colors)


def test_bilevel_loses_nothing(tmp_path):
    bits = pixels(4) > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(decode_image(tmp_path / "bits.png", GRAY8)[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_truncated_image_is_unreadable(tmp_path, suffix, keep):
    path = write_image(tmp_path / f"a.{suffix}", pixels(5, 40, 40))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UnreadableImageError):
        decode_image(path, spec(1, 40, "none"))


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 50]
)
def test_no_image_is_unreadable(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError):
        decode_image(path, GRAY8)
    with pytest.raises(UnreadableImageError):
        read_header(path)


def test_decompression_bomb_is_an_error_without_being_decoded(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png", np.zeros((40, 40), np.uint8))
    # 1,600 pixels lie between once and twice the limit, where Pillow itself would only warn.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="1600 pixels"):
        decode_image(path, spec(1, 40, "none"))


@pytest.mark.parametrize(
    ("array", "form", "reason"),
    [
        (pixels(0, 8, 8, 3), GRAY8, "mode RGB instead of L"),
        (pixels(0, 8, 8), RGB8, "mode L instead of RGB"),
        (pixels(0, 8, 8, 4), RGB8, "transparent pixels"),
        (pixels(0, 8, 8, 4), spec(3, 8, "crop"), "transparent pixels"),
        (pixels(0, 8, 8, 3), spec(1, 8, "squash"), "mode RGB instead of L"),
        (pixels(0, 8, 8).astype(np.uint16) * 257, GRAY8, "mode I;16 instead of L"),
        (pixels(0, 8, 8).astype(np.uint16), GRAY8, "16 bits with values up to 248 only, not 65535"),
        (pixels(0, 6, 8), GRAY8, "8x6 pixels instead of 8x8"),
    ],
)
def test_wrong_mode_or_size_is_named(tmp_path, array, form, reason):
    path = write_image(tmp_path / "a.png", array)
    with pytest.raises(MisfitImageError) as error:
        decode_image(path, form)
    assert str(error.value) == f"{path}: {reason}"
    # What the error promises is so: with another `resize` the image is taken, or it is not.
    if error.value.resizable:
        decode_image(path, replace(form, resize="crop"))
    else:
        with pytest.raises(MisfitImageError):
            decode_image(path, replace(form, resize="crop"))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG"])
def test_jpeg_by_its_other_names(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels(2, 8, 8, 3)).save(path, "JPEG")
    assert suffix.lower() in SUFFIXES
    assert decode_image(path, RGB8).shape == (8, 8, 3)


def test_formats_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    assert ".heic" in SUFFIXES
    with pytest.raises(UnreadableImageError) as error:
        decode_image(tmp_path / "a.HEIC", RGB8)
    remedy = "reading .heic needs `pip install pillow-heif`"
    assert error.value.reason == ("not an image" if find_spec("pillow_heif") else remedy)
    (tmp_path / "a.cr2").write_bytes(b"II*\0\x10\0\0\0CR" + bytes(50))
    with pytest.raises(UnreadableImageError, match=r"\.cr2 is not read"):
        decode_image(tmp_path / "a.cr2", RGB8)


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_formats_of_plugins_are_read_where_they_are_installed(tmp_path, suffix):
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.importorskip("pillow_avif")
    upright = Image.fromarray(np.kron(pixels(5, 4, 4, 3), np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / f"a.{suffix}", quality=95, exif=exif.tobytes())
    decoded = decode_image(tmp_path / f"a.{suffix}", spec(3, 64, "none"))
    # About 80 where it is turned wrongly.
    assert np.abs(decoded.astype(int) - np.asarray(upright).astype(int)).mean() < 12


def test_the_first_frame_of_several_is_read_and_told(tmp_path):
    frames = [Image.fromarray(pixels(seed, 8, 8, 3)) for seed in (1, 2)]
    for suffix, options in (
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("png", {}),
        ("mpo", {"quality": 95, "subsampling": 0}),
    ):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        picture = read_picture(path, RGB8)
        # A camera's MPO is one picture, seen twice.
        assert picture.changes == (() if suffix == "mpo" else ("first_frame",)), suffix
        difference = np.abs(picture.pixels.astype(int) - pixels(1, 8, 8, 3)).mean()
        assert difference <= (30 if suffix == "mpo" else 0)  # of the other frame: about 85
    frames[0].save(tmp_path / "one.tif", save_all=True)
    assert read_picture(tmp_path / "one.tif", RGB8).changes == ()


def test_16_bits_are_scaled_to_8(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    expected = (deep // 256).astype(np.uint8)
    for suffix in ("png", "tif", "pgm"):
        picture = read_picture(write_image(tmp_path / f"a.{suffix}", deep), spec(1, 8, "crop"))
        assert np.array_equal(picture.pixels[..., 0], expected)
        assert picture.changes == ("from_16_bits",)
    colors = read_picture(tmp_path / "a.png", spec(3, 8, "crop"))
    assert np.array_equal(colors.pixels[..., 2], expected)
    # A camera of 12 bits, stored without scaling: nearly black.
    path = write_image(tmp_path / "dark.png", deep // 16)
    with pytest.raises(MisfitImageError, match=r"16 bits with values up to 39\d\d only, not 65535"):
        read_picture(path, spec(1, 8, "crop"))
    path = write_image(tmp_path / "fractions.tif", pixels(0).astype(np.float32) / 255)
    with pytest.raises(MisfitImageError, match="mode F, whose values have no known range"):
        read_picture(path, spec(1, 8, "crop"))


def test_16_bits_of_color_are_told(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    path = write_png_of_16_bits(tmp_path / "a.png", deep)
    picture = read_picture(path, RGB8)  # Pillow itself takes the upper half of each number
    assert np.array_equal(picture.pixels, deep // 256)
    assert picture.changes == ("from_16_bits",)


def write_png_of_16_bits(path, colors):
    """Pillow does not write them. uint16 [H, W, 3]."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", colors.shape[1], colors.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_what_was_done_is_told(tmp_path):
    gray, colors = pixels(0), pixels(1, 8, 8, 3)
    opaque = np.full((8, 8, 1), 255, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    form = spec(3, 8, "crop")
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    write_image(tmp_path / "gray.png", gray, exif=exif)
    write_image(tmp_path / "alpha.png", np.concatenate([colors, opaque], 2))
    write_image(tmp_path / "plain.png", colors)
    told = {path.stem: read_picture(path, form).changes for path in tmp_path.iterdir()}
    assert told == {
        "cmyk": ("from_cmyk",),
        "gray": ("turned", "from_gray"),
        "alpha": ("opaque_alpha",),
        "plain": (),
    }
    assert {change for changes in told.values() for change in changes} < set(CHANGES)


def test_an_opaque_alpha_channel_is_no_loss(tmp_path):
    colors, gray = pixels(0, 8, 8, 3), pixels(1, 8, 8)
    opaque = np.full((8, 8, 1), 255, np.uint8)
    path = write_image(tmp_path / "rgba.png", np.concatenate([colors, opaque], 2))
    assert np.array_equal(decode_image(path, RGB8), colors)
    path = write_image(tmp_path / "la.png", np.concatenate([gray[..., None], opaque], 2))
    assert np.array_equal(decode_image(path, GRAY8)[..., 0], gray)
    almost = np.concatenate([colors, opaque], 2)
    almost[3, 4, 3] = 254
    with pytest.raises(MisfitImageError, match="transparent pixels"):
        decode_image(write_image(tmp_path / "almost.png", almost), RGB8)


def test_transparency_that_no_pixel_has_is_no_loss(tmp_path):
    few = pixels(3, 8, 8, 3) // 128 * 255
    palette = Image.fromarray(few).quantize(256)
    used = set(np.asarray(palette).ravel().tolist())
    for name, entry in (("unused", 200), ("used", next(iter(used)))):
        palette.save(tmp_path / f"{name}.png", transparency=entry)
    assert np.array_equal(decode_image(tmp_path / "unused.png", RGB8), few)
    with pytest.raises(MisfitImageError, match="transparent pixels"):
        decode_image(tmp_path / "used.png", RGB8)
    colors = pixels(0, 8, 8, 3)
    image = Image.fromarray(colors)
    image.save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert np.array_equal(decode_image(tmp_path / "key.png", RGB8), colors)
    image.save(tmp_path / "hit.png", transparency=tuple(colors[0, 0].tolist()))
    with pytest.raises(MisfitImageError, match="transparent pixels"):
        decode_image(tmp_path / "hit.png", RGB8)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_tag_turns_the_picture(tmp_path, suffix, orientation):
    upright = Image.fromarray(np.kron(pixels(5, 4, 4, 3), np.ones((8, 8, 1), np.uint8)))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # numbers of Image.Transpose
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    decoded = decode_image(tmp_path / f"a.{suffix}", spec(3, 32, "none"))
    difference = np.abs(decoded.astype(int) - np.asarray(upright).astype(int)).mean()
    assert difference <= (8 if suffix == "jpg" else 0)  # turned wrongly: about 80


def test_a_damaged_exif_tag_leaves_the_picture_as_it_is(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels(2, 8, 8, 3)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(range(60)))
    clean = write_image(tmp_path / "clean.jpg", pixels(2, 8, 8, 3))
    assert np.array_equal(decode_image(path, RGB8), decode_image(clean, RGB8))


def test_resize_turns_gray_and_cmyk_into_rgb(tmp_path):
    gray = pixels(0)
    path = write_image(tmp_path / "a.png", gray)
    decoded = decode_image(path, spec(3, 8, "crop"))
    assert all(np.array_equal(decoded[..., channel], gray) for channel in range(3))
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "b.tif")
    red = decode_image(tmp_path / "b.tif", spec(3, 8, "squash"))
    assert (red[..., 0] > 200).all()
    assert (red[..., 1:] < 60).all()


def test_crop_takes_the_centre_square_and_squash_everything(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    path = write_image(tmp_path / "a.png", wide)
    assert (decode_image(path, spec(1, 8, "crop")) == 200).all()
    squashed = decode_image(path, spec(1, 8, "squash"))
    assert squashed[0, 0, 0] == 0
    assert squashed[0, 4, 0] == 200
    assert (decode_image(path, spec(1, 4, "crop")) == 200).all()


def test_crop_of_an_extreme_shape_needs_little_memory(tmp_path):
    path = write_image(tmp_path / "a.png", np.full((1, 50_000), 7, np.uint8))
    # Scaling the shorter side first would make an image of 224 x 11,200,000 pixels.
    assert (decode_image(path, spec(1, 224, "crop")) == 7).all()


def test_arrays_are_fitted_as_files_are(tmp_path):
    array = pixels(6, 12, 10, 3)
    path = write_image(tmp_path / "a.png", array)
    for resize in ("crop", "squash"):
        form = spec(3, 8, resize)
        assert np.array_equal(fit_array(array, form, "a"), decode_image(path, form))
    gray = spec(1, 8, "squash")
    write_image(path, array[..., 0])
    assert np.array_equal(fit_array(array[..., :1], gray, "a"), decode_image(path, gray))


def test_hash_is_sha256_of_shape_and_pixels():
    array = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert pixel_hash(array) == hashlib.sha256(b"1x2x3" + bytes(range(6))).hexdigest()
    assert pixel_hash(array) != pixel_hash(array.reshape(2, 1, 3))
    flipped = array[:, ::-1]
    assert pixel_hash(flipped) == pixel_hash(flipped.copy())


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(MisfitImageError("a.png", "too small", resizable=True)))
    assert type(error) is MisfitImageError
    assert (error.name, error.reason, str(error)) == ("a.png", "too small", "a.png: too small")
    assert error.resizable
