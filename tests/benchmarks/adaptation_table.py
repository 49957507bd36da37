"""The comparison of "A Closer Look at Few-shot Image Generation" (Zhao et al. 2022) in miniature: several adaptations of one
source model to several targets of ten images, some seeds each.

    python -m tests.benchmarks.adaptation_table DATA [--targets faces-sketch,toonhead,pixelart] [--methods tgan,cdc]
        [--seeds 3] [--perceptual FILE] [--runs runs/adaptation] [--out docs] [key=value …]

DATA is a folder with `<target>-10shot` and `<target>-heldout`. Each training is a run folder of its own and continues where
it was stopped; a row of `adaptation_table.json` with the same overrides is not made again, also where its run folder is gone:
the same line does what is missing. Further overrides go to train.py. FILE is that of a perceptual distance (ST-LPIPS, LPIPS);
without it the distance is on MobileNetV2.

Methods have to be compared at equal realism: a model that has hardly begun to adapt is diverse, too. Writes
`adaptation_table.json`, whose rows hold the whole course of each training, and `adaptation_table.md`.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from callbacks.adaptation_curve import read_curve
from core.files import atomic_write
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from experiment.manifest import read_manifest
from metrics.adaptation import AdaptationMeasure, AdaptationValues
from metrics.backbones.registry import load_backbone
from metrics.features import ImageSet
from metrics.intervals import mean_interval
from metrics.memorization import memorization
from metrics.perceptual_distance import load_perceptual
from metrics.realism import load_realism
from modules.ops.images import to_uint8
from tests.benchmarks.fewgan_table import call

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "datamodules/starter/faces64_heldout.zip"
SIZE = [32, 32]
SAMPLES = 200  # of a measurement
LEVEL, LOWER = 0.9, 0.7  # of realism, at which methods are compared; not all reach the first
TARGETS = ("faces-sketch", "toonhead", "pixelart")
METHODS = {  # arguments of train.py
    "tgan": ("TGAN", ["configs/tgan.yaml"]),
    "cdc": ("CDC", ["configs/cdc.yaml"]),
    "dcl": ("DCL", ["configs/dcl.yaml"]),
    "cdc_0": ("CDC, λ = 0", ["configs/cdc.yaml", "module.weight_cdc=0"]),
    "freezed": ("FreezeD", ["configs/freezed.yaml"]),
    "ewc": ("EWC", ["configs/ewc.yaml"]),
    "fsgan": ("FSGAN", ["configs/fsgan.yaml"]),
    "minegan": ("MineGAN", ["configs/minegan.yaml"]),
    "bsa": ("BSA", ["configs/bsa.yaml"]),
    "tgan_ada": ("TGAN with ADA", ["configs/tgan_ada.yaml"]),
    "tgan_diffaugment": ("TGAN with DiffAugment", ["configs/tgan_diffaugment.yaml"]),
}
SHOWN = ("intra", "pairs", "nearest_heldout")
HEADINGS = {
    "intra": "around each image ↑", "pairs": "of pairs ↑", "nearest_heldout": "to held-out ↓", "nearest_training": "to the ten",
    "realism": "realism ↑", "iteration": "iteration", "cpu_minutes": "CPU minutes",
}  # fmt: skip


class Trial(NamedTuple):
    target: str
    method: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.target}_{self.method}_{self.seed}"


def trials(targets: Sequence[str], methods: Sequence[str], seeds: int) -> Iterator[Trial]:
    """Whole rounds: every target and method with a seed before the next seed."""
    yield from (Trial(target, method, seed) for seed in range(seeds) for target in targets for method in methods)


def overrides_of(trial: Trial, data: Path, run: Path, classifier: Path, perceptual: Path | None) -> list[str]:
    """The arguments of train.py."""
    overrides = [*METHODS[trial.method][1], "configs/callbacks/adaptation_curve.yaml", f"run_name={run.name}", f"run_dir={run}"]
    overrides += [f"seed={trial.seed}", "callbacks.curve.seed=0", "resume=auto", "logger.wandb=null", "callbacks.metrics=null"]
    overrides += [f"datamodule.root={data / trial.target}-10shot", f"datamodule.heldout_root={data / trial.target}-heldout"]
    overrides += [f"callbacks.curve.realism={classifier}", f"callbacks.curve.num_images={SAMPLES}"]
    return overrides + ([f"callbacks.curve.perceptual_weights={perceptual}"] if perceptual else [])


def measured(
    trial: Trial, data: Path, runs: Path, perceptual: Path | None, extra: Sequence[str], call: Callable[..., float] = call
) -> dict[str, Any]:
    """The row of one training, which is trained if it has not been. Its CPU time, which includes the measurements, is given if
    nothing cut it off."""
    run, classifier = runs / trial.label, realism_of(trial.target, data, runs, call)
    clock, results = run / "cpu_seconds.json", run / "metrics.json"
    begins = not run.exists()
    if read_manifest(run).get("status") != "finished":
        seconds = call("train.py", *overrides_of(trial, data, run, classifier, perceptual), *extra)
        if begins:
            clock.write_text(json.dumps(seconds))
    if not results.is_file():
        call("evaluate.py", str(run / "checkpoints/last.ckpt"), "callbacks.metrics.full=[kd]", "callbacks.metrics.seed=0")
    facts = json.loads(results.read_text(encoding="utf-8"))
    head = {**trial._asdict(), "overrides": list(extra), "commit": (read_manifest(run).get("git") or {}).get("commit")}
    minutes = json.loads(clock.read_text()) / 60 if clock.is_file() else None
    return {**head, "cpu_minutes": minutes, "verdict": facts["verdict"], "curve": read_curve(run / "curve.csv")}


def realism_of(target: str, data: Path, runs: Path, call: Callable[..., float] = call) -> Path:
    """The classifier of a target, trained if it has not been."""
    folder = runs / f"realism_{target}"
    if not (folder / "realism.pt").is_file():
        size = f"task.image_size={SIZE}".replace(" ", "")
        call("evaluate.py", str(SOURCE), f"{data / target}-heldout", "configs/tasks/realism.yaml", size, f"out={folder}")
    return folder / "realism.pt"


def references(target: str, data: Path, runs: Path, perceptual: Path | None) -> dict[str, Any]:
    """The measurements, with verdicts, of copies of the ten images and of the held-out images that are not compared with."""
    training, heldout = (
        to_uint8(ImageFolder(*list_images(f"{data / target}-{kind}", True), SIZE).stack()) for kind in ("10shot", "heldout")
    )
    picks = torch.linspace(0, len(heldout) - 1, 200).long()  # as `AdaptationCurve` picks its reference
    others = heldout[[i for i in range(len(heldout)) if i not in set(picks.tolist())]]
    backbone = load_backbone()
    distance = load_perceptual(backbone, perceptual and str(perceptual))
    classifier = load_realism(str(realism_of(target, data, runs)))
    measure = AdaptationMeasure(training, heldout[picks], distance, backbone, classifier)
    sets, points = {"copies": training.repeat(SAMPLES // len(training), 1, 1, 1), "heldout": others}, {}
    reference = image_set(training, backbone)
    for name, images in sets.items():
        verdict = memorization(image_set(images[:100], backbone), reference, backbone)[0]
        points[name] = {**measure(images)._asdict(), "verdict": verdict, "protocol": measure.protocol()}
    return points


def image_set(images: torch.Tensor, backbone: torch.nn.Module) -> ImageSet:
    return ImageSet(backbone(images), images, torch.zeros(len(images), 0, 0), torch.arange(len(images)))


# --- tables -----------------------------------------------------------------------------------------------------------


def equal_realism(row: dict[str, Any], key: str, level: float = LEVEL) -> float:
    """A value, or the iteration, of a training at a level of realism."""
    return at_realism([(float(point["realism"]), float(point[key])) for point in row["curve"]], level)


def at_realism(rows: Sequence[tuple[float, float]], level: float) -> float:
    """The value at which realism first reaches `level`, of rows (realism, value) in the order of a training: interpolated
    between the rows around it; NaN if it never does."""
    previous = None
    for realism, value in rows:
        if realism >= level:
            if previous is None or realism == previous[0]:
                return value
            share = (level - previous[0]) / (realism - previous[0])
            return previous[1] + share * (value - previous[1])
        previous = (realism, value)
    return math.nan


def at_end(row: dict[str, Any], key: str) -> float:
    if key == "cpu_minutes":
        return math.nan if row[key] is None else row[key]
    return float(row["curve"][-1][key])


def table(content: dict[str, Any]) -> str:
    """Markdown: for each target means over seeds with their 95 % intervals, at equal realism and at the end."""
    parts = []
    for target in dict.fromkeys(row["target"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["target"] == target]
        head = ["", "seeds", *(f"{HEADINGS[k]} at {LEVEL}" for k in ("iteration", *SHOWN))]
        head += [HEADINGS[k] for k in ("realism", *SHOWN, "nearest_training", "cpu_minutes")] + ["verdict at the end"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        points = content["references"].get(target, {})
        start = next((row for row in rows if row["method"] == "tgan"), rows[0])["curve"][0]  # a miner would change it
        begin = {key: float(start[key]) for key in AdaptationValues._fields}
        named = {"source": begin, "copies of the ten": points.get("copies"), "held-out images": points.get("heldout")}
        for name, point in named.items():
            if point:
                cells = [f"{point[key]:.3f}" for key in ("realism", *SHOWN, "nearest_training")]
                verdict = _verdict([point]) if "verdict" in point else ""
                lines.append(f"| {name} | | | | | | {' | '.join(cells)} | | {verdict} |")
        for method, (title, _) in METHODS.items():
            trained = [row for row in rows if row["method"] == method]
            if trained:
                cells = [_cell([equal_realism(row, key) for row in trained], key) for key in ("iteration", *SHOWN)]
                keys = ("realism", *SHOWN, "nearest_training", "cpu_minutes")
                cells += [_cell([at_end(row, key) for row in trained], key) for key in keys]
                lines.append(f"| {title} | {len(trained)} | {' | '.join(cells)} | {_verdict(trained)} |")
        missing = [title for method, (title, _) in METHODS.items() if all(row["method"] != method for row in rows)]
        note = f"\n\nNot measured: {', '.join(missing)}." if missing else ""
        parts.append(f"## {target}\n\n" + "\n".join(lines) + note + "\n\n" + "\n".join(orders(rows)))
    parts += [f"## {target}\n\nNot measured." for target in TARGETS if all(row["target"] != target for row in content["rows"])]
    protocols = sorted({point["protocol"] for row in content["rows"] for point in row["curve"]})
    return "\n\n".join(parts) + "\n\nProtocols:\n\n" + "\n".join(f"- {protocol}" for protocol in protocols) + "\n"


def orders(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The paper's orders on one target, and whether they hold in the mean over the seeds."""
    by_method = {method: [row for row in rows if row["method"] == method] for method in METHODS}
    pairs: dict[str, Callable[[dict[str, Any]], float]] = {
        f"at realism {LEVEL}": lambda row: equal_realism(row, "pairs"),
        f"at realism {LOWER}": lambda row: equal_realism(row, "pairs", LOWER),
        "at the end": lambda row: at_end(row, "pairs"),
    }
    lines = []

    def add(claim: str, least: float, *values: list[float]) -> None:
        """A line about the mean of the first values, less that of the second ones."""
        result = "not measured"
        if all(values):
            means, seeds = [statistics.mean(each) for each in values], min(map(len, values))
            value = means[0] - sum(means[1:])
            result = f"{value:.3f} ({'holds' if value >= least else 'does not hold'}; {seeds} seed(s))"
            missed = sum(math.isnan(each) for each in sum(values, []))
            result = f"{missed} of {len(sum(values, []))} trainings do not reach it" if missed else result
        lines.append(f"- {claim}, at least {least}: {result}")

    for (when, value), (first, second, least) in product(pairs.items(), (("cdc", "tgan", 0.02), ("dcl", "cdc", -0.01))):
        claim = f"distance of pairs {when}, {METHODS[first][0]} less {METHODS[second][0]}"
        add(claim, least, *([value(row) for row in by_method[method]] for method in (first, second)))
    for method, end in (("tgan", 400), ("cdc", 600)):
        last = [[float(p["realism"]) for p in row["curve"] if p["iteration"] <= end][-1] for row in by_method[method]]
        add(f"realism of {METHODS[method][0]} after {end} iterations", 0.95, last)
    return lines


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    counts = {kind: sum(bool(row["verdict"].get(kind)) for row in rows) for kind in ("copies", "undecided")}
    return ", ".join(f"{count} of {len(rows)} {kind}" for kind, count in counts.items() if count) or "no copying found"


def _cell(values: Sequence[float], key: str) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "not reached" if key != "cpu_minutes" else "–"
    digits = {"iteration": 0, "cpu_minutes": 1}.get(key, 3)
    text = f"{statistics.mean(known):.{digits}f}"
    if len(known) > 1:
        low, high = mean_interval(torch.tensor(known, dtype=torch.float64))
        text += f" ± {(high - low) / 2:.{digits}f}"
    return text + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def write(folder: Path, content: dict[str, Any]) -> None:
    """Both files, each replaced as a whole."""
    text = json.dumps(content, indent=1, sort_keys=True).replace("NaN", "null") + "\n"
    for suffix, body in {"json": text, "md": table(content)}.items():
        with atomic_write(folder / f"adaptation_table.{suffix}") as file:
            file.write(body.encode())


def read(path: Path) -> dict[str, Any]:
    """The content of `adaptation_table.json`, an unknown number as NaN."""
    if not path.is_file():
        return {"rows": [], "references": {}}
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content["rows"]:
        row["curve"] = [{k: math.nan if v is None else v for k, v in point.items()} for point in row["curve"]]
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/adaptation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options, extra = parser.parse_known_args()
    targets, methods = options.targets.split(","), options.methods.split(",")
    if unknown := set(methods) - METHODS.keys():
        parser.error(f"unknown method {', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
    data, runs = options.data.resolve(), options.runs.resolve()
    perceptual = options.perceptual and options.perceptual.resolve()
    content = read(options.out / "adaptation_table.json")
    rows = {(row["target"], row["method"], row["seed"]): row for row in content["rows"] if row["overrides"] == extra}
    failed = []
    for trial in trials(targets, methods, options.seeds):
        if tuple(trial) in rows:
            continue
        try:
            if trial.target not in content["references"]:
                content["references"][trial.target] = references(trial.target, data, runs, perceptual)
            rows[tuple(trial)] = measured(trial, data, runs, perceptual, extra, call)
        except subprocess.CalledProcessError as error:  # the other trainings are made, and their rows kept
            failed.append(str(error))
            continue
        write(options.out, {**content, "rows": [rows[key] for key in sorted(rows)]})
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
