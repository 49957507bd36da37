"""FewGAN's Table 1 in miniature: FewGAN, HP-VAE-GAN and Concat-SinGAN on several sets of photographs, some seeds each.

    python -m tests.benchmarks.fewgan_table SETS [--side FOLDER] [--seeds 3] [--runs runs/table] [--out docs] [key=value …]

SETS is a folder of folders of photographs; the starter set is added. Each training is a run folder of its own and goes on where
it was stopped, each measurement is made once: the same line again does what is missing. Further words go to train.py. Writes
`fewgan_table.json`, every number with its protocol's hash, and `fewgan_table.md`, means over seeds with their spread.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "datamodules/starter"
METHODS = {"fewgan": "FewGAN", "hpvaegan": "HP-VAE-GAN", "concat_singan": "Concat-SinGAN"}
COLUMNS = {
    "kd_mobilenet_v2": "kernel distance",
    "kd_mobilenet_v2_crops": "of crops",
    "fd_mobilenet_v2": "Fréchet distance",
    "pixel_diversity": "pixel diversity",
    "nearest_psnr_max": "nearest PSNR",
}
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def trials(sets: list[Path], seeds: int) -> Iterator[tuple[Path, str, int]]:
    """Whole rounds: every set and method with a seed before the next seed."""
    yield from ((photos, method, seed) for seed in range(seeds) for photos in sets for method in METHODS)


def words_of(photos: Path, method: str, seed: int, side: Path, run: Path) -> list[str]:
    words = [f"configs/{method}.yaml", f"datamodule.root={photos}", f"run_name={run.name}", f"run_dir={run}", f"seed={seed}"]
    words += ["resume=auto", "logger.wandb=null", "callbacks.metrics.every_n_epochs=1000"]
    if method == "fewgan":
        words += [f"datamodule.side_root={side}"]
    if method == "concat_singan":  # a row of all photographs
        number = sum(file.suffix.lower() in PICTURES for file in photos.iterdir())
        words += [f"module.tiles=[1,{number}]"]
    return words


def call(program: str, *words: str) -> None:
    subprocess.run([sys.executable, str(ROOT / program), *words], cwd=ROOT, check=True)


def measured(photos: Path, method: str, seed: int, side: Path, runs: Path, extra: list[str]) -> dict:
    """The row of one training, which is trained and measured if it has not been."""
    run = runs / f"{photos.name}_{method}_{seed}"
    card = run / "metrics.json"
    if not card.is_file():
        call("train.py", *words_of(photos, method, seed, side, run), *extra)
        call("evaluate.py", str(run / "checkpoints/last.ckpt"))
    facts = json.loads(card.read_text())
    kept = {key: facts[key] for key in ("metrics", "intervals", "verdict", "anchors", "diagnostics")}
    return {"set": photos.name, "method": method, "seed": seed, "protocol_hash": facts["protocol"]["hash"], **kept}


def table(rows: list[dict]) -> str:
    """Mean and sample standard deviation over seeds, a row for each set and method."""
    head = ["set", "method", "seeds", *COLUMNS.values(), "copies", "protocol"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for photos in dict.fromkeys(row["set"] for row in rows):
        for method, name in METHODS.items():
            own = [row for row in rows if (row["set"], row["method"]) == (photos, method)]
            if own:
                cells = [_cell([row["metrics"][key] for row in own]) for key in COLUMNS]
                copies, hashes = sum(row["verdict"]["copies"] for row in own), {row["protocol_hash"][:8] for row in own}
                ends = [f"{copies} of {len(own)}", ", ".join(sorted(hashes))]
                lines.append(f"| {' | '.join([photos, name, str(len(own)), *cells, *ends])} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--side", type=Path, default=STARTER / "side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/table")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options, extra = parser.parse_known_args()
    sets = [*sorted(folder.resolve() for folder in options.sets.iterdir() if folder.is_dir()), STARTER / "landscapes"]
    rows = []
    for photos, method, seed in trials(sets, options.seeds):
        rows.append(measured(photos, method, seed, options.side.resolve(), options.runs.resolve(), extra))
        (options.out / "fewgan_table.json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (options.out / "fewgan_table.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
