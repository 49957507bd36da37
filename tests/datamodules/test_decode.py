"""Pixels are checked against values written down here, files are written by Pillow or byte by byte."""

import struct
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from datamodules.decode import decode, probe, to_rgb
from datamodules.findings import ImageFinding, findings_of

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def pixels_of(path: Path, size: tuple[int, int]) -> list[list[tuple[int, int, int]]]:
    """Rows of RGB triples as `decode` gives them."""
    pixels, _ = decode(path.read_bytes(), path, size)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, *size)
    return [[tuple(pixel) for pixel in row] for row in pixels.permute(1, 2, 0).tolist()]


def png(width: int, height: int, depth: int, kind: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of color type `kind` built by hand: depths that Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*part) for part in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 255], [BLACK, WHITE]),
        ("L", [0, 77], [BLACK, (77, 77, 77)]),
        ("LA", [(0, 255), (0, 51)], [BLACK, (204, 204, 204)]),  # 0.8 white, 0.2 black
        ("RGB", [RED, (1, 2, 3)], [RED, (1, 2, 3)]),
        ("RGBA", [(*RED, 255), (*RED, 0)], [RED, WHITE]),
        ("RGBA", [(0, 0, 0, 51), (0, 100, 200, 255)], [(204, 204, 204), (0, 100, 200)]),
        ("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255)], [RED, BLACK]),
        ("I;16", [65535, 25700], [WHITE, (100, 100, 100)]),  # 25700 = 100 · 257
        ("I;16B", [0, 1000], [BLACK, (4, 4, 4)]),  # 1000 / 257 = 3.89
        ("I", [65535, 0], [WHITE, BLACK]),
        ("F", [1.0, 0.4], [WHITE, (102, 102, 102)]),
        ("YCbCr", [(255, 128, 128), (0, 128, 128)], [WHITE, BLACK]),
        ("HSV", [(0, 255, 255), (0, 0, 255)], [RED, WHITE]),
    ],
)
def test_every_mode_becomes_known_rgb(mode: str, values: list, expected: list) -> None:
    image = Image.new(mode, (2, 1))
    for column, value in enumerate(values):
        image.putpixel((column, 0), value)
    result = to_rgb(image)
    assert result.mode == "RGB" and [result.getpixel((column, 0)) for column in (0, 1)] == expected


def test_palette_with_transparent_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixels_of(tmp_path / "opaque.png", (1, 2)) == [[RED, (0, 0, 255)]]
    assert pixels_of(tmp_path / "clear.png", (1, 2)) == [[RED, WHITE]]


def test_sixteen_bit_files(tmp_path: Path) -> None:
    gray, color, keyed = tmp_path / "gray.png", tmp_path / "color.png", tmp_path / "keyed.png"
    gray.write_bytes(png(2, 1, 16, 0, [struct.pack(">HH", 65535, 25700)]))
    color.write_bytes(png(1, 1, 16, 2, [struct.pack(">HHH", 65535, 0, 0x8080)]))
    keyed.write_bytes(png(2, 1, 16, 0, [struct.pack(">HH", 65535, 25700)], (b"tRNS", struct.pack(">H", 300))))
    assert pixels_of(gray, (1, 2)) == [[WHITE, (100, 100, 100)]]
    assert pixels_of(color, (1, 1)) == [[(255, 0, 128)]]
    assert pixels_of(keyed, (1, 2)) == [[WHITE, (100, 100, 100)]]


def test_orientation_of_a_camera_is_applied(tmp_path: Path) -> None:
    # Stored 2 wide, 1 high; orientation 6 means: turn by 90° clockwise to see it, so left becomes top.
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert pixels_of(tmp_path / "turned.png", (2, 1)) == [[RED], [(0, 0, 255)]]
    assert probe(tmp_path / "turned.png", (2, 1)).enlargement == 1  # unturned it would be 2: one row enlarged to two


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((3, 5), 90).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert pixels_of(path, expected.size[::-1]) == [
        [expected.getpixel((x, y)) for x in range(expected.width)] for y in range(expected.height)
    ]


def invalid_exif(*entries: tuple[int, int, bytes]) -> bytes:
    """An EXIF block of these tags, types and values of four bytes."""
    rows = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


TURN = (0x0112, 3, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (invalid_exif((0x0100, 9, struct.pack("<i", -5)), TURN), True),  # a negative width in an unsigned field
        (invalid_exif((0x0111, 9, struct.pack("<i", -1)), TURN), True),
        (invalid_exif((0x0112, 3, struct.pack("<HH", 77, 0))), False),  # no such orientation
        (invalid_exif(TURN)[:-14], False),  # cut off within its only entry
        (b"Exif\0\0XX*\0nothing", False),
    ],
)
def test_invalid_metadata_do_not_refuse_pixels(tmp_path: Path, exif: bytes, turned: bool) -> None:
    path = tmp_path / "camera.jpg"
    Image.linear_gradient("L").resize((8, 16)).save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about the block
        pixels, treatment = decode(path.read_bytes(), path, (8, 16) if turned else (16, 8))
    assert treatment.enlargement == 1 and treatment.steps[:1] == (("rotated",) if turned else ("metadata",))
    assert "metadata" in treatment.steps
    assert pixels.float().mean(1 if turned else 2)[0].diff().abs().min() > 0


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("eight.png", (0, 255), (0, 255)),
        ("twelve.png", (16, 4095), (16, 4095)),
        ("sixteen.png", (0, 65535), (0, 65535)),
        ("color.png", (0, 4095), (0, 15 * 257 + 255)),  # Pillow has cut the lower byte
    ],
)
def test_the_range_of_16_bit_values(tmp_path: Path, name: str, values: tuple[int, int], expected: tuple) -> None:
    kind, channels = (2, 3) if name == "color.png" else (0, 1)
    row = b"".join(struct.pack(">H", value) * channels for value in values)
    (tmp_path / name).write_bytes(png(2, 1, 16, kind, [row]))
    treatment = decode((tmp_path / name).read_bytes(), tmp_path / name, (1, 2))[1]
    assert treatment.value_range == expected
    findings = findings_of([ImageFinding(f"image/{name}", "", treatment)])
    nearly_black = [finding.text for finding in findings if finding.kind == "bit depth"]
    assert [f"{expected[0]} to {expected[1]} of 65535" in text for text in nearly_black] == [True] * (expected[1] < 8191)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 255, 0))]
    for ending in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"animated.{ending}"
        options = {"lossless": True} if ending == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert pixels_of(path, (4, 4)) == [[RED] * 4] * 4, ending


def test_same_size_keeps_exact_values(tmp_path: Path) -> None:
    values = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.frombytes("RGB", (7, 5), bytes(values.flatten().tolist())).save(tmp_path / "noise.png")
    pixels, treatment = decode((tmp_path / "noise.png").read_bytes(), tmp_path / "noise.png", (5, 7))
    assert torch.equal(pixels, values.permute(2, 0, 1)) and treatment.enlargement == 1


@pytest.mark.parametrize(("size", "columns"), [((4, 4), slice(4, 8)), ((4, 8), slice(2, 10)), ((4, 12), slice(0, 12))])
def test_center_crop_to_the_aspect(tmp_path: Path, size: tuple[int, int], columns: slice) -> None:
    image = Image.new("RGB", (12, 4))
    for column in range(12):
        image.paste((column * 20, 0, 0), (column, 0, column + 1, 4))
    image.save(tmp_path / "ramp.png")
    assert pixels_of(tmp_path / "ramp.png", size)[0] == [(column * 20, 0, 0) for column in range(12)[columns]]


def test_shrinking_is_antialiased_and_keeps_the_mean(tmp_path: Path) -> None:
    board = torch.zeros(64, 64, dtype=torch.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255  # the finest chequerboard; point sampling would give all black or white
    Image.frombytes("L", (64, 64), bytes(board.flatten().tolist())).save(tmp_path / "board.png")
    pixels, treatment = decode((tmp_path / "board.png").read_bytes(), tmp_path / "board.png", (8, 8))
    assert (pixels[:, 1:-1, 1:-1].float() - 127.5).abs().max() <= 2 and treatment.enlargement == 8 / 64


def test_enlargement_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (10, 6)).save(tmp_path / "small.png")
    for size, factor in (((12, 20), 2.0), ((12, 12), 2.0), ((3, 5), 0.5), ((5, 1000), 100.0)):
        treatment = decode((tmp_path / "small.png").read_bytes(), tmp_path / "small.png", size)[1]
        assert treatment.enlargement == pytest.approx(factor) and probe(tmp_path / "small.png", size) == treatment


def broken_files(folder: Path) -> dict[str, bytes]:
    Image.effect_noise((40, 40), 50).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    large = png(20_000, 20_000, 1, 0, [])
    return {
        "empty.png": b"",
        "text.jpg": b"hello",
        "cut.png": whole[: len(whole) // 2],
        "large.png": large,
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "empty or in none of the formats"),
        ("text.jpg", "empty or in none of the formats"),
        ("postscript.png", "empty or in none of the formats"),
        ("cut.png", "truncated"),
        ("large.png", "limit is 89 million pixels"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(broken_files(tmp_path)[name])
    with pytest.raises(ValueError, match=reason) as error:
        decode(path.read_bytes(), path, (8, 8))
    assert str(path) in str(error.value) and "BytesIO" not in str(error.value)
    if name != "cut.png":  # its header is whole
        with pytest.raises(ValueError, match=reason):
            probe(path, (8, 8))


def test_a_bomb_between_warning_and_error_of_pillow_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(10_000, 10_000, 1, 0, []))  # 100 million: Pillow by itself only warns up to twice 89 million
    with pytest.raises(ValueError, match="too large to be opened safely"):
        decode(path.read_bytes(), path, (8, 8))


@pytest.mark.parametrize(("mode", "value"), [("I", 70_000), ("I", -1), ("F", 1.5), ("F", float("nan"))])
def test_gray_values_without_a_known_white_are_refused(mode: str, value: float) -> None:
    with pytest.raises(ValueError, match="gray values"):
        to_rgb(Image.new(mode, (2, 2), value))
