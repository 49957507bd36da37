"""The memory that this process may use."""

import os
import resource
from pathlib import Path

CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Bytes: the least of the machine's memory, the container's and the process's own limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    texts = [Path(file).read_text().strip() for file in CONTAINER_LIMITS if Path(file).is_file()]
    limits += [int(text) for text in texts if text.isdigit()]
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*limits, soft] if soft != resource.RLIM_INFINITY else limits)
