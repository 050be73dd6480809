import numpy as np
import pytest
from PIL import Image

from transformers_sem.demo.photo import MAX_SIDE, UnreadablePhotoError, read_photo

from .files import HEIGHT, WIDTH, write_bad_files, write_good_files


def test_every_picture_is_read_upright_in_rgb(tmp_path):
    for path in write_good_files(tmp_path / "good"):
        photo, size = read_photo(path)
        pixels = np.asarray(photo)
        assert (photo.mode, pixels.shape, size) == ("RGB", (HEIGHT, WIDTH, 3), (WIDTH, HEIGHT)), path.name
        above, below = pixels[: HEIGHT // 2 - 4].mean(), pixels[HEIGHT // 2 + 4 :].mean()
        if path.name != "bilevel.png":  # dithered
            assert (round(above / 10), round(below / 10)) == (22, 4), path.name
        assert above > below + 100, path.name


def test_every_other_file_gives_a_sentence_that_says_what_is_wrong(tmp_path):
    for path, word in write_bad_files(tmp_path / "bad").items():
        with pytest.raises(UnreadablePhotoError, match=word) as caught:
            read_photo(path)
        assert "\n" not in str(caught.value), path.name


def test_one_pixel_is_a_photo(tmp_path):
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "one.png")
    photo, size = read_photo(tmp_path / "one.png")
    assert size == photo.size == (1, 1)
    assert photo.getpixel((0, 0)) == (7, 8, 9)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_large_photos_are_reduced_and_the_size_in_the_file_is_told(tmp_path, ending):
    pixels = np.zeros((1500, 3000, 3), dtype=np.uint8)
    pixels[:, 1500:] = 200
    exif = Image.Exif()
    exif[0x0112] = 8  # the first row is the left side: what is right in the file is above
    Image.fromarray(pixels).save(tmp_path / f"large.{ending}", exif=exif)
    photo, size = read_photo(tmp_path / f"large.{ending}")
    assert size == (1500, 3000)
    assert photo.size == (MAX_SIDE // 2, MAX_SIDE)
    assert np.asarray(photo)[:500].mean() > 190
    assert np.asarray(photo)[530:].mean() < 10


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_108_million_pixels_are_a_photo(tmp_path, ending):
    Image.new("RGB", (12_000, 9_000), (200, 100, 50)).save(tmp_path / f"large.{ending}")
    photo, size = read_photo(tmp_path / f"large.{ending}")
    assert size == (12_000, 9_000)
    assert photo.size == (MAX_SIDE, MAX_SIDE * 3 // 4)
    assert np.abs(np.asarray(photo).astype(int) - [200, 100, 50]).max() <= 3
