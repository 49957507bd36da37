"""FewGAN's Table 1 in miniature: FewGAN, HP-VAE-GAN and Concat-SinGAN on several sets of photographs, some seeds each.

    python -m tests.benchmarks.fewgan_table SETS [--side FOLDER] [--names a,b] [--seeds 3] [--jobs 2] [--runs runs/table]
        [--out docs] [key=value …]

SETS is a folder of folders of photographs; the starter set is added, with its own side images as `make train` has them. Each
training is a run folder of its own and continues where it was stopped; a row of `fewgan_table.json` that this version's metrics
measured is not made again, also where its run folder is gone: the same line does what is missing. Further overrides go to
train.py. Writes `fewgan_table.json`, every number with its protocol's hash, the commit and the overrides of its training, and
`fewgan_table.md`: means over seeds with their 95 % intervals, and whose mean is best.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core.files import atomic_write
from datamodules.listing import list_images
from experiment.manifest import read_manifest
from metrics.intervals import mean_interval
from metrics.protocol import CODE_VERSION

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "datamodules/starter"
METHODS = {"fewgan": "FewGAN", "hpvaegan": "HP-VAE-GAN", "concat_singan": "Concat-SinGAN"}
SAMPLES = "callbacks.metrics.seed=0"  # whatever seed a training had: one protocol for all
COLUMNS = {  # heading, and whether a high value is good
    "kd_mobilenet_v2": ("kernel distance ↓", False),
    "kd_mobilenet_v2_crops": ("of crops ↓", False),
    "fd_mobilenet_v2": ("Fréchet distance ↓", False),
    "pixel_diversity": ("pixel diversity ↑", True),
    "pd_mobilenet_v2_pairs": ("perceptual diversity ↑", True),
    "nearest_psnr_max": ("nearest PSNR, dB", None),
    "cpu_minutes": ("CPU minutes", None),
}


class Trial(NamedTuple):
    photos: Path
    method: str
    seed: int

    @property
    def set_name(self) -> str:
        return "starter" if self.photos.parent == STARTER else self.photos.name

    @property
    def label(self) -> str:
        return f"{self.set_name}_{self.method}_{self.seed}"


def trials(sets: Sequence[Path], seeds: int) -> Iterator[Trial]:
    """Whole rounds: every set and method with a seed before the next seed."""
    yield from (Trial(photos, method, seed) for seed in range(seeds) for photos in sets for method in METHODS)


def overrides_of(trial: Trial, side: Path, run: Path) -> list[str]:
    """The arguments of train.py."""
    overrides = [f"configs/{trial.method}.yaml", f"datamodule.root={trial.photos}", f"run_name={run.name}", f"run_dir={run}"]
    overrides += [f"seed={trial.seed}", "resume=auto", "logger.wandb=null", "callbacks.metrics.every_n_epochs=1000"]
    if trial.method == "fewgan":
        overrides += [f"datamodule.side_root={STARTER / 'side' if trial.photos.parent == STARTER else side}"]
    if trial.method == "concat_singan":  # a row of all photographs
        overrides += [f"module.tiles=[1,{len(list_images(str(trial.photos))[1])}]"]
    return overrides


def call(program: str, *arguments: str, threads: int = 1) -> float:
    """Runs a program of the project; its CPU seconds. CalledProcessError if it fails."""
    command = [sys.executable, str(ROOT / program), *arguments]
    log = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    _, status, usage = os.wait4(log.pid, 0)
    log.returncode = os.waitstatus_to_exitcode(status)
    if log.returncode:
        raise subprocess.CalledProcessError(log.returncode, command)
    return usage.ru_utime + usage.ru_stime


def measured(trial: Trial, side: Path, runs: Path, extra: Sequence[str], call: Callable[..., float] = call) -> dict[str, Any]:
    """The row of one training, which is trained and measured if it has not been, with its CPU time if nothing cut it off."""
    run = runs / trial.label
    results, clock = run / "metrics.json", run / "cpu_seconds.json"
    if not results.is_file() or not _is_current(json.loads(results.read_text(encoding="utf-8"))):
        begins = not run.exists()
        seconds = call("train.py", *overrides_of(trial, side, run), *extra)
        if begins:
            clock.write_text(json.dumps(seconds))
        call("evaluate.py", str(run / "checkpoints/last.ckpt"), SAMPLES)
    facts = json.loads(results.read_text(encoding="utf-8"))
    kept = {key: facts[key] for key in ("metrics", "intervals", "verdict", "reference_points", "diagnostics", "protocol")}
    head = {"set": trial.set_name, "method": trial.method, "seed": trial.seed, "overrides": list(extra)}
    commit = (read_manifest(run).get("git") or {}).get("commit")
    minutes = json.loads(clock.read_text()) / 60 if clock.is_file() else None
    return {**head, "commit": commit, "cpu_minutes": minutes, **kept}


def _is_current(facts: dict[str, Any]) -> bool:
    """Measured by the metrics of this version."""
    return facts["protocol"]["code_version"] == CODE_VERSION


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds with the 95 % interval of the mean, the best mean of a set bold; below, what the distances
    are worth, and all sets together."""
    head = ["set", "method", "seeds", *(title for title, _ in COLUMNS.values()), "verdict", "protocol"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for photos in dict.fromkeys(row["set"] for row in rows):
        groups = {method: [r for r in rows if (r["set"], r["method"]) == (photos, method)] for method in METHODS}
        groups = {method: own for method, own in groups.items() if own}
        best = {key: _best({m: _mean(own, key) for m, own in groups.items()}, high) for key, (_, high) in COLUMNS.items()}
        for method, own in groups.items():
            cells = [_cell([_value(row, key) for row in own], best[key] == method) for key in COLUMNS]
            hashes = sorted({row["protocol"]["hash"][:8] for row in own})
            line = [photos, METHODS[method], str(len(own)), *cells, _verdict(own), ", ".join(hashes)]
            lines.append(f"| {' | '.join(line)} |")
    worth = "\n".join(filter(None, (_worth(row) for row in {row["set"]: row for row in rows}.values())))
    return "\n".join(lines) + f"\n\nNot comparable with published FID and KID.\n\n{worth}\n\n{summary(rows)}\n"


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    numbers = {kind: sum(row["verdict"].get(kind, False) for row in rows) for kind in ("copies", "undecided")}
    return ", ".join(f"{number} of {len(rows)} {kind}" for kind, number in numbers.items() if number) or "no copying found"


def _worth(row: dict[str, Any]) -> str:
    """The distances of one half of the photographs of the row's set to the other."""
    halves = row["reference_points"].get("split_half", {})
    values = [f"{title[:-2]} {halves[key]:.3g}" for key, (title, _) in COLUMNS.items() if halves.get(key) is not None]
    return f"- {row['set']}, one half of the photographs against the other: {', '.join(values)}" if values else ""


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """In how many of the trainings that share a set and a seed FewGAN is ahead of the others."""
    found = {(row["set"], row["seed"], row["method"]): row for row in rows}
    lines = []
    for other in [method for method in METHODS if method != "fewgan"]:
        pairs = [(found[p, s, "fewgan"], row) for (p, s, m), row in found.items() if m == other and (p, s, "fewgan") in found]
        wins = []
        for key in [key for key, (_, high) in COLUMNS.items() if high is not None]:
            values = [(_value(mine, key), _value(theirs, key)) for mine, theirs in pairs]
            values = [(mine, theirs) for mine, theirs in values if math.isfinite(mine - theirs)]
            title, high = COLUMNS[key]
            ahead = sum(mine > theirs if high else mine < theirs for mine, theirs in values)
            wins += [f"{title[:-2]} in {ahead} of {len(values)}"] if values else []
        lines += [f"FewGAN is better than {METHODS[other]} by {', '.join(wins)} pairs of trainings."] if wins else []
    return "\n".join(lines)


def _value(row: dict[str, Any], key: str) -> float:
    """NaN where it is unknown."""
    value = row["cpu_minutes"] if key == "cpu_minutes" else row["metrics"][key]
    return math.nan if value is None else value


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.mean(_value(row, key) for row in rows)


def _best(means: dict[str, float], high: bool | None) -> str | None:
    known = {method: mean for method, mean in means.items() if math.isfinite(mean)}
    return (max if high else min)(known, key=lambda method: known[method]) if known and high is not None else None


def _cell(values: Sequence[float], bold: bool) -> str:
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.3g}"
    if len(values) > 1:
        low, high = mean_interval(torch.tensor(values, dtype=torch.float64))
        text += f" ± {(high - low) / 2:.2g}"
    return f"**{text}**" if bold else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--side", type=Path, default=STARTER / "side")
    parser.add_argument("--names", default="", help="only these of the sets, with commas between them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once; each gets its share of the cores")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/table")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options, extra = parser.parse_known_args()
    names = [name for name in options.names.split(",") if name]
    sets = [folder.absolute() for folder in sorted(options.sets.iterdir()) if folder.is_dir()]
    sets = [folder for folder in sets if not names or folder.name in names]
    if missing := set(names) - {folder.name for folder in sets}:
        parser.error(f"{options.sets} holds no folder {', '.join(sorted(missing))}")
    options.runs, side = options.runs.resolve(), options.side.resolve()
    raw = options.out / "fewgan_table.json"
    known = json.loads(raw.read_text(encoding="utf-8")) if raw.is_file() else []
    rows = {(row["set"], row["method"], row["seed"]): row for row in known if _is_current(row)}
    order = list(trials([*sets, STARTER / "landscapes"], options.seeds))
    share = max(1, (os.cpu_count() or 1) // options.jobs)
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [trial for trial in order if (trial.set_name, trial.method, trial.seed) not in rows]
        work = partial(measured, side=side, runs=options.runs, extra=extra, call=partial(call, threads=share))
        for done in as_completed([pool.submit(work, trial) for trial in waiting]):
            try:
                row = done.result()
            except subprocess.CalledProcessError as error:  # the other trainings are made, and their rows kept
                failed.append(str(error))
                continue
            rows[row["set"], row["method"], row["seed"]] = row
            write(options.out, [rows[key] for key in sorted(rows)])
    if failed:
        sys.exit("\n".join(failed))


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Both files, each replaced as a whole."""
    contents = {"json": json.dumps(rows, indent=1, sort_keys=True) + "\n", "md": table(rows)}
    for suffix, text in contents.items():
        with atomic_write(folder / f"fewgan_table.{suffix}") as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
