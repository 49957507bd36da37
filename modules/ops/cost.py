"""Memory in use, and time and memory in words."""

import math

import torch


class PeakMemory:
    """By how many bytes memory has grown at its peak since the object was made: that of the GPU's tensors, else that of the
    whole process as Linux counts it (nan elsewhere)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            _forget_peak()
            self.before = _status("VmRSS")

    def growth(self) -> float:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _forget_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the peak is that of the process since its start then


def _status(key: str) -> float:
    """A number of bytes that Linux notes about this process."""
    try:
        with open("/proc/self/status") as file:
            return 1024 * float(file.read().split(f"{key}:")[1].split()[0])
    except (OSError, IndexError):
        return math.nan


def human_time(seconds: float) -> str:
    """Seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def human_bytes(number: float) -> str:
    """Bytes as 12 MB or 3.4 GB."""
    if math.isnan(number):
        return "an unknown amount"
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
