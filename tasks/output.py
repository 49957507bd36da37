"""A task's pictures on their way to files; frames also as an animation and as a film."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from modules.ops.images import to_uint8


def write_pictures(folder: Path, images: Mapping[str, Tensor], frames_per_second: float | None = None) -> str:
    """Writes images [3, H, W] in [-1, 1] as `folder`/NAME.png and says what it wrote.

    Integers of any shape are no picture: NumPy reads them as `load("NAME.npz")["NAME"]`.
    With `frames_per_second` they are frames, and become `animation.gif` and `film.mp4`, too; where no film can be written,
    the answer says why.
    """
    pictures = {name: image for name, image in images.items() if image.is_floating_point()}
    pixels = {name: to_uint8(image).permute(1, 2, 0).cpu().numpy() for name, image in pictures.items()}
    numbers = {name: values.cpu().numpy() for name, values in images.items() if name not in pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pixels.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    for name, array in numbers.items():
        np.savez_compressed(folder / f"{name}.npz", **{name: array})
    if frames_per_second is None:
        return ", ".join(f"{name}.{'png' if name in pixels else 'npz'}" for name in images)
    frames = list(pixels.values())
    write_gif(folder / "animation.gif", frames, frames_per_second)
    film = folder / "film.mp4"
    try:
        write_film(film, frames, frames_per_second)
    except Exception as error:  # a broken installation, or one without the codec, fails in its own way; the GIF is there
        film.unlink(missing_ok=True)
        return f"animation.gif, {len(frames)} frames; no {film.name}: {type(error).__name__}: {error}"
    return f"animation.gif, {film.name}, {len(frames)} frames"


def write_gif(file: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    """Frames [H, W, 3] as a GIF that plays for ever; its clock counts hundredths of a second."""
    first, *others = map(Image.fromarray, frames)
    first.save(file, save_all=True, append_images=others, duration=round(1000 / frames_per_second), loop=0)


def write_film(file: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    """Frames [H, W, 3] as an MP4 that browsers and players know: H.264 with half the colour resolution (yuv420p).

    That format has even sides only: an odd one is made even by its last row or column once more. Raises whatever PyAV does
    where it is missing, broken or without an encoder of H.264.
    """
    import av  # here, because a GIF needs none of it

    height, width = frames[0].shape[:2]
    with av.open(str(file), "w", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"crf": "12"}  # small pictures are looked at enlarged, and cost little
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            film.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        film.mux(stream.encode())
