"""Pictures of LatentPatch, or of VQGAN and its transformer, in the documentation: rows of images that the tasks make.

    python -m tests.benchmarks.latent_pictures CHECKPOINT [FILE]

CHECKPOINT is of the default run of configs/latentpatch.yaml or configs/vqgan_transformer.yaml, FILE docs/latentpatch.jpg or
docs/vqgan.jpg. Images that are changed or completed are held-out faces.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

import evaluate
from experiment.checkpoint import read_checkpoint
from tests.benchmarks.latentpatch_table import ROOT, faces

SIDE, COLUMNS, TEXT = 66, 12, 14
HOLE, LOWER, EYES = (20, 20, 44, 44), (0, 32, 64, 64), (12, 24, 52, 52)
Row = tuple[str, list[Image.Image]]


class Pictures:
    """Runs tasks with a checkpoint, in a temporary folder."""

    def __init__(self, checkpoint: str, folder: Path) -> None:
        self.checkpoint, self.folder, self.runs = checkpoint, folder, 0
        self.faces = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in faces("faces64_heldout")[:COLUMNS]]
        for number, image in enumerate(self.faces):
            image.save(self.face(number))

    def face(self, number: int) -> Path:
        return self.folder / f"face{number}.png"

    def mask(self, box: tuple[int, int, int, int]) -> str:
        path = self.folder / f"mask{'-'.join(map(str, box))}.png"
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save(path)
        return f"task.mask={path}"

    def __call__(self, task: str, prefix: str, *keys: str) -> list[Image.Image]:
        """Images that a task makes whose names begin with `prefix`."""
        self.runs += 1
        out = self.folder / str(self.runs)
        if evaluate.main([self.checkpoint, f"configs/tasks/{task}.yaml", *keys, f"out={out}", "trainer.accelerator=cpu"]):
            raise SystemExit(1)
        return [Image.open(file).convert("RGB") for file in sorted(out.glob(f"{prefix}*.png"))]

    def generated(self, *options: str, prefix: str = "sample") -> list[Image.Image]:
        return self("generate", prefix, f"task.num_images={COLUMNS}", *(f"task.options.{option}" for option in options))

    def changed(self, task: str, prefix: str, number: int, *keys: str) -> list[Image.Image]:
        return self(task, prefix, f"task.image={self.face(number)}", *keys)

    def completed(self, box: tuple[int, int, int, int], *keys: str) -> list[Image.Image]:
        """Three faces with a hole, and three fills of each."""
        images = []
        for number in (0, 5, 9):
            holed = self.faces[number].copy()
            holed.paste("white", box)
            images += [holed, *self.changed("inpaint", "02", number, self.mask(box), "task.num_images=3", *keys)]
        return images


def of_latentpatch(pictures: Pictures) -> Iterator[Row]:
    yield "default", pictures.generated()
    yield "source of each code", pictures.generated(prefix="sources_")
    for preset in ("paper", "table1", "reference", "random_4x4", "random_1x1"):
        yield f"preset {preset}", pictures.generated(f"preset={preset}")
    for where in ("male=0 & blond=1", "eyeglasses=1"):
        yield where, pictures.generated(f"where={where}")
    yield "rho=1", pictures.generated("rho=1")
    strengths = [f"task.options.strength={strength}" for strength in (1, 0.5, 0)]
    changed = [[pictures.changed("conditional", "01", number, key)[0] for key in strengths] for number in (0, 5, 9)]
    yield "image, then strength 1, 0.5, 0", sum(([pictures.faces[n], *c] for n, c in zip((0, 5, 9), changed, strict=True)), [])
    edits = []
    for number, donor in ((0, 1), (5, 7), (9, 11)):
        keys = pictures.mask(EYES), f"task.options.donor={pictures.face(donor)}", "task.options.heal=true"
        edits += [pictures.faces[number], pictures.faces[donor], *pictures.changed("edit", "0[23]", number, *keys)]
    yield "image, donor of eyes and mouth, decoded, blended", edits
    yield "hole, three fills", pictures.completed(HOLE)


def of_transformer(pictures: Pictures) -> Iterator[Row]:
    from cli.evaluation import rebuild
    from modules.ops.images import from_uint8, to_uint8

    module = rebuild(Path(pictures.checkpoint), read_checkpoint(Path(pictures.checkpoint)))
    images = to_uint8(module.reconstruct(from_uint8(faces("faces64_heldout")[:COLUMNS])))
    yield "held-out faces", pictures.faces
    yield "reconstructions", [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images]
    yield "samples", pictures.generated()
    yield "lower half, three completions", pictures.completed(LOWER)
    yield "hole, three fills", pictures.completed(HOLE, "task.options.candidates=4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("file", nargs="?", type=Path)
    arguments = parser.parse_args()
    transformer = read_checkpoint(Path(arguments.checkpoint))["class_path"].endswith("VQGANTransformer")
    make, name = (of_transformer, "vqgan") if transformer else (of_latentpatch, "latentpatch")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(make(Pictures(arguments.checkpoint, Path(folder))))
    canvas = Image.new("RGB", (COLUMNS * SIDE + 2, len(rows) * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (text, images) in enumerate(rows):
        top = number * (SIDE + TEXT)
        draw.text((3, top + 1), text, fill="black")
        for column, image in enumerate(images[:COLUMNS]):
            canvas.paste(image, (2 + SIDE * column, top + TEXT))
    canvas.save(arguments.file or ROOT / f"docs/{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
