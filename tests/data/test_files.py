import io
import os
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from transformers_sem.data import files
from transformers_sem.data.files import BrokenFrameError, FrameReader, extract, find_root, read_list, unpack


@pytest.fixture(autouse=True)
def unpack_into(tmp_path, monkeypatch):
    folder = tmp_path / "extracted"
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", str(folder))
    return folder


def save(path: Path, values: np.ndarray) -> str:
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)
    return str(path)


GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLORS = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def test_images(tmp_path):
    for values in [GRAY, COLORS, GRAY > 5, GRAY.astype(np.uint16) * 300]:
        np.testing.assert_array_equal(files.read_image(save(tmp_path / "a.png", values)), values)


def test_a_palette_is_for_ids(tmp_path):
    picture = Image.fromarray(GRAY)
    picture.putpalette(range(255, -1, -1))
    picture.save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    np.testing.assert_array_equal(files.read_ids(path, range(12), ignored=255), GRAY)
    with pytest.raises(ValueError, match="must be gray or RGB; got a palette, save it without one"):
        files.read_gray(path)


def test_another_format_than_the_name_says(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(ValueError, match="name says PNG, but it is a JPEG file, which may have lost .* rename it"):
        files.read_rgb(str(tmp_path / "a.png"))


def write_header_bomb(path: Path, side: int = 60_000) -> str:
    """A PNG of some bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    )
    return str(path)


def test_header_bomb(tmp_path):
    reader = FrameReader("a")
    assert reader.read(write_header_bomb(tmp_path / "a.png"), files.read_rgb) is None
    with pytest.raises(
        BrokenFrameError,
        match=r"a.png: an image has at most 178 million pixels; got 60,000 x 60,000. .* Restore the file",
    ):
        reader.finish()


def test_array_of_a_huge_header(tmp_path):
    path = tmp_path / "a.npy"
    save(path, np.zeros((3, 4)))
    path.write_bytes(path.read_bytes().replace(b"(3, 4)", b"(60000, 60000)", 1))
    reader = FrameReader("a")
    assert reader.read(str(path), files.read_npy) is None
    assert "Cannot use" in reader.problems[0]


def test_all_problems_of_a_frame_are_reported(tmp_path):
    reader = FrameReader("0001")
    image = reader.read(save(tmp_path / "image.png", COLORS), files.read_rgb)
    assert reader.read(str(tmp_path / "missing.png"), files.read_gray) is None
    assert reader.read(save(tmp_path / "small.png", GRAY[:2]), files.read_gray) is None
    np.testing.assert_array_equal(image, COLORS)
    with pytest.raises(BrokenFrameError) as error:
        reader.finish()
    first, second = str(error.value).split("\n")
    assert "missing.png: it is missing. Restore the file, or take 0001 off the list." in first
    assert "small.png: a map must have the size of its image, (3, 4) (height, width); got (2, 4)." in second


def test_depth(tmp_path):
    depth = files.read_depth(save(tmp_path / "a.npy", np.array([[0.0, 1.5], [np.nan, 20.0]])), max_depth=20.0)
    np.testing.assert_array_equal(depth, np.array([[np.nan, 1.5], [np.nan, 20.0]], np.float32))
    assert depth.dtype == np.float32


def test_invalid_depth(tmp_path):
    for values, message in [
        (np.array([[700.0, 3000.0]]), "at most 20; got up to 3000, .* millimetres divided by 1000"),
        (np.array([[700, 3000]], np.uint16), "floating point metres .* got uint16"),
        (np.array([[-1.0]]), "metres >= 0, 0 invalid; got -1.0"),
        (np.array([[np.inf]]), "metres >= 0"),
        (np.ones((1, 2, 3)), r"\(1, 2, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            files.read_depth(save(tmp_path / "a.npy", values), max_depth=20.0)


def test_normals_as_vectors_and_as_codes(tmp_path):
    codes = np.array([[[255, 128, 128], [0, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(files.read_normals(save(tmp_path / "a.png", codes)), codes)
    vectors = save(tmp_path / "a.npy", codes.astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(files.read_normals(vectors), codes)
    with pytest.raises(ValueError, match="must be vectors of -1..1"):
        files.read_normals(save(tmp_path / "b.npy", codes.astype(np.float32)))


def test_edges_of_0_and_1(tmp_path):
    for values in [GRAY % 2, (GRAY % 2).astype(np.float64), GRAY % 2 == 1]:
        np.testing.assert_array_equal(files.read_gray(save(tmp_path / "a.npy", values)), GRAY % 2 * 255)


def test_ids_of_any_integer_type(tmp_path):
    ids = files.read_ids(save(tmp_path / "a.npy", GRAY.astype(np.int64)), range(12), ignored=255)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, GRAY)


def test_lists(tmp_path):
    path = tmp_path / "train.txt"
    for text in ("b 1\na\n\n", "\ufeffb 1 \r\n\ta\r\n"):
        path.write_text(text, encoding="utf-8")
        assert read_list(path) == ["b 1", "a"]
    for text, message in {
        "": "at least one id",
        "a\nb\na\n": r"listed once; .*repeats \['a'\]",
        "../../etc/passwd": "An id is a plain name",
        "/etc/passwd": "An id is a plain name",
        "..\\a": "An id is a plain name",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_list(path)


def test_a_long_list_with_a_repetition_is_refused_at_once(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\n".join([*map(str, range(30_000)), "7"]))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"repeats \['7'\]"):
        read_list(path)
    assert time.perf_counter() - start < 5


def test_roots(tmp_path):
    def find(path):
        return find_root(path, lambda folder: (folder / "images").is_dir(), "a folder of images")

    (tmp_path / "a" / "images").mkdir(parents=True)
    assert find(tmp_path / "a") == find(tmp_path) == find(str(tmp_path / "a" / ".." / "a")) == tmp_path / "a"
    (tmp_path / "b" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds several datasets, .*a'.*b'.*pass one of them"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match="Pass a folder of images; .*images is no such folder"):
        find(tmp_path / "a" / "images")
    with pytest.raises(FileNotFoundError, match="There is no file or folder .*c; pass a folder of images"):
        find(tmp_path / "c")
    with pytest.raises(ValueError, match="data_dir is None; pass a folder of images"):
        find(None)


def write_archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                tar.addfile(member)
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_archive(tmp_path, unpack_into, name):
    archive = write_archive(tmp_path / name, {"a/b.txt": b"1", "a/c.txt": b"2"})
    folder = unpack(archive)
    assert folder.parent == unpack_into
    assert (folder / "a" / "b.txt").read_bytes() == b"1"
    assert [*unpack_into.iterdir()] == [folder]
    (folder / "a" / "c.txt").unlink()
    assert unpack(archive) == folder and not (folder / "a" / "c.txt").exists()  # once
    write_archive(archive, {"a/b.txt": b"234"})
    assert (unpack(archive) / "a" / "b.txt").read_bytes() == b"234"  # another archive


def make_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


HOSTILE = {
    "parent": {"../evil.txt": b"1"},
    "parent inside": {"a/../../evil.txt": b"1"},
    "absolute": {"/tmp/evil_of_transformers_sem.txt": b"1"},
    "symbolic link": {"link": make_member("link", tarfile.SYMTYPE, "/etc")},
    "link inside": {"a.txt": b"1", "link": make_member("link", tarfile.SYMTYPE, "a.txt")},
    "hard link": {"a.txt": b"1", "link": make_member("link", tarfile.LNKTYPE, "a.txt")},
    "device": {"device": make_member("device", tarfile.CHRTYPE)},
    "pipe": {"pipe": make_member("pipe", tarfile.FIFOTYPE)},
}


def test_hostile_archive(tmp_path, unpack_into):
    for members in HOSTILE.values():
        archive = write_archive(tmp_path / "a.tar", {"good.txt": b"1", **members})
        with pytest.raises(
            ValueError, match="Cannot unpack .*a.tar: .*leads out of it, or is neither a file nor a folder"
        ):
            unpack(archive)
        assert [*unpack_into.iterdir()] == []
        assert [*tmp_path.rglob("evil*")] == [] and not Path("/tmp/evil_of_transformers_sem.txt").exists()


def test_broken_archive(tmp_path, unpack_into):
    for content in [b"", b"<html>", "cut"]:
        noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
        archive = write_archive(tmp_path / "a.tar.gz", {"a/b.txt": noise, "a/c.txt": noise})
        archive.write_bytes(archive.read_bytes()[:120_000] if content == "cut" else content)
        with pytest.raises(ValueError, match="Cannot unpack .*a.tar.gz: .* Download it again, or unpack it yourself"):
            unpack(archive)
        assert [*unpack_into.iterdir()] == []


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
def test_a_damaged_archive_is_refused_or_makes_no_difference(tmp_path, unpack_into, name):
    """Of an archive that is not compressed, only the headers have checksums."""
    members = {f"a/{letter}.txt": letter.encode() * 700 for letter in "bcd"}
    archive = write_archive(tmp_path / name, members)
    content, refused = archive.read_bytes(), 0
    positions = range(0, 8 * len(content), 13) if name.endswith("gz") else range(1544 * 8, 1600 * 8, 7)
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        archive.write_bytes(damaged)
        os.utime(archive, ns=(0, position))
        try:
            folder = unpack(archive)
        except ValueError:
            refused += 1
        else:
            assert {path: (folder / path).read_bytes() for path in members} == members
    assert refused > 0.9 * len(positions)


def extract_into(folder: Path, archive: Path) -> dict[str, bytes] | None:
    """Returns the files of an archive, or `None` where it is refused."""
    with TemporaryDirectory(dir=folder) as parent:
        content = Path(parent) / "content"
        try:
            extract(archive, content)
        except Exception:  # `unpack` makes one of all
            return None
        return {str(path.relative_to(content)): path.read_bytes() for path in content.rglob("*") if path.is_file()}


def test_a_cut_tar_archive_loses_no_files_in_silence(tmp_path):
    members = {f"a/{letter}.txt": letter.encode() * 700 for letter in "bc"} | {"a/d.txt": b""}
    archive = write_archive(tmp_path / "a.tar", members)
    content = archive.read_bytes()
    end = 2 * 1536 + 512
    found = {}
    for cut in {*range(0, end + 1024, 97), *range(0, end + 1024, 512), len(content)}:
        archive.write_bytes(content[:cut])
        found[cut] = extract_into(tmp_path, archive)
    assert {cut for cut in found if found[cut] is None} == {cut for cut in found if cut < end + 512}
    assert all(files == members for files in found.values() if files is not None)
    damaged = bytearray(content)
    damaged[2 * 1536] ^= 1  # the header of the last file, which holds nothing
    archive.write_bytes(damaged)
    assert extract_into(tmp_path, archive) is None


def test_a_damaged_zip_archive_loses_no_files_in_silence(tmp_path):
    members = {"b.txt": b"b" * 70, "c.txt": b"c", "d.txt": b""}
    archive = write_zip(tmp_path / "a.zip", {name: (0, content) for name, content in members.items()})
    content, results = archive.read_bytes(), []
    start = 8 * content.index(b"PK\1\2")
    length_of_a_comment = start + 8 * 32
    for position in [*range(length_of_a_comment, length_of_a_comment + 16), *range(start, 8 * len(content), 13)]:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        archive.write_bytes(damaged)
        results.append(extract_into(tmp_path, archive))
    assert [files for files in results if files not in (None, members)] == []
    assert results.count(None) > 50


def write_zip(path: Path, members: dict[str, tuple[int, bytes]]) -> Path:
    """Members have the mode of a file on Unix, 0 for archives of other systems, and the content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (mode, content) in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


PLAIN_ZIP = {"a/": (stat.S_IFDIR | 0o755, b""), "a/b.txt": (stat.S_IFREG | 0o644, b"1"), "a/c.txt": (0, b"2" * 5000)}


def test_zip_archive(tmp_path, unpack_into):
    archive = write_zip(tmp_path / "a.zip", PLAIN_ZIP)
    folder = unpack(archive)
    assert folder.parent == unpack_into and unpack(archive) == folder
    assert (folder / "a" / "b.txt").read_bytes() == b"1" and len((folder / "a" / "c.txt").read_bytes()) == 5000
    # recognized by what it is: an uncompressed tar archive may end with a zip archive
    inner = write_archive(tmp_path / "b.zip", {"b/inner.zip": archive.read_bytes()})
    assert (unpack(inner) / "b" / "inner.zip").read_bytes() == archive.read_bytes()
    assert [*unpack(write_zip(tmp_path / "empty.zip", {})).iterdir()] == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../evil.txt", 0), ("a/../../evil.txt", 0), ("/evil.txt", 0), ("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO)],
)
def test_hostile_zip_archive(tmp_path, unpack_into, name, mode):
    archive = write_zip(tmp_path / "a.zip", {**PLAIN_ZIP, name: (mode, b"/etc")})
    with pytest.raises(
        ValueError, match="Cannot unpack .*a.zip: .*leads out of it, or is neither a file nor a folder"
    ):
        unpack(archive)
    assert [*unpack_into.iterdir()] == [] and [*tmp_path.rglob("evil*")] == []


def test_broken_zip_archive(tmp_path, unpack_into):
    content = write_zip(tmp_path / "a.zip", PLAIN_ZIP).read_bytes()
    size = struct.pack("<I", 5000)
    assert content.count(size) == 2  # one in front of the file, one in the list at the end
    for damaged in (content[:60], content.replace(b"c.txt", b"d.txt", 1), content.replace(size, struct.pack("<I", 9))):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match="Cannot unpack .*a.zip: .* Download it again, or unpack it yourself"):
            unpack(tmp_path / "a.zip")
        assert [*unpack_into.iterdir()] == []


@pytest.mark.parametrize("write", [write_archive, write_zip])
def test_an_archive_must_fit_on_the_disk(tmp_path, unpack_into, monkeypatch, write):
    members = PLAIN_ZIP if write is write_zip else {"a/c.txt": b"2" * 5000}
    archive = write(tmp_path / "a", members)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4900))
    with pytest.raises(
        OSError, match="Cannot unpack .*need 5,00[01] bytes, and 4,900 are free. Free some space, or set"
    ):
        unpack(archive)
    assert [*unpack_into.iterdir()] == []


def test_full_disk(tmp_path, unpack_into, monkeypatch):
    archive = write_archive(tmp_path / "a.tar", {"a/b.txt": b"1", "a/c.txt": b"2"})
    extract = tarfile.TarFile.extract

    def fail(self, member, *arguments, **options):
        if member.name == "a/c.txt":
            raise OSError(28, "No space left on device")
        extract(self, member, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", fail)
        with pytest.raises(OSError, match="Cannot unpack .*No space left on device. Free some space, or set HF_HOME"):
            unpack(archive)
    assert [*unpack_into.iterdir()] == []
    assert (unpack(archive) / "a" / "c.txt").read_bytes() == b"2"
