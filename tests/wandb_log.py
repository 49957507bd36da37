"""Reads what Weights & Biases keeps of an offline run.

wandb has no public reader in Python: `records` takes the blocks of its log apart, the messages in them are wandb's own.
"""

import json
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from wandb.proto import wandb_internal_pb2

BLOCK = 32768


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Messages of a W&B log: after 7 bytes of header, blocks of chunks with checksum, length and kind (whole, first …)."""
    data, position, body = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        if BLOCK - position % BLOCK < 7:  # the end of a block, too short for a chunk
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        position, body = position + 7 + length, body + chunk
        if kind in (1, 4):  # whole, or the last of several
            yield wandb_internal_pb2.Record.FromString(body)
            body = b""


def is_whole(file: Path) -> bool:
    """Whether the record that ends a run is there; `finish` comes back before W&B's process has written it."""
    try:
        return any(record.WhichOneof("record_type") == "exit" for record in records(file))
    except (AssertionError, struct.error):  # a part of a block
        return False


def log_of(folder: Path) -> SimpleNamespace:
    """The content of an offline run folder, once its run has ended."""
    (file,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 60
    while not is_whole(file) and time.monotonic() < deadline:
        time.sleep(0.1)
    return content_of(folder)


def content_of(folder: Path) -> SimpleNamespace:
    """What is there of an offline run: the run's message, `config`, `history` (one dict a row), `artifacts`."""
    (file,) = folder.glob("run-*.wandb")
    log = SimpleNamespace(folder=folder, run=None, config={}, history=[], artifacts=[])
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.run = record.run
        elif kind == "config":
            log.config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.config.update}
        elif kind == "artifact":
            log.artifacts.append(record.artifact)
        elif kind == "history":
            row = defaultdict(dict)
            for item in record.history.item:
                *groups, last = item.nested_key or [item.key]
                values = row
                for group in groups:
                    values = values.setdefault(group, {})
                values[last] = json.loads(item.value_json)
            log.history.append(dict(row))
    return log
