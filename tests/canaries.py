"""Values that must not get out, and a search for every form in which they might.

Comes in: event types and the fields that a region may not hold as they are. Goes out: rows with one-of-a-kind
values in those fields, and the places where such a value, its encodings or its plain hashes turn up.
"""

from __future__ import annotations

import base64
import hashlib
import random
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.avro import zigzag
from pipeline.events import EventField, EventType

WINDOW = 8  # bytes: the shortest form there is, and what is looked up first
HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "sha3_256")


@dataclass(frozen=True)
class Canary:
    """One value of one field. ``forms``: bytes that give it away, each of WINDOW bytes or more."""

    region: str
    event: str
    field: str
    forms: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """What may be printed of it."""
        return f"{self.region} {self.event}.{self.field}"


@dataclass(frozen=True)
class Find:
    """A canary in a place where it must not be."""

    place: str
    canary: str
    form: int


class Cage:
    """Makes canaries from a seed and remembers all of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.canaries: list[Canary] = []

    def row(self, region: str, event: EventType, secret: Iterable[str], plain: Mapping[str, Any]) -> dict:
        """A row of the event: ``secret`` fields hold canaries where their type has room for one, the others
        what ``plain`` or their type says."""
        secret = {name for name in secret if roomy(event.field(name))}
        row: dict[str, Any] = {}
        for field in event.fields:
            if field.name in ("spool", "lane", "sequence", "received_time"):
                continue  # the edge's own
            if field.name in secret:
                row[field.name] = self.value(region, event.name, field)
            else:
                row[field.name] = plain.get(field.name, _plain(field))
        return row

    def value(self, region: str, event: str, field: EventField) -> Any:
        """A value of the field's type that exists nowhere else."""
        value = self._make(field)
        self.canaries.append(Canary(region, event, field.name, tuple(forms(value, field.kind))))
        return value

    def text(self, region: str, event: str, field: str) -> str:
        """A text canary that is in no row: for bad input."""
        value = f"cnry{self._random.getrandbits(96):024x}"
        self.canaries.append(Canary(region, event, field, tuple(forms(value, "string"))))
        return value

    def _make(self, field: EventField) -> Any:
        if field.kind == "string":
            return f"cnry{self._random.getrandbits(96):024x}"
        if field.kind == "timestamp-micros":
            hours_ago = self._random.randrange(2, 20)
            minute_us = self._random.randrange(61_000_000, 3_539_000_000)  # a moment inside its hour
            hour = int(time.time() // 3600 - hours_ago) * 3_600_000_000
            return (hour + minute_us) // 1_000_000 * 1_000_000 + self._random.randrange(1_001, 999_999)
        low, high = _bounds(field)
        if field.kind in ("int", "long"):
            return self._random.randrange(int(high * 0.5), int(high * 0.9)) | 1
        return low + (high - low) * self._random.uniform(0.55, 0.9)


def roomy(field: EventField) -> bool:
    """Whether a value of the field can be one of a kind: a small whole number or an enum cannot."""
    wide = field.kind not in ("int", "long") or _bounds(field)[1] >= 1 << 48
    return wide and field.kind != "boolean" and not field.symbols


def _bounds(field: EventField) -> tuple[float, float]:
    return (
        field.minimum if field.minimum is not None else 0.0,
        field.maximum if field.maximum is not None else 1e6,
    )


def _plain(field: EventField) -> Any:
    if field.nullable:
        return None
    if field.symbols:
        return field.symbols[0]
    if field.kind == "string":
        return "x"
    if field.kind == "boolean":
        return False
    return int(_bounds(field)[0]) if field.kind in ("int", "long") else _bounds(field)[0]


def forms(value: Any, kind: str) -> Iterator[bytes]:
    """What the value looks like in Avro, Arrow, Parquet, SQLite, text, base64, and hashed without a key."""
    if isinstance(value, str):
        plain = value.encode()
        yield plain
        yield value.encode("utf-16-le")
        yield plain.hex().encode()
        yield base64.b64encode(plain)[:-4]
        for name in HASHES:
            digest = hashlib.new(name, plain).digest()
            yield digest[:16]
            yield digest.hex()[:32].encode()
            yield base64.b64encode(digest)[:20]
    elif isinstance(value, float):
        yield struct.pack("<d", value)
        yield struct.pack(">d", value)
        yield repr(value).encode()[:-2]
        yield f"{value:.9f}".encode()
    elif kind == "timestamp-micros":
        yield zigzag(value)
        yield struct.pack("<q", value)
        yield struct.pack(">q", value)
        yield str(value).encode()
        yield str(value)[:-3].encode()
        moment = datetime.fromtimestamp(value / 1e6, UTC)
        for pattern in ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%d %H:%M:%S.%f"):  # to the second it may be allowed
            yield moment.strftime(pattern).encode()[:-3]
    else:
        yield struct.pack("<q", value)
        yield struct.pack(">q", value)
        yield zigzag(value)
        yield str(value).encode()


class Searcher:
    """Looks for all forms of all canaries at once: windows of eight bytes against a sorted table."""

    def __init__(self, canaries: Sequence[Canary]) -> None:
        self._by_start: dict[int, list[tuple[bytes, Canary, int]]] = {}
        for canary in canaries:
            for number, form in enumerate(canary.forms):
                assert len(form) >= WINDOW, (canary.name, number)
                start = int.from_bytes(form[:WINDOW], "little")
                self._by_start.setdefault(start, []).append((form, canary, number))
        self._starts = np.array(sorted(self._by_start), dtype="<u8")

    def find(self, place: str, data: bytes) -> list[Find]:
        """Every canary in the bytes, once each."""
        found: dict[tuple[str, int], Find] = {}
        for shift in range(min(WINDOW, len(data))):
            count = (len(data) - shift) // WINDOW
            if count <= 0:
                break
            windows = np.frombuffer(data, dtype="<u8", count=count, offset=shift)
            slots = np.searchsorted(self._starts, windows)
            slots[slots == len(self._starts)] = 0
            for index in np.flatnonzero(self._starts[slots] == windows).tolist():
                position = shift + index * WINDOW
                for form, canary, number in self._by_start[int(windows[index])]:
                    if data[position : position + len(form)] == form:
                        found.setdefault((canary.name, number), Find(place, canary.name, number))
        return list(found.values())
