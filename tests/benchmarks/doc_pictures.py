"""Pictures of the samples of patch methods, adaptations and GANs, or of all tasks, in the documentation: a row for each.

    python -m tests.benchmarks.doc_pictures methods|adaptations|gans|tasks RUNS [FILE]

RUNS holds the default runs: RUNS/singan is made by `python train.py configs/singan.yaml run_dir=RUNS/singan`. FILE is
docs/methods.jpg and so on unless given. A row whose run is missing is left out and named.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import evaluate

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "datamodules/starter/landscapes/000.jpg"  # that the default runs of one photograph learn
HEIGHT, WIDTH, TEXT, GAP = 108, 1290, 18, 3
Row = tuple[str, str, str, list[str]]  # title, method, task, keys

FIVE, ELEVEN = ["task.num_images=5"], ["task.num_images=11"]
ADAPTED = ("TGAN", "FreezeD", "BSA", "MineGAN", "EWC", "CDC", "DCL", "FSGAN")
HEADS = ("SNGAN", "DISP SNGAN", "FastGAN", "SSGAN")
METHODS: list[Row] = [
    ("SinGAN (one photograph)", "singan", "generate", FIVE),
    ("ConSinGAN (one photograph)", "consingan", "generate", FIVE),
    ("Concat-SinGAN (five photographs)", "concat_singan", "generate", FIVE),
    ("HP-VAE-GAN (five photographs)", "hpvaegan", "generate", FIVE),
    ("GPNN (five photographs, no training)", "gpnn", "generate", FIVE),
    ("GPDM (one photograph, no training)", "gpdm", "generate", FIVE),
]
ADAPTATIONS: list[Row] = [
    ("StyleGAN2 (drawn faces); its adaptations below have the same latents", "stylegan2", "generate", ELEVEN),
    *((f"{name} (ten sketches)", name.lower(), "generate", ELEVEN) for name in ADAPTED),
]
GANS: list[Row] = [
    *((f"{name} (a hundred pictures of heads)", name.lower().replace(" ", "_"), "generate", ELEVEN) for name in HEADS),
    *((f"{name} (drawn faces)", name.lower(), "generate", ELEVEN) for name in ("SelfCondGAN", "BigGAN")),
]
SAMPLES = {"methods": METHODS, "adaptations": ADAPTATIONS, "gans": GANS}


def tasks(folder: Path) -> list[Row]:
    """All tasks, of inputs that are drawn into the folder."""
    photo = Image.open(PHOTO).convert("RGB").resize((192, 144))
    box, blank = (70, 90, 100, 120), Image.new("L", photo.size)
    mask, pasted, moved = blank.copy(), photo.copy(), photo.copy()
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    ImageDraw.Draw(pasted).ellipse(box, fill=(240, 130, 40))
    moved.paste(photo.crop((120, 20, 150, 50)), box[:2])
    drawing = Image.new("RGB", photo.size, (70, 115, 180))
    shapes = ImageDraw.Draw(drawing)
    shapes.polygon([(0, 90), (45, 30), (90, 80), (130, 45), (192, 100), (192, 144), (0, 144)], fill=(110, 105, 105))
    shapes.polygon([(0, 85), (192, 105), (192, 144), (0, 144)], fill=(95, 85, 35))
    shapes.ellipse((110, 8, 172, 30), fill=(235, 240, 240))
    images = {"photo": photo, "mask": mask, "pasted": pasted, "moved": moved, "drawing": drawing}
    for name, image in {**images, "small": photo.resize((96, 72))}.items():
        image.save(folder / f"{name}.png")
    names = ("photo", "moved", "pasted", "drawing", "small")
    image, moved, pasted, drawing, small = (f"task.image={folder}/{name}.png" for name in names)
    other, mask = f"task.image={PHOTO.with_name('003.jpg')}", f"task.mask={folder}/mask.png"
    return [
        ("generate (SinGAN, any size)", "singan", "generate", ["task.num_images=4", "task.size=[72,144]"]),
        ("generate (SinGAN, start scale 1)", "singan", "generate", ["task.num_images=5", "task.options.start_scale=1"]),
        ("conditional (FewGAN): image, result", "fewgan", "conditional", [other]),
        ("edit (SinGAN): a moved part, mask, result", "singan", "edit", [moved, mask, "task.scale=1"]),
        ("harmonize (SinGAN): a pasted object, mask, result", "singan", "harmonize", [pasted, mask, "task.scale=2"]),
        ("paint (SinGAN): drawing, in the colors of the photograph, result", "singan", "paint",
         [drawing, "task.colors=5", f"task.reference={folder}/photo.png"]),
        ("retarget (GPNN): image, stretched, retargeted", "gpnn", "retarget", [image, "task.size=[72,192]"]),
        ("inpaint (GPNN): image, hole, three fills", "gpnn", "inpaint", [image, mask]),
        ("superresolve (SinGAN): image, bicubic, result", "singan", "superresolve", [small, "task.factor=2"]),
        ("animate (SinGAN)", "singan", "animate", ["task.num_frames=5"]),
        ("interpolate (HP-VAE-GAN)", "hpvaegan", "interpolate", ["task.num_points=2", "task.num_frames=5", "task.loop=false"]),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=(*SAMPLES, "tasks"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("file", nargs="?", type=Path)
    arguments = parser.parse_args()
    rows: list[tuple[str, list[Image.Image]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for title, method, task, keys in SAMPLES.get(arguments.picture) or tasks(folder):
            checkpoint, out = arguments.runs / method / "checkpoints/last.ckpt", folder / f"row{len(rows)}"
            if not checkpoint.is_file():
                print(f"left out: {title}, there is no {checkpoint}")
            elif evaluate.main([str(checkpoint), f"configs/tasks/{task}.yaml", *keys, f"out={out}", "trainer.accelerator=cpu"]):
                raise SystemExit(1)
            else:
                files = [file for file in sorted(out.glob("*.png")) if file.stem not in ("sources", "02_unmasked")]
                rows.append((title, [Image.open(file).convert("RGB") for file in files]))
    if not rows:
        raise SystemExit(f"{arguments.runs} holds none of these runs")
    canvas = Image.new("RGB", (WIDTH, len(rows) * (HEIGHT + TEXT + GAP)), "white")
    for number, (title, images) in enumerate(rows):
        top, left = number * (HEIGHT + TEXT + GAP), 0
        ImageDraw.Draw(canvas).text((2, top + 3), title, fill="black")
        for image in images:
            image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.BICUBIC)
            canvas.paste(image, (left, top + TEXT))
            left += image.width + GAP
    canvas.save(arguments.file or ROOT / f"docs/{arguments.picture}.jpg", quality=88)


if __name__ == "__main__":
    main()
