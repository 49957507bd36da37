"""The estimates of --dry-run against short trainings of the same configuration, each in a process of its own.

    python -m tests.benchmarks.plan [fewgan singan …] [--sizes 0.67 1 1.33] [--iterations 6] [--threads 1]

For each YAML and each multiple of its image size: milliseconds of one iteration, summed over the stages (measured: mean of
all but the first of a stage), or seconds of a sample; and megabytes. Measured memory is the largest resident memory of the
process, less that of the process after it has imported everything and trained a network of one weight.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import lightning
import torch

import train
from cli.loader import load_config
from experiment.cost import PeakMemory, estimate_cost, sample_cost
from modules.bank import BankModule

METHODS = ("fewgan", "singan", "concat_singan", "consingan", "hpvaegan", "gpnn", "gpdm")


class Intervals(lightning.Callback):
    """Seconds of the iterations of each stage, from the beginning of one to the beginning of the next."""

    def __init__(self, seconds: dict[int, list[float]]) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx > 1:
            self.seconds[module.stage].append(time.perf_counter() - self.since)
        self.since = time.perf_counter()


def prepared(arguments: list[str], folder: str) -> tuple:
    """Trainer, module and data module, with the framework warm."""
    more = ["trainer.accelerator=cpu", "trainer.devices=1", "logger=null", "callbacks=null", f"run_dir={folder}/run"]
    trainer, module, data, _ = train.prepare(load_config([*arguments, *more]), dry_run=True)
    weight = torch.nn.Conv2d(1, 1, 1)
    weight(torch.ones(1, 1, 1, 1)).sum().backward()
    torch.optim.Adam(weight.parameters()).step()
    return trainer, module, data


def estimate(arguments: list[str], folder: str) -> tuple[float, float]:
    trainer, module, data = prepared(arguments, folder)
    if isinstance(module, BankModule):
        return sample_cost(module, data.sets()["image"])
    cost = estimate_cost(module, data, trainer)
    return sum(cost.seconds), cost.memory


def measurement(arguments: list[str], folder: str) -> tuple[float, float]:
    trainer, module, data = prepared(arguments, folder)
    own, memory = sum(tensor.nbytes for tensor in module.state_dict().values()), PeakMemory(torch.device("cpu"))
    if isinstance(module, BankModule):
        module.store(data.sets()["image"].stack())
        start = time.perf_counter()
        module.sample(1)
        return time.perf_counter() - start, memory.growth() + own
    seconds: dict[int, list[float]] = defaultdict(list)
    trainer.callbacks.append(Intervals(seconds))
    trainer.fit(module, data)
    return sum(sum(times) / len(times) for times in seconds.values()), memory.growth() + own


def in_its_own_process(what: str, arguments: list[str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.plan", what, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return tuple(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.67, 1, 1.33])
    parser.add_argument("--iterations", type=int, default=6, help="of each stage")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.threads} thread(s)\nmethod         size      time  measured  ratio    memory  measured  ratio")
    for name in options.methods:
        config = load_config([f"configs/{name}.yaml"])
        for factor in options.sizes:
            size = [round(factor * side) for side in config.datamodule.image_size]
            arguments = [f"configs/{name}.yaml", f"datamodule.image_size=[{size[0]},{size[1]}]", str(options.threads)]
            if name == "gpdm":
                arguments.insert(1, "module.steps=60")
            if "epochs_per_stage" in config.module:
                samples = options.iterations * config.datamodule.get("batch_size", 1)
                arguments[1:1] = ["module.epochs_per_stage=1", f"datamodule.samples_per_epoch={samples}"]
            numbers = zip(*(in_its_own_process(what, arguments) for what in ("estimate", "measurement")), strict=True)
            cells = [f"{name:13s}{size[0]:4d}×{size[1]:<4d}"]
            for (guess, truth), factor_out in zip(numbers, (1e3, 1e-6), strict=True):
                cells.append(f"{factor_out * guess:8.0f}  {factor_out * truth:8.0f}  {guess / truth:5.2f}")
            print("  ".join(cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] in (["estimate"], ["measurement"]):
        *arguments, threads = sys.argv[2:]
        torch.set_num_threads(int(threads))
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"estimate": estimate, "measurement": measurement}[sys.argv[1]](arguments, folder)))
    else:
        main()
