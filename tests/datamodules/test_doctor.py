"""Defects are planted by Pillow or byte by byte; what has to be found is written down here beside each."""

import hashlib
import io
import json
import math
import random
import runpy
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

import train
from callbacks.run_manifest import RunManifest
from cli.loader import load_config
from core.errors import UserError
from datamodules import doctor
from datamodules.decode import Treatment, decode
from datamodules.doctor import examine, propose_size
from datamodules.findings import STEPS, Finding, quick_check, summarize
from datamodules.image_datamodule import ImageDataModule

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "datamodules" / "starter"
SIZE = (24, 32)
Plant = Callable[[Path], object]


def scene(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """A smooth picture of its own: four waves a channel."""
    chance = random.Random(seed)
    channels = []
    for _ in range(3):
        waves = [(chance.uniform(-3, 3), chance.uniform(-3, 3), chance.uniform(0, 6.3)) for _ in range(4)]
        values = [
            round(127.5 + 30 * sum(math.sin(6.3 * (a * x / width + b * y / height) + c) for a, b, c in waves))
            for y in range(height)
            for x in range(width)
        ]
        channels.append(Image.frombytes("L", (width, height), bytes(min(255, max(0, value)) for value in values)))
    return Image.merge("RGB", channels)


def save(picture: Image.Image, name: str, **options: object) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, **options)

    return plant


def write(data: bytes, name: str) -> Plant:
    return lambda folder: (folder / name).write_bytes(data)


def copy(source: str, name: str) -> Plant:
    return lambda folder: (folder / name).write_bytes((folder / source).read_bytes())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def invalid_exif(orientation: int) -> bytes:
    """EXIF data with that orientation, and a negative value in the unsigned field ImageWidth."""
    entries = [(0x0100, 9, struct.pack("<i", -5)), (0x0112, 3, struct.pack("<HH", orientation, 0))]
    body = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, kind: int, body: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def deep_color(width: int, height: int) -> bytes:
    pixels = [[(900 * x, 1300 * y, 65535 - 700 * x) for x in range(width)] for y in range(height)]
    return png(width, height, 16, 2, b"".join(b"\0" + b"".join(struct.pack(">HHH", *p) for p in row) for row in pixels))


def half(name: str) -> Plant:
    def plant(folder: Path) -> None:
        data = (folder / "good.jpg").read_bytes() if name.endswith("jpg") else (folder / "good.png").read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return plant


def link(target: str, name: str) -> Plant:
    return lambda folder: (folder / name).symlink_to(folder / target)


# What is planted in the set `image`: (kind, level, files it names, how it is planted).
DEEP = scene(7).convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
TWELVE_BITS = scene(27).convert("L").convert("I").point(lambda value: value * 16).convert("I;16")
BRIGHTER = ImageEnhance.Brightness(scene(21)).enhance(1.15)
GREY = Image.linear_gradient("L").resize((64, 48))
PALETTE = scene(3).quantize(64)
ALPHA = scene(4).convert("RGBA")
ALPHA.putalpha(GREY)
DEFECTS: list[tuple[str, str, tuple[str, ...], Plant]] = [
    ("rotated", "note", ("exif6.jpg",), save(scene(1, 48, 64), "exif6.jpg", exif=turned(6))),
    ("rotated", "note", ("exif3.png",), save(scene(2), "exif3.png", exif=turned(3))),
    ("metadata", "note", ("exif.jpg",), save(scene(26, 48, 64), "exif.jpg", exif=invalid_exif(6))),
    ("rotated", "note", ("exif.jpg",), lambda folder: None),
    ("transparent", "note", ("rgba.png",), save(ALPHA, "rgba.png")),
    ("transparent", "note", ("la.png",), save(ImageOps.mirror(ALPHA.rotate(90, expand=True)).convert("LA"), "la.png")),
    ("palette", "note", ("palette.png",), save(PALETTE, "palette.png")),
    ("transparent", "note", ("clear.png",), save(scene(5).quantize(32), "clear.png", transparency=1)),
    ("cmyk", "note", ("cmyk.jpg",), save(scene(6).convert("CMYK"), "cmyk.jpg", quality=95)),
    ("deep", "note", ("deep_gray.png",), save(DEEP, "deep_gray.png")),
    ("deep", "note", ("deep_color.png",), write(deep_color(64, 48), "deep_color.png")),
    ("bit depth", "warning", ("twelve.png",), save(TWELVE_BITS, "twelve.png")),
    ("deep", "note", ("float.tif",), save(scene(8).convert("F").point(lambda v: v * (1 / 255) + 0), "float.tif")),
    ("gray", "note", ("gray.png",), save(scene(9).convert("L"), "gray.png")),
    ("animated", "note", ("moving.gif",), save(scene(10), "moving.gif", save_all=True, append_images=[scene(11)])),
    ("animated", "note", ("moving.webp",), save(scene(12), "moving.webp", save_all=True, append_images=[scene(13)])),
    ("extension", "note", ("really_png.jpg",), save(scene(14), "really_png.jpg", format="PNG")),
    ("extension", "note", ("really_jpeg.png",), save(scene(15), "really_jpeg.png", format="JPEG", quality=95)),
    ("damaged", "error", ("cut.png",), half("cut.png")),
    ("damaged", "error", ("cut.jpg",), half("cut.jpg")),
    ("empty", "error", ("zero.png",), write(b"", "zero.png")),
    ("not an image", "error", ("page.png",), write(b"<!DOCTYPE html><p>not found", "page.png")),
    ("not an image", "error", ("notes.jpg",), write(b"hello", "notes.jpg")),
    ("too large", "error", ("bomb.png",), write(png(50_000, 50_000, 1, 0, b""), "bomb.png")),
    ("not read", "error", ("line\nbreak.png",), save(scene(16), "line\nbreak.png")),
    ("not read", "error", ("link.png",), link("../outside.png", "link.png")),
    ("unsupported format", "warning", ("photo.heic",), write(b"\0\0\0\x18ftypheic", "photo.heic")),
    ("unknown extension", "warning", ("photo.image",), save(scene(17), "photo.image", format="JPEG")),
    ("not an image", "note", ("readme.txt",), write(b"about these pictures", "readme.txt")),
    ("linked folder", "warning", ("linked",), link("../side", "linked")),
    ("broken link", "warning", ("lost.png",), link("../nowhere.png", "lost.png")),
    ("subfolder", "warning", ("deeper/d.png",), save(scene(18), "deeper/d.png")),
    ("duplicate", "warning", ("good.png", "same_as_good.png"), copy("good.png", "same_as_good.png")),
    ("near-duplicate", "warning", ("good.png", "recompressed.jpg"), save(scene(0), "recompressed.jpg", quality=40)),
    ("near-duplicate", "warning", ("good2.png", "smaller.png"), save(scene(19).resize((40, 30)), "smaller.png")),
    ("near-duplicate", "warning", ("good3.png", "mirrored.png"), save(ImageOps.mirror(scene(20)), "mirrored.png")),
    ("near-duplicate", "warning", ("brighter.png", "good4.png"), save(BRIGHTER, "brighter.png")),
    ("enlarged", "warning", ("small.png",), save(scene(22, 16, 12), "small.png")),
    ("too small", "error", ("tiny.png",), save(scene(23, 6, 5), "tiny.png")),
    ("cropped", "warning", ("panorama.png",), save(scene(24, 160, 40), "panorama.png")),
    ("cropped", "note", ("square.png",), save(scene(25, 48, 48), "square.png")),
    ("blank", "warning", ("blank.png",), save(Image.new("RGBA", (64, 48)), "blank.png")),
]  # fmt: skip
HARMLESS = {"good.png": 0, "good2.png": 19, "good3.png": 20, "good4.png": 21, "good.jpg": 30}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of the sets, and the report on them."""
    folder = tmp_path_factory.mktemp("planted")
    image, side, reference = (folder / name for name in ("image", "side", "reference"))
    for root in (image, side, reference):
        root.mkdir()
    scene(31).save(folder / "outside.png")
    for name, seed in HARMLESS.items():
        scene(seed).save(image / name)
    for _, _, _, plant in DEFECTS:
        plant(image)
    (side / "same.png").write_bytes((image / "good2.png").read_bytes())
    scene(20).save(side / "alike.jpg", quality=50)
    scene(32).save(side / "own.png")
    (reference / "leak.png").write_bytes((side / "own.png").read_bytes())
    scene(33).save(reference / "own.png")
    (reference / "leak2.png").write_bytes((image / "good4.png").read_bytes())
    scene(19).save(reference / "near.jpg", quality=50)
    scene(34).save(side / "s.png")
    scene(34).save(reference / "s.jpg", quality=50)
    return folder, examine({name: str(folder / name) for name in ("image", "side", "reference")}, SIZE)


def found(report: dict, level: str | None = None) -> set[tuple[str, str, tuple[str, ...]]]:
    findings = [finding for finding in report["findings"] if level in (None, finding["level"])]
    return {(finding["kind"], finding["level"], tuple(sorted(finding["files"]))) for finding in findings}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect[0]}-{defect[2][0]!r}")
def test_a_planted_defect_is_found(defect, planted):
    kind, level, files, _ = defect
    wanted = {f"image/{name}" for name in files}
    assert any(k == kind and lv == level and wanted <= set(names) for k, lv, names in found(planted[1])), planted[1]["findings"]


def test_nothing_else_is_found_wrong(planted):
    """Errors and warnings are those that were planted, and those between the sets."""
    known = {(kind, level, *(f"image/{name}" for name in files)) for kind, level, files, _ in DEFECTS if level != "note"}
    between = {
        ("duplicate", "warning", "image/good2.png", "side/same.png"),
        ("duplicate", "error", "reference/leak.png", "side/own.png"),
        ("near-duplicate", "warning", "image/good3.png", "side/alike.jpg"),
        ("near-duplicate", "warning", "image/mirrored.png", "side/alike.jpg"),
        ("duplicate", "error", "image/good4.png", "reference/leak2.png"),
        ("near-duplicate", "warning", "image/good2.png", "reference/near.jpg"),
        ("near-duplicate", "warning", "image/smaller.png", "reference/near.jpg"),
        ("near-duplicate", "warning", "reference/s.jpg", "side/s.png"),
    }
    assert {(kind, level, *files) for kind, level, files in found(planted[1]) if level != "note"} == known | between


def test_at_least_thirty_defects_of_all_kinds_are_planted():
    assert len(DEFECTS) >= 30 and {kind for kind, *_ in DEFECTS} >= set(STEPS)


def test_the_report_is_what_the_decoder_does(planted):
    """A file is planned exactly as it is decoded, and unreadable exactly if the data module refuses it."""
    folder, report = planted
    unreadable = {files[0] for kind, level, files in found(report, "error") if kind not in ("too small", "duplicate")}
    for key, facts in report["sets"].items():
        for name, entry in facts["files"].items():
            path = folder / key / name
            if f"{key}/{name}" in unreadable:
                assert "format" not in entry
                if path.is_symlink() or not name.isprintable():
                    continue  # of a folder; a single file named by the user may be a link
                with pytest.raises(ValueError, match="cannot read|too large"):
                    ImageDataModule(str(path), list(SIZE)).setup()
            else:
                planned = Treatment(*(entry[field] for field in Treatment._fields))
                assert planned == decode(path.read_bytes(), path, SIZE)[1]
                assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["sets"]["image"]["fingerprint"] is None and len(report["sets"]["side"]["fingerprint"]) == 64


@pytest.mark.parametrize("size", [[24, 32], None])
def test_nothing_is_wrong_with_the_starter_images(size):
    few, side, faces, sketches = (str(STARTER / name) for name in ("landscapes", "side", "faces", "faces-sketch-10shot"))
    for roots in ({"image": few, "side": side}, {"image": faces}, {"image": sketches, "reference": faces}):
        report = examine(roots, size)
        assert not report["wrong"] and not found(report, "error") | found(report, "warning")
        assert {kind for kind, _, _ in found(report)} <= {"cropped", "not an image"}


def test_the_fingerprint_is_the_one_of_the_training(planted):
    folder, report = planted
    module = ImageDataModule(str(folder / "reference"), list(SIZE))
    module.setup()
    assert report["sets"]["reference"]["fingerprint"] == module.fingerprints()["image"]


def test_a_zip_file_is_examined_like_its_folder(planted, tmp_path):
    folder, _ = planted
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((folder / "image").rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(folder / "image").as_posix())
    report = examine({"image": str(tmp_path / "set.zip")}, SIZE)
    missing = {(kind, level) for kind, level, files, _ in DEFECTS if "link" not in kind and files[0] != "link.png"}
    assert missing <= {(kind, level) for kind, level, _ in found(report)}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(480, 640)] * 3, (192, 256)),
        ([(640, 480)] * 3, (256, 192)),
        ([(32, 32)], (32, 32)),
        ([(90, 100), (100, 90), (64, 64)], (64, 64)),
        ([(90, 100), (100, 90), (96, 96), (8, 8)], (88, 88)),
        ([(30, 41)], (28, 40)),
    ],
)
def test_a_size_is_proposed(shapes, expected, tmp_path):
    for i, (height, width) in enumerate(shapes):
        Image.effect_noise((width, height), 50).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    assert propose_size(sorted(tmp_path.iterdir())) == expected


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_prints_writes_and_ends_with_the_verdict(planted, tmp_path, monkeypatch):
    """`python -m datamodules.doctor` on a terminal that has ASCII only."""
    folder, report = planted
    out = tmp_path / "reports" / "report.json"
    arguments = [str(folder / name) for name in ("image", "side", "reference")]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments, "image_size=[24,32]", f"out={out}"])
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.delitem(sys.modules, "datamodules.doctor")
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module("datamodules.doctor", run_name="__main__")
    terminal.flush()
    printed = terminal.buffer.getvalue().decode()
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert printed.splitlines()[-1].endswith("training would be wrong.")
    for name in [*HARMLESS, "exif6.jpg", "line\\nbreak.png"]:
        assert f"\n  {name}: " in printed
    assert "rotated to its EXIF orientation" in printed and "line\nbreak" not in printed


@pytest.mark.parametrize(
    ("plant", "status"),
    [
        (save(scene(40), "b.png"), 0),
        (save(scene(41).convert("CMYK"), "b.jpg"), 0),  # a note
        (save(scene(42, 300, 40), "b.png"), 0),  # a warning
        (copy("a.png", "b.png"), 0),
        (save(scene(43, 5, 4), "b.png"), 1),
        (write(b"", "b.png"), 1),
        (half("good.png"), 1),
    ],
)
def test_exit_status_and_training_agree(plant, status, tmp_path, monkeypatch):
    """The doctor's verdict is what happens when a training is prepared: stopped before anything is written, or not."""
    (tmp_path / "set").mkdir()
    scene(39).save(tmp_path / "set" / "a.png")
    scene(39).save(tmp_path / "set" / "good.png")
    plant(tmp_path / "set")
    if (tmp_path / "set" / "b.png").exists() or (tmp_path / "set" / "b.jpg").exists():
        (tmp_path / "set" / "good.png").unlink()
    assert doctor.main([str(tmp_path / "set"), "image_size=[24,32]"]) == status
    monkeypatch.chdir(ROOT)
    arguments = ["configs/gpdm.yaml", f"datamodule.root={tmp_path / 'set'}", "datamodule.image_size=[24,32]",
             "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    with pytest.raises(UserError) if status else nullcontext():
        train.prepare(load_config(arguments), dry_run=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no folder given", "--help"]),
        (["nowhere"], ["nowhere does not exist"]),
        (["image_siz=[8,8]"], ["image_siz", "Did you mean image_size"]),
        (["zzz=1"], ["zzz", "image_size", "reference"]),
        (["FOLDER", "image_size=8"], ["image_size", "[height,width]", "'8'"]),
        (["FOLDER", "image_size=[8,0]"], ["image_size", "'[8,0]'"]),
        (["FOLDER", "recursive=maybe"], ["recursive", "true or false", "'maybe'"]),
        (["FOLDER", "image=FOLDER"], ["image: given twice"]),
        (["FOLDER"] * 4, ["at most three folders"]),
    ],
)
def test_mistakes_in_the_command(arguments, parts, capsys):
    folder = str(STARTER / "faces-sketch-10shot")
    assert doctor.main([word.replace("FOLDER", folder) for word in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and all(part in message for part in parts), message


def test_help(capsys):
    assert doctor.main(["--help"]) == 0
    assert "image_size" in capsys.readouterr().out


# --- before a training --------------------------------------------------------------------------------------------------


def test_a_training_is_warned_in_one_line_for_each_kind(tmp_path):
    few, side = tmp_path / "few", tmp_path / "side"
    for root in (few, side):
        root.mkdir()
    for i in range(3):
        scene(50 + i).save(few / f"{i}.png")
        scene(50 + i).save(few / f"{i}.jpg", quality=60)
        scene(60 + i).save(side / f"{i}.png")
    ImageOps.mirror(scene(51)).save(side / "mirrored.png")
    scene(70, 200, 30).save(side / "wide.png")
    module = ImageDataModule(str(few), list(SIZE), side_root=str(side))
    module.setup()
    with pytest.warns(UserWarning) as caught:
        module.check_images()
    lines = sorted(str(warning.message) for warning in caught)
    assert [line.split(":")[0] for line in lines] == ["cropped", "near-duplicate"]
    assert "wide.png" in lines[0] and all(f"image/{i}.jpg = image/{i}.png" in lines[1] for i in range(3))
    assert "mirrored.png (nearly the same image, mirrored)" in lines[1]


def test_equal_files_in_one_set_are_told_though_a_third_lies_in_another(tmp_path):
    few, side = tmp_path / "few", tmp_path / "side"
    for root in (few, side):
        root.mkdir()
    for i, path in enumerate([few / "a.png", few / "b.png", side / "c.png", side / "d.png", side / "e.png"]):
        scene(54 if i < 3 else 60 + i).save(path)
    module = ImageDataModule(str(few), list(SIZE), side_root=str(side))
    with pytest.warns(UserWarning, match="the same file is in the sets image and side_heldout"):
        module.setup()
    with pytest.warns(UserWarning) as caught:
        module.check_images()
    assert [str(warning.message) for warning in caught] == ["duplicate: image/a.png = image/b.png (the same file)"]


def test_starter_images_are_trained_on_without_a_word(recwarn):
    modules = [
        ImageDataModule(str(STARTER / "landscapes"), [72, 96], side_root=str(STARTER / "side")),
        ImageDataModule(str(STARTER / "landscapes"), [24, 32], tile="grid"),
        ImageDataModule(str(STARTER / "faces"), [32, 32]),
        ImageDataModule(str(STARTER / "faces"), [32, 32], max_memory_gib=0),
    ]
    for module in modules:
        module.setup()
        module.check_images()
    assert not recwarn.list


@pytest.mark.parametrize("gib", [1.0, 0.0])
def test_a_picture_that_would_be_blur_stops_the_training(gib, tmp_path):
    scene(80).save(tmp_path / "good.png")
    scene(81, 7, 5).save(tmp_path / "tiny.png")
    module = ImageDataModule(str(tmp_path), list(SIZE), max_memory_gib=gib)
    with pytest.warns(UserWarning, match="enlarged: tiny.png"):
        module.setup()
    with pytest.raises(ValueError, match=r"too small: image/tiny.png \(enlarged 4.8 times"):
        module.check_images()


def test_a_thousand_images_take_seconds_and_their_copies_are_found(tmp_path):
    """CPU time, since other processes may run; about 2 s on one core of 2020."""
    chance = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (1000, 6, 8, 3), generator=chance, dtype=torch.uint8)
    for i, pixels in enumerate(base):
        picture = Image.frombytes("RGB", (8, 6), bytes(pixels.flatten().tolist())).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i:04d}.jpg", quality=90)
        if i in (3, 500):
            picture.save(tmp_path / f"{i + 400:04d}_again.jpg", quality=50)
    start = time.process_time()
    report = examine({"image": str(tmp_path)}, [64, 64])
    seconds = time.process_time() - start
    copies = {files for kind, _, files in found(report) if kind == "near-duplicate"}
    assert copies == {("image/0003.jpg", "image/0403_again.jpg"), ("image/0500.jpg", "image/0900_again.jpg")}
    assert seconds < 15
    module = ImageDataModule(str(tmp_path), [64, 64])
    module.setup()
    start = time.process_time()
    assert quick_check(module.sets()) == []  # beyond a thousand, only what costs nothing
    assert time.process_time() - start < 1


def test_long_lists_are_shortened_in_one_line():
    findings = [Finding("warning", "blank", (f"image/{i}.png",), "one color all over") for i in range(40)]
    (line,) = summarize(findings)
    assert line.startswith("blank: image/0.png (one color all over)") and line.endswith("and 35 more")


def test_a_checkpoint_says_what_it_was_trained_on():
    module = ImageDataModule(str(STARTER / "landscapes"), [24, 32], side_root=str(STARTER / "side"))
    module.setup()
    checkpoint: dict = {}
    manifest = RunManifest({"run_name": "toy", "run_dir": "toy", "resume": None})
    manifest.on_save_checkpoint(SimpleNamespace(datamodule=module), None, checkpoint)
    report = examine({"image": str(STARTER / "landscapes")}, [24, 32])
    assert {key: data["count"] for key, data in checkpoint["data"].items()} == {"image": 5, "side": 43, "side_heldout": 5}
    assert {key: data["fingerprint"] for key, data in checkpoint["data"].items()} == module.fingerprints()
    assert checkpoint["data"]["image"]["fingerprint"] == report["sets"]["image"]["fingerprint"]
