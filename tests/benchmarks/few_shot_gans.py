"""DISP's tables in miniature: what transfer, augmentation and the data-instance prior change, some seeds each.

    python -m tests.benchmarks.few_shot_gans DATA [--table few_shot|limited] [--judges FILE FILE] [--seeds 3] [--jobs 2]
        [--limit N] [--runs runs/few_shot] [--out docs] [key=value …]

DATA is a folder with `adventurer-100shot`, `deepsky-100shot`, their `-heldout` and `emoji32-labelled`. `few_shot`: SNGAN from
scratch, with DiffAugment, ADA, as TransferGAN and as FreezeD, each without and with DISP; the source of the transfer is
`weights/sngan_faces32.pt`. `limited`: BigGAN on 10, 20 and 100 % of the labelled emoji (the labels unused), without and with
DISP, DiffAugment and both.

Judges are files of ST-LPIPS (pooled last three layers) or of EfficientNet-Lite0, each layer scaled to unit root mean square on
the held-out images; without files a random network, which proves little. The network of the prior judges nothing. Each
training is a run folder of its own and continues where it was stopped; a finished row is not made again, another judge only
measures: the same line does what is missing, each training in a process with one thread. `--limit` makes so many rows at
most. Further overrides go to train.py. Writes `TABLE_gans.json` and `TABLE_gans.md`.
"""

import argparse
import csv
import json
import subprocess
import sys
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
from metrics.backbones.backbone import bicubic
from metrics.backbones.random_cnn import RandomCNN
from metrics.kernel import kernel_distance
from metrics.manifold import manifold_scores
from metrics.nearest_psnr import exact_distances, nearest_psnr
from metrics.perceptual_distance import load_perceptual
from modules.base import sampling_mode
from modules.ops.images import to_uint8
from modules.ops.pretrained import Extractor
from modules.ops.weights import read_hashed
from tests.benchmarks.fewgan_table import ROOT, _cell, call

SIDE, SAMPLES, HELDOUT = 32, 300, 300
SETTINGS = {"scratch": None, "DiffAugment": "diffaugment", "ADA": "ada", "TransferGAN": "transfergan", "FreezeD": "freezed"}
SHARES = (10, 20, 100)  # percent of the labelled emoji
BUDGETS = {  # two to three CPU-minutes; ten epochs, as the learning rate falls between epochs
    "sngan": ["module.iterations=750", "datamodule.samples_per_epoch=1200"],
    "biggan": ["module.iterations=500", "datamodule.samples_per_epoch=1600"],
}
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
    """With and without the prior next to each other, whole rounds: of the first set without a source, then with one, …"""
    if table == "few_shot":
        groups = (list(SETTINGS)[:3], list(SETTINGS)[3:])
        rounds = [[(name, setting) for setting in group] for name in ("adventurer", "deepsky") for group in groups]
    else:
        rounds = [[(f"emoji{share}", setting) for share in SHARES for setting in ("scratch", "DiffAugment")]]
    for rows in rounds:
        yield from (Trial(*row, prior, seed) for seed in range(seeds) for row in rows for prior in (False, True))


def folders(trial: Trial, data: Path, runs: Path) -> tuple[Path, Path]:
    """Training and held-out images."""
    if trial.images.startswith("emoji"):
        return emoji(data / "emoji32-labelled", runs / "data", int(trial.images.removeprefix("emoji")))
    return data / f"{trial.images}-100shot", data / f"{trial.images}-heldout"


@cache
def emoji(sheets: Path, out: Path, share: int) -> tuple[Path, Path]:
    """Folders with every n-th training tile, and with test tiles of all classes evenly, cut from the sheets once."""
    train, test = out / f"emoji_{share}", out / f"emoji_heldout_{HELDOUT}"
    for folder, split in ((train, "train"), (test, "test")):
        if folder.exists():
            continue
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        tiles = []
        for table in sorted(sheets.glob("*.csv")):
            sheet = Image.open(table.with_suffix(".png")).convert("RGB")
            rows = [row for row in csv.DictReader(table.open(encoding="utf-8")) if row["split"] == split]
            tiles += [(sheet, *divmod(int(row["index"]), 25)) for row in rows]
        count = min(HELDOUT, len(tiles))  # the sheets are of one class each
        chosen = tiles[:: 100 // share] if split == "train" else [tiles[i * len(tiles) // count] for i in range(count)]
        for number, (sheet, row, column) in enumerate(chosen):
            sheet.crop((32 * column, 32 * row, 32 * column + 32, 32 * row + 32)).save(part / f"{number:05d}.png")
        part.rename(folder)
    return train, test


def overrides_of(trial: Trial, root: Path, run: Path) -> list[str]:
    """The arguments of train.py."""
    name = "biggan" if trial.images.startswith("emoji") else "sngan"
    overrides = [f"configs/{'disp_' if trial.prior else ''}{name}.yaml"]
    overrides += [f"configs/few_shot/{file}.yaml"] if (file := SETTINGS[trial.setting]) else []
    overrides += [f"datamodule.root={root}", "datamodule.heldout_root=null", *BUDGETS[name]]
    if name == "biggan":
        overrides += ["datamodule.labels=null", "datamodule.flip=false"]
        capacity = f"module.condition.max_images={len(list_images(str(root))[1])}"
        overrides += [capacity] if trial.prior else ["module.condition=null"]
    overrides += [f"run_name={run.name}", f"run_dir={run}", f"seed={trial.seed}", "resume=auto", "logger.wandb=null"]
    return [*overrides, "callbacks.metrics=null", "callbacks.images=null", "callbacks.progress=null", "trainer.accelerator=cpu"]


# --- judges -------------------------------------------------------------------------------------------------------------


@cache
def layers_of(judge: str) -> Callable[[Tensor], list[Tensor]]:
    """Pooled layers [N, C] of uint8 [N, 3, H, W], without the scale."""
    if judge == "rand_cnn":
        network = RandomCNN()
        return lambda images: [network(images)]
    state, _ = read_hashed(judge)
    if "_conv_stem.weight" in state:
        network = Extractor("efficientnet_lite0", state, input_size=128)
        return lambda images: [torch.cat([network(part / 127.5 - 1) for part in images.split(4)])]
    perceptual = load_perceptual(None, judge)

    def layers(images: Tensor) -> list[Tensor]:
        parts = [perceptual.layers(bicubic(part.float(), (64, 64))) for part in images.split(4)]
        return [torch.cat([part[i][0].mean((2, 3)) for part in parts]) for i in range(2, 5)]

    return layers


@cache
def layers_of_folder(judge: str, folder: Path, number: int) -> list[Tensor]:
    return layers_of(judge)(read(folder, number))


@torch.no_grad()
def judged(judge: str, samples: Tensor, root: Path, heldout: Path) -> dict[str, float]:
    """Kernel distance × 1000 with its split half and that of the training images, manifold scores, and novelty: the median
    distance to the nearest training image, relative to that of held-out images."""
    sets = [layers_of(judge)(samples), layers_of_folder(judge, root, 10_000), layers_of_folder(judge, heldout, HELDOUT)]
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


def measured(trial: Trial, data: Path, runs: Path, judges: Sequence[str], extra: Sequence[str]) -> dict[str, Any]:
    """The row of one training, which is trained if it has not been, and measured by the judges that have not done so."""
    run, (root, heldout) = runs / trial.label, folders(trial, data, runs)
    file, names = run / "row.json", [Path(judge).stem for judge in judges]
    row = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not row:
        begins, seconds = not run.exists(), call("train.py", *overrides_of(trial, root, run), *extra)
        settings = [*BUDGETS["biggan" if trial.images.startswith("emoji") else "sngan"], *extra]
        row = {"trial": trial._asdict(), "overrides": settings, "cpu_minutes": seconds / 60 if begins else None, "judges": {}}
    if missing := [judge for judge, name in zip(judges, names, strict=True) if name not in row["judges"]]:
        with MEASURING:  # the random state is that of the process
            facts = measurement(run / "checkpoints/last.ckpt", root, heldout, missing)
        row |= facts | {"judges": row["judges"] | facts["judges"]}
        with atomic_write(file) as target:
            target.write(json.dumps(row, indent=1).encode())
    return row | {"judges": {name: row["judges"][name] for name in names}}


def measurement(file: Path, root: Path, heldout: Path, judges: Sequence[str]) -> dict[str, Any]:
    """Diagnostics and scores of a checkpoint."""
    checkpoint = read_checkpoint(file)
    module = find_class(checkpoint["class_path"], ("modules.",)).from_checkpoint(checkpoint)
    with sampling_mode(module, 0, range(SAMPLES)):
        samples = to_uint8(module.sample(SAMPLES))
    folder = ImageFolder(root, list_images(str(root))[1], (SIDE, SIDE))
    return {
        "iterations": module.iteration,
        "prior": getattr(module.condition, "extractor", None),
        "diagnostics": module.diagnostics({"image": folder}),
        "nearest_psnr_max": float(nearest_psnr(samples, read(root, 10_000)).max()),
        "judges": {Path(judge).stem: judged(judge, samples, root, heldout) for judge in judges},
    }


# --- the table ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each setting, means over seeds with their 95 % interval; then what DISP changes, seed by seed and
    judge by judge, and what the distances are worth."""
    judges = list(rows[0]["judges"])
    columns = [f"{column} {judge}" for judge in judges for column in JUDGED]
    head = ["set", "method", "DISP", "seeds", *columns, "nearest PSNR, dB", "match", "spread over priors / z"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        trial = row["trial"]
        groups.setdefault((trial["images"], trial["setting"], trial["prior"]), []).append(row)
    for (images, setting, prior), own in groups.items():
        cells = [_cell([r["judges"][j][c] for r in own], False) for j in judges for c in JUDGED]
        cells.append(_cell([r["nearest_psnr_max"] for r in own], False))
        found = [row["diagnostics"] for row in own if row["diagnostics"]]
        cells.append(_cell([d["prior_match"] for d in found], False))
        cells.append(_cell([d["pixel_spread_over_priors"] / d["pixel_spread_over_z"] for d in found], False))
        lines.append(f"| {images} | {setting} | {'yes' if prior else '–'} | {len(own)} | {' | '.join(cells)} |")
    worth = [
        f"- {images}, {judge}: kd of copies of the training images {values['kd_copies']:.3g}, "
        f"of one half of the held-out images against the other {values['kd_split_half']:.3g}"
        for images, row in {row["trial"]["images"]: row for row in rows}.items()
        for judge, values in row["judges"].items()
    ]
    return "\n\n".join("\n".join(part) for part in (lines, verdicts(rows, judges), worth)) + "\n"


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
        ratios = [
            " ".join([judge, *(f"{disp[judge]['kd'] / plain[judge]['kd']:.2f}" for plain, disp in pairs)]) for judge in judges
        ]
        yield (
            f"- {images}, {setting}: all judges better in {better}, worse in {worse} of {len(pairs)} seeds: {claim}; "
            f"kd with DISP / without, by seed: {', '.join(ratios)}"
        )


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
    make = partial(measured, data=data, runs=runs, judges=arguments.judges, extra=extra)
    todo = list(trials(arguments.table, arguments.seeds))[: arguments.limit]
    for trial in todo:
        folders(trial, data, runs)  # cut before processes share them
    rows, failed = [], []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in as_completed([pool.submit(make, trial) for trial in todo]):
            try:
                rows.append(future.result())
            except subprocess.CalledProcessError as error:  # the other trainings continue and are kept
                failed.append(str(error))
                continue
            ordered = sorted(rows, key=lambda row: [t._asdict() for t in todo].index(row["trial"]))
            for suffix, text in (("json", json.dumps(ordered, indent=1)), ("md", table(ordered))):
                with atomic_write(arguments.out / f"{arguments.table}_gans.{suffix}") as file:
                    file.write(text.encode())
            print(f"{len(rows)} of {len(todo)}: {rows[-1]['trial']}", flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
