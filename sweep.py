"""Trains a grid of settings, one training after the other.

    python sweep.py CONFIG.yaml [MORE.yaml …] key=a,b,c [key=x,y] [key=value …] [--dry-run]

    python sweep.py configs/fewgan.yaml module.lr_g=1e-3,5e-4 seed=0,1,2
    python sweep.py configs/singan.yaml run_name=birds datamodule.image_size=[48,64],[72,96]

The arguments are those of train.py; a value with commas is several, and each combination is one training, in a folder of its
own: runs/fewgan_lr_g-1e-3_seed-0 and so on. The same line again continues where it was stopped or killed, trains what failed
once more, and what is finished never again. Given in several terminals at once, it shares the trainings out among them.
One that fails does not stop the others.

    --dry-run   shows the trainings and which of them are finished, and trains nothing

For W&B sweeps see configs/sweeps/wandb.yaml.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from cli.environment import protect_output
from cli.grid import Trial, is_finished, trials
from core.errors import UserError, report_user_errors
from core.lock import lock_folder

TRAIN = Path(__file__).parent / "train.py"
LOCK = "sweep.lock"  # the training locks its folder, too, but only while it runs
INTERRUPTED = (124, 128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes; 124: trainer.max_time


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    protect_output()
    with report_user_errors() as errors:
        grid = trials([arg for arg in arguments if arg != "--dry-run"])
    if errors.exit_code:
        return errors.exit_code
    outcomes = {trial.label: "finished before" if is_finished(trial) else "open" for trial in grid}
    waiting = [trial for trial in grid if outcomes[trial.label] == "open" and "--dry-run" not in arguments]
    for signum in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: end the training, too, and print the outcomes
        if signal.getsignal(signum) != signal.SIG_IGN:  # under nohup
            signal.signal(signum, signal.default_int_handler)
    code = 0
    try:
        while waiting:
            trial, lock = take(waiting)
            waiting.remove(trial)
            with lock:
                outcomes[trial.label] = "interrupted"  # unless it comes to another end
                outcomes[trial.label] = "finished elsewhere" if is_finished(trial) else train(trial, lock)
    except KeyboardInterrupt:
        code = 130
    widest = max(len(trial.label) for trial in grid)
    print("\n".join(f"{trial.label:{widest}}  {outcomes[trial.label]:18}  {trial.folder}" for trial in grid))
    return code or int(any(outcome.startswith("failed") for outcome in outcomes.values()))


def take(waiting: list[Trial]) -> tuple[Trial, IO[str]]:
    """The first trial that no other process trains, or the first as soon as its process has ended; with its lock."""
    for trial in waiting:
        trial.folder.mkdir(parents=True, exist_ok=True)
        with suppress(UserError):
            return trial, lock_folder(trial.folder, LOCK)
    print(f"Waiting for another process, which trains {waiting[0].label} in {waiting[0].folder}.", flush=True)
    return waiting[0], lock_folder(waiting[0].folder, LOCK, wait=True)


def train(trial: Trial, lock: IO[str]) -> str:
    """How the training ended. It holds the lock itself, too: should this process be killed, the training may continue."""
    print(f"--- {trial.label} in {trial.folder}", flush=True)
    command = [sys.executable, TRAIN, *trial.arguments]
    with subprocess.Popen(command, pass_fds=[lock.fileno()], start_new_session=True) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code in INTERRUPTED:
        return "interrupted"
    return "finished" if code == 0 else f"failed, exit code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
