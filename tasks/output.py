"""Images of a task as files; frames also as an animated GIF and an MP4 video."""

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from core.files import atomic_folder
from modules.ops.images import to_uint8

ENDINGS = (".png", ".npz", ".gif", ".mp4")  # what a task may delete


def write_results(
    folder: Path, name: str, settings: Mapping[str, Any], images: Mapping[str, Tensor], frames_per_second: float | None = None
) -> str:
    """`write_images` into `folder`, all or none, and a JSON file with `settings` and the names of the files; those that an
    earlier one lists are deleted. Returns a description of the files."""
    manifest, outdated = folder / f"{name}.json", []
    with suppress(OSError, ValueError, KeyError, TypeError):
        names = map(str, json.loads(manifest.read_text(encoding="utf-8"))["files"])
        outdated = [name for name in names if Path(name).name == name and name.endswith(ENDINGS)]
    with atomic_folder(folder, outdated) as draft:
        description = write_images(draft, images, frames_per_second)
        content = {**settings, "files": sorted(file.name for file in draft.iterdir())}
        (draft / manifest.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return description


def write_images(folder: Path, images: Mapping[str, Tensor], frames_per_second: float | None = None) -> str:
    """Writes images [3, H, W] in [-1, 1] as PNG files, integers of any shape as NumPy files, and with `frames_per_second` the
    images also as `animation.gif` and `film.mp4`. Returns a description, which says why where no video can be written."""
    frames, files = [], []
    for name, values in images.items():
        if values.is_floating_point():
            frames.append(to_uint8(values).permute(1, 2, 0).cpu().numpy())
            files.append(f"{name}.png")
            Image.fromarray(frames[-1]).save(folder / files[-1])
        else:
            files.append(f"{name}.npz")
            np.savez_compressed(folder / files[-1], **{name: values.cpu().numpy()})
    if frames_per_second is None:
        return ", ".join(files)
    first, *others = map(Image.fromarray, frames)
    duration = round(1000 / frames_per_second)  # in ms, of a clock that counts hundredths of a second
    first.save(folder / "animation.gif", save_all=True, append_images=others, duration=duration, loop=0)
    film = folder / "film.mp4"
    try:
        write_film(film, frames, frames_per_second)
    except Exception as error:  # each broken installation of PyAV, or one without the codec, fails in its own way
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        film.unlink(missing_ok=True)
        return f"animation.gif, {len(frames)} frames; no {film.name}: {type(error).__name__}: {error}"
    return f"animation.gif, {film.name}, {len(frames)} frames"


def write_film(file: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    """Frames [H, W, 3] as an MP4 that all browsers and players support: H.264 in yuv420p, which requires even sides, so the
    last row or column of an odd one is repeated."""
    import av  # here, because a GIF needs none of it

    height, width = frames[0].shape[:2]
    with av.open(str(file), "w", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"crf": "12"}  # high quality, because small images are viewed enlarged; their files are small anyway
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            film.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        film.mux(stream.encode())
