"""Images of any form become the same upright pixels, and what is damaged or ambiguous is refused."""

import os
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_sem import image_files
from transformers_sem.data import files
from transformers_sem.image_files import (
    PNG_SIGNATURE,
    UnreadableImageError,
    load_image,
    read_image_file,
    repair_image,
    to_upright_rgb,
    without_pillow_limit,
)

from .samples import save_damaged_png


RED, BLUE = (250, 10, 20), (10, 20, 250)


def red_above_blue(size=(12, 8)):
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2], pixels[size[1] // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def is_red_above_blue(image, tolerance=40):
    pixels = np.asarray(image).astype(int)
    assert image.mode == "RGB"
    return (abs(pixels[1, 5] - RED) < tolerance).all() and (abs(pixels[-2, 5] - BLUE) < tolerance).all()


def save_rotated(path, orientation):
    """Saves the image as a rotated camera does."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    red_above_blue().transpose(undo[orientation]).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_are_upright(tmp_path, orientation):
    save_rotated(tmp_path / "photo.jpg", orientation)
    image = read_image_file(tmp_path / "photo.jpg")
    assert image.size == (12, 8) and is_red_above_blue(image)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("P", "gif")])
def test_other_modes_are_converted_to_rgb(tmp_path, mode, ending):
    image = red_above_blue().quantize(8) if mode == "P" else red_above_blue().convert(mode)
    image.save(tmp_path / f"photo.{ending}")
    assert is_red_above_blue(read_image_file(tmp_path / f"photo.{ending}"))


def test_an_animation_is_read_as_its_first_frame(tmp_path):
    red_above_blue().save(tmp_path / "photo.gif", save_all=True, append_images=[Image.new("RGB", (12, 8), "green")])
    assert is_red_above_blue(read_image_file(tmp_path / "photo.gif"))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, ending):
    levels = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    Image.fromarray(levels).save(tmp_path / f"photo.{ending}")
    image = np.asarray(read_image_file(tmp_path / f"photo.{ending}"))
    np.testing.assert_allclose(image[..., 0], levels / 257, atol=0.51)
    assert (image == image[..., :1]).all()


def test_transparent_pixels_are_white():
    image = Image.new("LA", (4, 3), (0, 0))
    image.putpixel((0, 0), (100, 255))
    pixels = np.asarray(to_upright_rgb(image))
    assert pixels[0, 0].tolist() == [100] * 3 and pixels[2, 3].tolist() == [255] * 3


def test_images_may_exceed_the_limit_of_pillow(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    red_above_blue().save(tmp_path / "photo.png")
    assert is_red_above_blue(read_image_file(tmp_path / "photo.png"))
    assert Image.MAX_IMAGE_PIXELS == 20 and not recwarn
    with pytest.raises(ValueError, match=r"photo.png: an image has at most 0 million pixels; got 12 x 8. Shrink it"):
        read_image_file(tmp_path / "photo.png", max_pixels=50)


def save_heic(path, orientation=1):
    heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image = red_above_blue((64, 48))
    (image.transpose(undo[orientation]) if orientation > 1 else image).save(path, format="HEIF", exif=exif.tobytes())


@pytest.mark.parametrize("orientation", [1, 6])
def test_photos_of_phones_are_read_whatever_their_name(tmp_path, orientation):
    for name in ("photo.heic", "photo.jpg"):
        save_heic(tmp_path / name, orientation)
        image = read_image_file(tmp_path / name)
        assert image.size == (64, 48) and is_red_above_blue(image)
    with pytest.raises(ValueError, match=r"photo.heic: an image has at most 0 million pixels; got 64 x 48"):
        read_image_file(tmp_path / "photo.heic", max_pixels=50)


def test_photos_of_phones_need_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    with pytest.raises(UnreadableImageError, match=r"photo.heic: it is a HEIC image.*'transformers-sem\[heic\]'"):
        read_image_file(tmp_path / "photo.heic")


def test_a_damaged_photo_of_a_phone_raises(tmp_path):
    save_heic(tmp_path / "photo.heic")
    content = (tmp_path / "photo.heic").read_bytes()
    for damaged in (content[:40], content[: len(content) // 2], content[:-200] + bytes(200)):
        (tmp_path / "photo.heic").write_bytes(damaged)
        with pytest.raises(UnreadableImageError, match="photo.heic"):
            read_image_file(tmp_path / "photo.heic")


def test_threads_restore_the_limit_of_pillow(tmp_path):
    """Another thread may start to read before the first one ends."""
    limit, first, second = Image.MAX_IMAGE_PIXELS, ExitStack(), ExitStack()
    first.enter_context(without_pillow_limit())
    second.enter_context(without_pillow_limit())
    first.close()
    assert Image.MAX_IMAGE_PIXELS is None
    second.close()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"eXIf"])
def test_damaged_texts_and_profiles_are_ignored(tmp_path, name):
    path = save_damaged_png(tmp_path / "photo.png", red_above_blue(), name)
    assert is_red_above_blue(read_image_file(path))
    assert is_red_above_blue(Image.fromarray(files.read_image(path)))
    # as rows are read
    repaired = {"bytes": repair_image(path.read_bytes()), "path": None}
    assert is_red_above_blue(datasets.Image().decode_example(repaired))


def test_intact_images_are_not_repaired(tmp_path):
    for ending, texts in (("png", {"dpi": (72, 72)}), ("png", {}), ("jpg", {"dpi": (72, 72)})):
        red_above_blue().save(tmp_path / f"photo.{ending}", **texts)
        content = (tmp_path / f"photo.{ending}").read_bytes()
        assert repair_image(content) == content


def test_a_large_file_that_is_no_image_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"reads {path}"))
    (tmp_path / "photo.jpg").write_bytes(bytes(2**20))
    with pytest.raises(UnreadableImageError, match="it is not an image"):
        read_image_file(tmp_path / "photo.jpg")


def test_a_png_file_of_zeros_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "photo.png").write_bytes(PNG_SIGNATURE + bytes(2**26))
    start = time.process_time()
    with pytest.raises(UnreadableImageError):
        read_image_file(tmp_path / "photo.png")
    assert time.process_time() - start < 1


@pytest.fixture
def address(tmp_path):
    """The address of a server of `tmp_path`."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_at_addresses_are_bounded(tmp_path, address, monkeypatch):
    image = red_above_blue()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "photo.png")
    expected = np.asarray(read_image_file(tmp_path / "photo.png"))
    np.testing.assert_array_equal(np.asarray(load_image(f"{address}/photo.png", 20)), expected)
    (tmp_path / "large.ppm").write_bytes(b"P6 16001 16001 255\n")
    with pytest.raises(
        UnreadableImageError, match=r"large.ppm: an image has at most 256 million pixels; got 16,001 x"
    ):
        load_image(f"{address}/large.ppm", 20)
    monkeypatch.setattr(image_files, "MAX_DOWNLOAD", 3_000_000)
    (tmp_path / "long.png").write_bytes(bytes(3_000_001))
    with pytest.raises(UnreadableImageError, match=r"long.png: an image from an address has at most 3 MB. Shrink it"):
        load_image(f"{address}/long.png", 20)


def test_an_upright_image_is_not_turned_again(tmp_path):
    save_rotated(tmp_path / "photo.jpg", 6)
    upright = to_upright_rgb(Image.open(tmp_path / "photo.jpg"))
    assert is_red_above_blue(to_upright_rgb(upright)) and upright.size == (12, 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="no regular file"):
        read_image_file(tmp_path / "photo.jpg")


def write(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (write(b""), "it is empty"),
        (write(b"some text"), "not an image"),
        (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "not an image"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: Image.new("F", (3, 4)).save(path, format="TIFF"), "8 bits"),
        (lambda path: Image.new("I", (3, 4), -5).save(path, format="TIFF"), "mode I with -5 to -5"),
        (lambda path: Image.new("I", (3, 4), 200).save(path, format="TIFF"), "mode I with 200 to 200"),
    ],
    ids=["empty", "text", "postscript", "folder", "dangling", "float", "negative", "wide"],
)
def test_unreadable_files_raise(tmp_path, make, words):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(ValueError, match=f"Cannot read .*photo.jpg: .*{words}"):
        read_image_file(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "tif", "webp"])
def test_truncated_images_raise(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="Cannot read"):
        read_image_file(path)
