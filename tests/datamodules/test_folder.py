"""ImageFolder and the listing of files."""

import hashlib
import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.errors import UserError
from datamodules import fingerprints
from datamodules.folder import ImageFolder, shared_files
from datamodules.listing import list_files, list_images, shorten


def save(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    image.putpixel((0, 0), (255, 255, 255))
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, a.PNG and sub/c.jpg, with things that are not images of the set."""
    save(tmp_path / "set" / "b.png", (200, 100, 0))
    save(tmp_path / "set" / "a.PNG", (0, 50, 250))
    save(tmp_path / "set" / "sub" / "c.jpg")
    save(tmp_path / "set" / ".hidden.png")
    save(tmp_path / "set" / ".cache" / "d.png")
    (tmp_path / "set" / "attributes.csv").write_text("x")
    return tmp_path / "set"


def test_listing_is_sorted_and_leaves_out_hidden_files(folder: Path) -> None:
    assert list_images(str(folder)) == (folder, ["a.PNG", "b.png"])
    assert list_images(str(folder), recursive=True) == (folder, ["a.PNG", "b.png", "sub/c.jpg"])
    assert list_images(str(folder / "b.png")) == (folder, ["b.png"])


def test_starter_images_are_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, files = list_images("datamodules/starter/landscapes")
    assert files == [f"00{i}.jpg" for i in range(5)] and (folder / "000.jpg").is_file()
    save(tmp_path / "datamodules" / "starter" / "landscapes" / "mine.png")
    assert list_images("datamodules/starter/landscapes")[1] == ["mine.png"]


def test_missing_folder_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=r"side_root: .*sett does not exist. Did you mean .*set\?"):
        list_images(f"{folder}t", key="side_root")
    with pytest.raises(UserError, match="Did you mean .*sub"):
        list_images(str(folder / "sbu" / "deeper"))
    with pytest.raises(UserError, match="contains: a.PNG, attributes.csv, b.png, sub"):
        list_images(str(folder / "zzzz"))


def test_folder_without_images_says_what_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"root: no image in .*empty; supported: .*\.webp. It is empty"):
        list_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"subfolder\(s\) set: choose one"):
        list_images(str(tmp_path))
    (tmp_path / "empty" / "photo.HEIC").touch()
    with pytest.raises(ValueError, match="Extensions of its files: .heic"):
        list_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="attributes.csv is not an image"):
        list_images(str(folder / "attributes.csv"))


LEFT_OUT = {
    "photo.heic": "format is not supported",
    "noending": "do not end in a known extension",
    "photo.image": "do not end in a known extension",
    "linked": "links to folders are not followed",
    "lost.jpg": "links to files that do not exist",
}


@pytest.mark.parametrize("recursive", [True, False])
def test_nothing_is_left_out_without_a_line(folder: Path, tmp_path: Path, recursive: bool) -> None:
    for name in ("e.jpg", "f.jpe", "g.jfif", "h.JPEG"):
        save(tmp_path / "e.jpg").rename(folder / name)
    (folder / "photo.heic").touch()
    for name in ("noending", "photo.image"):
        save(tmp_path / "x.png").rename(folder / name)
    save(tmp_path / "elsewhere" / "z.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.warns(UserWarning) as caught:
        images = list_images(str(folder), recursive, "side_root")[1]
    assert images == sorted(["a.PNG", "b.png", "e.jpg", "f.jpe", "g.jfif", "h.JPEG", *["sub/c.jpg"] * recursive])
    reasons = LEFT_OUT | ({} if recursive else {"sub/c.jpg": "subfolders are not searched"})
    lines = [str(warning.message) for warning in caught]
    assert all(line.startswith("side_root: left out of") for line in lines) and len(lines) == len(set(reasons.values()))
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in lines), name
    left_out = list_files(str(folder), recursive).left_out
    assert {name for names in left_out.values() for name in names} == {*reasons, "attributes.csv"}
    assert left_out["not an image"] == ["attributes.csv"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_entries_are_files_then_their_mirror_images(folder: Path, in_memory: bool) -> None:
    images = ImageFolder(*list_images(str(folder)), (6, 8), flip=True, in_memory=in_memory)
    assert len(images) == 4
    assert images.names == ["a.PNG", "b.png", "a.PNG (mirrored)", "b.png (mirrored)"]
    first = images[0]
    assert torch.equal(images.take([2, 0]), torch.stack([images[2], first]))
    assert first.shape == (3, 6, 8) and first.dtype == torch.float32
    assert torch.equal(first[:, 0, 0], torch.ones(3))
    assert torch.allclose(first[:, 3, 3], torch.tensor([0, 50, 250]) / 127.5 - 1)
    for position in range(2):
        assert torch.equal(images[2 + position], images[position].flip(-1))
        assert not torch.equal(images[2 + position], images[position])
    assert torch.equal(images.stack(), torch.stack([images[i] for i in range(4)]))
    plain = images.originals()
    assert len(plain) == 2 and plain.names == ["a.PNG", "b.png"] and torch.equal(plain.stack(), images.stack()[:2])
    assert len(images) == 4
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            images[outside]


def test_bytes_survive_the_way_to_float_and_back(tmp_path: Path) -> None:
    levels = Image.frombytes("L", (256, 1), bytes(range(256)))
    levels.save(tmp_path / "levels.png")
    images = ImageFolder(*list_images(str(tmp_path)), (1, 256))
    back = ((images[0] + 1) * 127.5).round()
    assert back[0, 0].tolist() == list(range(256)) and images[0].min() == -1 and images[0].max() == 1


def test_fingerprint_follows_names_and_contents_only(folder: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path, size: tuple[int, int] = (6, 8), **options: bool) -> str:
        return ImageFolder(*list_images(str(root)), size, **options).fingerprint

    rows = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()} {name}" for name in ("a.PNG", "b.png")]
    first = fingerprint(folder)
    assert first == hashlib.sha256("\n".join(rows).encode()).hexdigest()
    assert first == fingerprint(folder, (3, 4), flip=True) == fingerprint(folder, in_memory=False)
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    (moved / "b.png").rename(moved / "renamed.png")
    second = fingerprint(moved)
    save(moved / "renamed.png", (1, 1, 1))
    assert len({first, second, fingerprint(moved)}) == 3


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    save(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    images = ImageFolder(*list_images(str(tmp_path)), (6, 8))
    assert len(images.fingerprint) == 64 and images.names == ["caf\\xe9.png"] and images[0].shape == (3, 6, 8)


def test_fingerprints_of_large_sets_are_cached_and_never_outdated(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever happens to a file: also one of the same size and modification time is read again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "MIN_CACHED", 2)
    monkeypatch.setattr(fingerprints, "SETTLE_SECONDS", -60)
    read = []
    read_content = fingerprints.read_content
    monkeypatch.setattr(fingerprints, "read_content", lambda path: read.append(path.name) or read_content(path))

    def digests() -> list[str]:
        read.clear()
        names = list_images(str(folder))[1]
        result = fingerprints.file_digests(folder, names)
        assert result == [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
        return result

    first = digests()
    assert read == ["a.PNG", "b.png"]
    assert digests() == first and read == []
    before, data = (folder / "b.png").stat(), bytearray((folder / "b.png").read_bytes())
    data[-1] ^= 1
    (folder / "b.png").write_bytes(data)
    os.utime(folder / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests() != first and read == ["b.png"]
    save(folder / "c.png")
    (folder / "a.PNG").unlink()
    assert len(digests()) == 2 and read == ["c.png"]
    (cache,) = (tmp_path / "cache").rglob("*.json")
    for damaged in (b"", b"[1]", b'{"b.png": 3, "c.png": [1, 2]}', b"[" * 100_000):
        cache.write_bytes(damaged)
        assert len(digests()) == 2 and read == ["b.png", "c.png"]
    monkeypatch.setattr(fingerprints, "SETTLE_SECONDS", 60)  # just written: may change within one tick of the clock
    cache.unlink()
    digests(), digests()
    assert read == ["b.png", "c.png"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert digests()


@pytest.mark.parametrize("in_memory", [True, False])
def test_small_images_are_enlarged_with_one_warning(folder: Path, in_memory: bool) -> None:
    save(folder / "large.png", size=(16, 12))
    listed = list_images(str(folder))
    with pytest.warns(UserWarning, match="smaller than image_size 12×16, enlarged: a.PNG, b.png$") as caught:
        images = ImageFolder(*listed, (12, 16), in_memory=in_memory)
    assert len(caught) == 1 and images[0].shape == (3, 12, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(*listed, (6, 8), in_memory=in_memory)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_broken_file_stops_at_once(folder: Path, in_memory: bool) -> None:
    (folder / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read the image .*c.png"):
        ImageFolder(*list_images(str(folder)), (6, 8), in_memory=in_memory)


def test_shared_files_are_found_by_content(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save(other / "new.png", (9, 9, 9))
    (other / "copy.png").write_bytes((folder / "b.png").read_bytes())
    sets = [ImageFolder(*list_images(str(root)), (6, 8)) for root in (folder, other)]
    assert shared_files(*sets) == [("b.png", "copy.png")]


def test_long_lists_are_shortened() -> None:
    assert shorten(["a", "b"]) == "a, b"
    assert shorten([str(i) for i in range(12)], limit=3) == "0, 1, 2 and 9 more"
