"""DISP's tables in miniature: what transfer, augmentation and the data-instance prior change, some seeds each.

    python -m tests.benchmarks.few_shot_gans DATA [--table few_shot|limited] [--judges FILE FILE] [--seeds 3] [--jobs 2]
        [--limit N] [--runs runs/few_shot] [--out docs] [key=value …]

DATA is a folder with `adventurer-100shot`, `deepsky-100shot`, their `-heldout` and `emoji32-labelled`. `few_shot`: SNGAN from
scratch, TransferGAN, FreezeD, ADA and DiffAugment, each without and with DISP; the source of the transfer is an SNGAN of the
starter faces, which is trained first. `limited`: BigGAN on 10, 20 and 100 % of the labelled emoji (the labels unused), without
and with DISP, DiffAugment and both.

Judges are trunks of ST-LPIPS (AlexNet, VGG-16) by the files of stlpips-pytorch, pooled last layers, each scaled to unit root
mean square on the held-out images; without files a random network, which proves little. The network of the prior judges
nothing. Each training is a run folder of its own and goes on where it was stopped; a finished row is not made again: the
same line does what is missing, whole rounds of all settings before the next seed, each training in a process with one thread.
`--limit` makes so many rows at most. Further words go to train.py. Writes `TABLE_gans.json` and `TABLE_gans.md`.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from core.files import atomic_write
from core.nodes import find_class
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from experiment.checkpoint import read_checkpoint
from metrics.backbones.random_cnn import RandomCNN
from metrics.kernel import kernel_distance
from metrics.manifold import manifold_scores
from metrics.nearest_psnr import exact_distances, nearest_psnr
from metrics.perceptual_distance import load_perceptual
from modules.base import sampling_mode
from modules.ops.images import resize, to_uint8
from tests.benchmarks.fewgan_table import ROOT, call

SIDE, SAMPLES, HELDOUT = 32, 300, 300
SETTINGS = {
    "scratch": [],
    "TransferGAN": ["module.source_checkpoint={source}"],
    "FreezeD": ["module.source_checkpoint={source}", "module.freeze_blocks=2"],
    "ADA": ["module.augment=ada", "module.ada_kimg=20"],  # so that p can rise within 30 thousand images
    "DiffAugment": ["module.augment=diffaugment"],
}
SHARES = (10, 20, 100)  # percent of the labelled emoji
MEASURING = Lock()
JUDGED = ("kd", "precision", "recall", "novelty")


class Trial(NamedTuple):
    images: str
    setting: str
    prior: bool
    seed: int

    @property
    def label(self) -> str:
        return f"{self.images}_{self.setting}{'_disp' * self.prior}_{self.seed}"


def trials(table: str, seeds: int) -> Iterator[Trial]:
    """Whole rounds, with and without the prior next to each other."""
    if table == "few_shot":
        rows = [(name, setting) for name in ("adventurer", "deepsky") for setting in SETTINGS]
    else:
        rows = [(f"emoji{share}", setting) for share in SHARES for setting in ("scratch", "DiffAugment")]
    yield from (Trial(*row, prior, seed) for seed in range(seeds) for row in rows for prior in (False, True))


def folders(trial: Trial, data: Path, runs: Path) -> tuple[Path, Path]:
    """Training and held-out images."""
    if trial.images.startswith("emoji"):
        return emoji(data / "emoji32-labelled", runs / "data", int(trial.images.removeprefix("emoji")))
    return data / f"{trial.images}-100shot", data / f"{trial.images}-heldout"


@cache
def emoji(sheets: Path, out: Path, share: int) -> tuple[Path, Path]:
    """Folders with every n-th training tile, and with the test tiles, cut from the sheets once."""
    train, test = out / f"emoji_{share}", out / "emoji_heldout"
    for folder, split, step in ((train, "train", 100 // share), (test, "test", 1)):
        if folder.exists():
            continue
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        tiles = []
        for table in sorted(sheets.glob("*.csv")):
            sheet = Image.open(table.with_suffix(".png")).convert("RGB")
            rows = [row for row in csv.DictReader(table.open(encoding="utf-8")) if row["split"] == split]
            tiles += [(sheet, *divmod(int(row["index"]), 25)) for row in rows]
        for number, (sheet, row, column) in enumerate(tiles[::step]):
            sheet.crop((32 * column, 32 * row, 32 * column + 32, 32 * row + 32)).save(part / f"{number:05d}.png")
        part.rename(folder)
    return train, test


def words_of(trial: Trial, root: Path, run: Path, source: Path) -> list[str]:
    """The words of train.py."""
    name = "biggan" if trial.images.startswith("emoji") else "sngan"
    words = [f"configs/{'disp_' if trial.prior else ''}{name}.yaml", f"datamodule.root={root}", "datamodule.heldout_root=null"]
    if name == "biggan":
        words += ["datamodule.labels=null", "datamodule.flip=false"]
        words += [f"module.condition.max_images={len(list_images(str(root))[1])}"] if trial.prior else ["module.condition=null"]
    words += [word.format(source=source) for word in SETTINGS[trial.setting]]
    words += [f"run_name={run.name}", f"run_dir={run}", f"seed={trial.seed}", "resume=auto", "logger.wandb=null"]
    return [*words, "callbacks.metrics=null", "callbacks.images=null", "callbacks.progress=null", "trainer.accelerator=cpu"]


# --- judges -------------------------------------------------------------------------------------------------------------


def layers_of(judge: str) -> Callable[[Tensor], list[Tensor]]:
    """Pooled last layers [N, C] of bytes [N, 3, H, W], without the scale."""
    if judge == "rand_cnn":
        network = RandomCNN()
        return lambda images: [network(images)]
    perceptual = load_perceptual(None, judge)

    def layers(images: Tensor) -> list[Tensor]:
        parts = [perceptual.layers(resize(part.float() / 127.5 - 1, (64, 64)).add(1).mul(127.5)) for part in images.split(50)]
        return [torch.cat([part[i][0].mean((2, 3)) for part in parts]) for i in range(2, 5)]

    return layers


@torch.no_grad()
def judged(judge: str, samples: Tensor, training: Tensor, heldout: Tensor) -> dict[str, float]:
    """Kernel distance × 1000 with its split half and that of the training images, manifold scores, and novelty: the median
    distance to the nearest training image, relative to that of held-out images."""
    layers = layers_of(judge)
    sets = [layers(images) for images in (samples, training, heldout)]
    scales = [layer.square().mean().sqrt() for layer in sets[2]]
    fakes, copies, reals = (torch.cat([x / s for x, s in zip(rows, scales, strict=True)], 1) for rows in sets)
    scores = manifold_scores(reals, fakes)
    near = [exact_distances(copies.double(), rows.double()).min(0).values.median() for rows in (fakes, reals)]
    halves = reals[::2], reals[1::2]
    return {
        "kd": 1000 * float(kernel_distance(reals, fakes)),
        "kd_copies": 1000 * float(kernel_distance(reals, copies)),
        "kd_split_half": 1000 * float(kernel_distance(*(half[: len(halves[1])] for half in halves))),
        "precision": float(scores["precision"]),
        "recall": float(scores["recall"]),
        "novelty": float(near[0] / near[1]),
    }


def read(folder: Path, number: int) -> Tensor:
    files = list_images(str(folder))[1][:number]
    images = ImageFolder(folder, files, (SIDE, SIDE))
    return torch.stack([images.bytes_of(position) for position in range(len(files))])


def measured(trial: Trial, data: Path, runs: Path, source: Path, judges: Sequence[str], extra: Sequence[str]) -> dict[str, Any]:
    """The row of one training, which is trained and measured if it has not been."""
    run = runs / trial.label
    row = run / "row.json"
    if not row.is_file():
        root, heldout = folders(trial, data, runs)
        seconds = call("train.py", *words_of(trial, root, run, source), *extra)
        with MEASURING:  # the random state is that of the process
            values = {"trial": trial._asdict(), "words": list(extra), "cpu_minutes": seconds / 60}
            values |= measurement(run / "checkpoints/last.ckpt", root, heldout, judges)
        with atomic_write(row) as file:
            file.write(json.dumps(values, indent=1).encode())
    return json.loads(row.read_text(encoding="utf-8"))


def measurement(file: Path, root: Path, heldout: Path, judges: Sequence[str]) -> dict[str, Any]:
    """What is told about a checkpoint."""
    checkpoint = read_checkpoint(file)
    module = find_class(checkpoint["class_path"], ("modules.",)).from_checkpoint(checkpoint)
    with sampling_mode(module, 0, range(SAMPLES)):
        samples = to_uint8(module.sample(SAMPLES))
    training, reals = read(root, 10_000), read(heldout, HELDOUT)
    folder = ImageFolder(root, list_images(str(root))[1], (SIDE, SIDE))
    return {
        "iterations": module.iteration,
        "prior": getattr(module.condition, "extractor", None),
        "diagnostics": module.diagnostics({"image": folder}),
        "nearest_psnr_max": float(nearest_psnr(samples, training).max()),
        "judges": {Path(judge).stem: judged(judge, samples, training, reals) for judge in judges},
    }


# --- the table ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each setting, means over seeds; then what DISP changes, seed by seed and judge by judge."""
    judges = list(rows[0]["judges"])
    columns = [f"{column} {judge}" for judge in judges for column in JUDGED]
    head = ["set", "method", "DISP", "seeds", *columns, "nearest PSNR, dB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        trial = row["trial"]
        groups.setdefault((trial["images"], trial["setting"], trial["prior"]), []).append(row)
    for (images, setting, prior), own in sorted(groups.items()):
        cells = [f"{mean([r['judges'][j][c] for r in own]):.3g}" for j in judges for c in JUDGED]
        cells.append(f"{mean([r['nearest_psnr_max'] for r in own]):.1f}")
        lines.append(f"| {images} | {setting} | {'yes' if prior else '–'} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n".join(verdicts(rows, judges)) + "\n"


def verdicts(rows: Sequence[dict[str, Any]], judges: Sequence[str]) -> Iterator[str]:
    """DISP helps where all judges agree in sign in at least two of three seeds; else nothing is claimed."""
    found = {tuple(row["trial"].values()): row for row in rows}
    for images, setting in dict.fromkeys((row["trial"]["images"], row["trial"]["setting"]) for row in rows):
        pairs = [
            [found[images, setting, prior, seed]["judges"] for prior in (False, True)]
            for seed in range(100)
            if {(images, setting, False, seed), (images, setting, True, seed)} <= found.keys()
        ]
        better = sum(all(disp[judge]["kd"] < plain[judge]["kd"] for judge in judges) for plain, disp in pairs)
        worse = sum(all(disp[judge]["kd"] > plain[judge]["kd"] for judge in judges) for plain, disp in pairs)
        claim = "helps" if 3 * better >= 2 * len(pairs) and len(pairs) >= 3 else "no claim"
        yield f"- {images}, {setting}: all judges better in {better}, worse in {worse} of {len(pairs)} seeds: {claim}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--table", choices=["few_shot", "limited"], default="few_shot")
    parser.add_argument("--judges", nargs="+", default=["rand_cnn"], metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/few_shot")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments, extra = parser.parse_known_args()
    torch.set_num_threads(1)
    data, runs = arguments.data.resolve(), arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    source = runs / "source/checkpoints/last.ckpt"
    if arguments.table == "few_shot" and not (runs / "source/row.json").is_file():
        words = ["datamodule.root=datamodules/starter/faces64.zip", "datamodule.flip=true", "datamodule.heldout_root=null"]
        words += ["resume=auto", "logger.wandb=null", "callbacks.metrics=null", "trainer.accelerator=cpu"]
        call("train.py", "configs/sngan.yaml", *words, f"run_dir={runs / 'source'}", *extra)
        (runs / "source/row.json").write_text("{}")
    make = partial(measured, data=data, runs=runs, source=source, judges=arguments.judges, extra=extra)
    todo = list(trials(arguments.table, arguments.seeds))[: arguments.limit]
    for trial in todo:
        folders(trial, data, runs)  # cut before processes share them
    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in as_completed([pool.submit(make, trial) for trial in todo]):
            rows.append(future.result())
            ordered = sorted(rows, key=lambda row: [t._asdict() for t in todo].index(row["trial"]))
            for suffix, text in (("json", json.dumps(ordered, indent=1)), ("md", table(ordered))):
                with atomic_write(arguments.out / f"{arguments.table}_gans.{suffix}") as file:
                    file.write(text.encode())
            print(f"{len(rows)} of {len(todo)}: {rows[-1]['trial']}", flush=True)


if __name__ == "__main__":
    main()
