"""LatentPatch's Table 1 in miniature: reconstructions, random codes, LatentPatch with 16 to all sources, transformer.

    python -m tests.benchmarks.latentpatch_table [--tokenizer weights/vqgan_faces64.pt] [--transformer CHECKPOINT]
        [--seeds 3] [--images 80] [--out docs]

Sources are the starter faces, the reference is the held-out ones. A row of `latentpatch_table.json` that was measured with
this autoencoder, number of images and version of the metrics is not made again. Writes the rows, and `latentpatch_table.md`:
means over seeds with their standard deviations, and which of the paper's orders hold.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.files import atomic_write
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from metrics.backbones.registry import load_backbone
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance
from metrics.manifold import manifold_scores
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import random_pairs
from metrics.protocol import CODE_VERSION
from modules.base import sampling_mode
from modules.latentpatch import LatentPatch
from modules.ops.images import from_uint8, luma, to_uint8
from modules.patches.latent_patches import project_codebook, verbatim_scores

ROOT = Path(__file__).parents[2]
REFERENCES = ("sources themselves", "held-out half", "reconstruction", "reconstruction, PCA")
SOURCES = (16, 128, 1000, None)  # None: all
METHODS: dict[str, dict[str, Any]] = {  # name in the table: options of LatentPatch.sample_codes
    "random 1×1": {"preset": "random_1x1"},
    "random 4×4": {"preset": "random_4x4"},
    "ω 2, S = 5": {"preset": "paper", "patch": 2},
    "ω 6, S = 5": {"preset": "paper"},
    "ω 6, S = 1": {"preset": "default"},
    "ω 6, S = 1, k = 10": {"preset": "table1"},
}
COLUMNS = {
    "kd": "kernel distance × 1000 ↓", "fd": "Fréchet distance ↓", "precision": "precision ↑", "recall": "recall ↑",
    "diversity": "diversity ratio", "novelty": "novelty", "verbatim": "verbatim", "sources": "sources", "dark": "dark faces",
}  # fmt: skip
Values = dict[str, float]


def faces(name: str) -> Tensor:
    """uint8 [N, 3, 64, 64] of a starter set."""
    folder, files = list_images(str(ROOT / f"datamodules/starter/{name}.zip"))
    return ImageFolder(folder, files, (64, 64)).pixels


class Judge:
    """Values of a set of images against held-out ones and the sources."""

    def __init__(self, sources: Tensor, heldout: Tensor) -> None:
        self.backbone = load_backbone()
        self.perceptual = PerceptualDistance(self.backbone)
        self.sources, self.heldout = sources, heldout
        self.reals = self.backbone(heldout)
        self.source_distance = self.pairs(sources[torch.linspace(0, len(sources) - 1, 200).long()])

    def pairs(self, images: Tensor) -> float:
        """Mean perceptual distance of 700 random pairs."""
        rows, (left, right) = self.perceptual(images), random_pairs(len(images)).T
        return float((rows[left] - rows[right]).square().sum(1).mean())

    def nearest(self, images: Tensor, sources: Tensor) -> Tensor:
        """Distance of each image to the nearest of the sources, at 32 pixels."""
        small = [torch.nn.functional.avg_pool2d(x.float(), 2).flatten(1) for x in (images, sources)]
        return torch.cdist(*small).amin(1)

    def __call__(self, images: Tensor, sources: Tensor, reals: Tensor | None = None) -> Values:
        """Of uint8 [N, 3, 64, 64]; `sources` are those that were used, `reals` rows of the reference, by default all."""
        features, reals = self.backbone(images), self.reals if reals is None else reals
        near, usual = (float(self.nearest(x, sources).median()) for x in (images, self.heldout))
        center = luma(images[:, :, 24:48, 20:44].float()).mean((1, 2, 3))
        scores = manifold_scores(reals[: len(images)], features[: len(reals)])
        return {
            "kd": 1000 * float(kernel_distance(reals, features)),
            "fd": float(frechet_distance(reals, features)),
            "precision": float(scores["precision"]),
            "recall": float(scores["recall"]),
            "diversity": self.pairs(images) / self.source_distance,
            "novelty": near / usual,
            "dark": float((center < 100).double().mean()),
        }


class Generator:
    """LatentPatch with a part of the sources."""

    def __init__(self, tokenizer: str, sources: Tensor) -> None:
        self.module = LatentPatch([64, 64], tokenizer).eval()
        self.module.start_from_source()
        self.identity, self.images = self.module.tokenizer.identity(), sources
        self.codes = torch.cat([self.module.bank_rows(from_uint8(part)) for part in sources.split(200)])

    def sample(self, number: int, sources: int | None, options: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor, Values]:
        """Bytes of `number` images, and of their sources, which `seed` chooses, and values of the provenance."""
        order = torch.randperm(len(self.codes), generator=torch.Generator().manual_seed(seed))[:sources].sort().values
        module, start = self.module, time.process_time()
        module._open_bank(len(order))
        module.bank.append(self.codes[order])
        with sampling_mode(module, seed, range(number)):
            codes = module.sample_codes(number, **options)
            seconds = time.process_time() - start
            statistic = module.provenance_statistics(codes)
            images = to_uint8(module.tokenizer.decode(codes))
        values = {"verbatim": statistic["verbatim_median"], "copies": statistic["verbatim_copies"], "seconds": seconds}
        return images, self.images[order], values | {"sources": statistic["sources_per_image"]}

    def reconstructions(self, images: Tensor, projected: bool) -> Tensor:
        """Bytes; with the codes that are nearest in the projected code book if `projected`."""
        module = self.module
        codes = module._encode(from_uint8(images))
        if projected:
            book = project_codebook(self.codes, module.tokenizer.codebook, module.hparams.rank)
            codes = torch.cdist(book[codes].flatten(0, 2), book).argmin(1).view_as(codes)
        return to_uint8(module.tokenizer.decode(codes))


def trials(seeds: int, transformer: bool) -> Iterator[tuple[str, int | None, int]]:
    """Method, number of sources and seed of every row: first what the orders need."""
    yield from ((name, None, 0) for name in REFERENCES)
    others = [number for number in SOURCES if number != 1000]
    for numbers in ([1000], others):
        for seed in range(seeds):
            yield from ((name, number, seed) for number in numbers for name in METHODS)
            if transformer and None in numbers:
                yield "transformer", None, seed


def orders(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """The orders that have to hold, by means over seeds at 1,000 sources; none while their rows are missing."""
    if not {"random 1×1", "random 4×4", "ω 6, S = 5", "ω 6, S = 1"} <= {r["method"] for r in rows if r["num_sources"] == 1000}:
        return {}

    def kd(name: str, sources: int = 1000) -> float:
        return statistics.mean(row["kd"] for row in rows if (row["method"], row["num_sources"]) == (name, sources))

    blocks = kd("random 4×4")
    novelty = [row["novelty"] for row in rows if (row["method"], row["num_sources"]) == ("ω 6, S = 1", 1000)]
    exact = [row["kd"] for row in rows if row["method"].startswith("reconstruction") and row["seed"] == 0]
    return {
        "reconstruction with and without PCA are equal": len(set(exact)) == 1,
        f"random 1×1 ({kd('random 1×1'):.0f}) > 1.5 × random 4×4 ({blocks:.0f})": kd("random 1×1") > 1.5 * blocks,
        f"ω 6, S = 5 ({kd('ω 6, S = 5'):.0f}) ≤ 0.75 × random 4×4": kd("ω 6, S = 5") <= 0.75 * blocks,
        f"ω 6, S = 1 ({kd('ω 6, S = 1'):.0f}) ≤ 0.6 × random 4×4": kd("ω 6, S = 1") <= 0.6 * blocks,
        f"novelty of ω 6, S = 1 ({statistics.mean(novelty):.2f}) ≥ 0.9": statistics.mean(novelty) >= 0.9,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over seeds."""
    lines = [f"| sources | method | seeds | {' | '.join(COLUMNS.values())} | CPU s |", "|---" * (len(COLUMNS) + 4) + "|"]
    names = [*REFERENCES, "transformer", *METHODS]
    keys = {(row["num_sources"], row["method"]) for row in rows}
    for key in sorted(keys, key=lambda key: (key[1] not in REFERENCES, key[0], names.index(key[1]))):
        own = [row for row in rows if (row["num_sources"], row["method"]) == key]
        cells = [_cell([row[name] for row in own if name in row], 0 if name in ("kd", "fd") else 2) for name in COLUMNS]
        seconds = _cell([row["seconds"] for row in own if "seconds" in row], 1)
        lines.append(f"| {key[0]:,} | {key[1]} | {len(own)} | {' | '.join(cells)} | {seconds} |")
    held = [f"- {text}: {'yes' if holds else 'NO'}" for text, holds in orders(rows).items()]
    return "\n".join([*lines, "", *held])


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def measured(
    rows: list[dict[str, Any]], facts: Mapping[str, Any], todo: Sequence[tuple[str, int | None, int]], total: int,
    measure: Callable[[str, int | None, int], Values], save: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of all trials; what is there with equal facts is kept, and every new row is saved at once."""
    kept = {(r["method"], r["num_sources"], r["seed"]): r for r in rows if facts.items() <= r.items()}
    result = []
    for name, number, seed in todo:
        key = name, number or total, seed
        if key not in kept:
            kept[key] = {"method": name, "num_sources": number or total, "seed": seed, **facts, **measure(name, number, seed)}
            print(f"{name}, {number or total} sources, seed {seed}: kernel distance {kept[key]['kd']:.0f}", flush=True)
            save(list(kept.values()))
        result.append(kept[key])
    save(list(kept.values()))  # also rows that are not asked for, such as the transformer's
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="weights/vqgan_faces64.pt")
    parser.add_argument("--transformer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    sources, heldout = faces("faces64"), faces("faces64_heldout")
    generator = Generator(arguments.tokenizer, sources)
    judge, number = Judge(sources, heldout), arguments.images
    facts = {"autoencoder": generator.identity, "images": number, "code_version": CODE_VERSION, "backbone": judge.backbone.name}
    file = arguments.out / "latentpatch_table.json"

    def measure(name: str, count: int | None, seed: int) -> Values:
        if name in METHODS:
            images, used, values = generator.sample(number, count, METHODS[name], seed)
            return judge(images, used) | values
        order = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(seed))[:number]
        if name == "transformer":
            images = transformer_samples(arguments.transformer, number, seed)
            grid = generator.module._encode(from_uint8(images))
            generator.sample(1, None, METHODS["random 1×1"], 0)  # all sources again
            return judge(images, sources) | {"verbatim": float(verbatim_scores(grid, generator.module.sources()[0]).median())}
        if name == "sources themselves":
            return judge(sources[torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed))[:number]], sources)
        if name == "held-out half":
            half = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(seed))
            return judge(heldout[half[:number]], sources, judge.reals[half[number:]])
        return judge(generator.reconstructions(heldout[order], name.endswith("PCA")), sources)

    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    todo = list(trials(arguments.seeds, bool(arguments.transformer)))

    def save(rows: list[dict[str, Any]]) -> None:
        for path, text in ((file, json.dumps(rows, indent=1)), (file.with_suffix(".md"), table(rows))):
            with atomic_write(path) as draft:
                draft.write(f"{text}\n".encode())

    print(table(measured(rows, facts, todo, len(sources), measure, save)))


def transformer_samples(path: str, number: int, seed: int) -> Tensor:
    """Bytes of samples of a checkpoint, with 40 codes to choose from."""
    from cli.evaluation import rebuild
    from experiment.checkpoint import read_checkpoint

    module = rebuild(Path(path), read_checkpoint(Path(path)))
    with sampling_mode(module, seed, range(number)):
        return to_uint8(module.sample(number, top_k=40))


if __name__ == "__main__":
    main()
