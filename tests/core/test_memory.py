import resource

import pytest

from core import memory


def test_least_of_all_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", ())
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    machine = memory.memory_limit()
    total = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    assert machine == pytest.approx(total * 1024, rel=0.02)
    for name, text, expected in (("max", "max\n", machine), ("small", "12345\n", 12345), ("absent", None, machine)):
        if text:
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, "CONTAINER_LIMITS", (str(tmp_path / name),))
        assert memory.memory_limit() == expected
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (777, 888))
    assert memory.memory_limit() == 777
