"""Settings of every test process."""

import os

# One thread each: test processes run side by side, and spinning OpenMP threads make tiny convolutions many times slower.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")

import torch  # noqa: E402

torch.set_num_threads(1)
