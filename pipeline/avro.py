"""One Avro datum, read strictly: the slow, sure way beside the bulk decoder.

Comes in: the bytes of one datum that the bulk decoder did not prove. Goes out: the same datum in the one
encoding the bulk encoder writes, or :class:`Malformed`. Valid but unusual encodings are allowed by the
specification (Avro 1.12, "Binary Encoding": arrays in several blocks, blocks with a byte size); an integer
beyond its type, a boolean of 7, an index out of range, a wrong block size or bytes left over are not.
Memory is bounded by the input: every array item takes at least one byte (the linter sees to it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.events import kind_of, split_null

Reader = Callable[[bytes, int, bytearray], int]
"""Reads one value at a position, appends its canonical bytes, returns the position after it."""

_LONG_BYTES_MAX = 10
_INT_LIMIT = 1 << 31


class Malformed(Exception):
    """The bytes are not a datum of the schema; ``utf8`` when only a string's encoding is wrong."""

    def __init__(self, problem: str, *, utf8: bool = False) -> None:
        super().__init__(problem)
        self.utf8 = utf8


def canonicaliser(schema: dict[str, Any]) -> Callable[[bytes], bytes]:
    """A function from the bytes of one datum to their canonical form; it raises Malformed."""
    read = _reader(schema)

    def canonical(body: bytes) -> bytes:
        out = bytearray()
        end = read(body, 0, out)
        if end != len(body):
            raise Malformed("bytes are left over")
        return bytes(out)

    return canonical


def zigzag(number: int) -> bytes:
    """An int or long as Avro writes it: zigzag, then 7 bits a byte, least significant first."""
    value = (number << 1) ^ (number >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_long(body: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    if at < len(body) and (byte := body[at]) < 0x80:  # most lengths, branches and small numbers
        return (byte >> 1) ^ -(byte & 1), at + 1
    value = shift = 0
    for position in range(at, min(at + _LONG_BYTES_MAX, len(body))):
        byte = body[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise Malformed("an integer of more than 64 bits")
            return (value >> 1) ^ -(value & 1), position + 1
        shift += 7
    raise Malformed("an integer without end")


def _copy_long(body: bytes, at: int, out: bytearray) -> tuple[int, int]:
    """Like :func:`_read_long`, and its shortest form goes out (a last byte of 0 says it was not)."""
    value, after = _read_long(body, at)
    out += body[at:after] if body[after - 1] or after == at + 1 else zigzag(value)
    return value, after


def _reader(avro_type: Any) -> Reader:
    inner, nullable = split_null(avro_type)
    read = _READERS.get(kind := _physical(inner)) or _COMPLEX[kind](inner)
    return _nullable(read) if nullable else read


def _physical(inner: Any) -> str:
    if isinstance(inner, dict) and "logicalType" in inner:
        return str(inner["type"])
    return kind_of(inner)


def _long(body: bytes, at: int, out: bytearray) -> int:
    return _copy_long(body, at, out)[1]


def _int(body: bytes, at: int, out: bytearray) -> int:
    value, after = _copy_long(body, at, out)
    if not -_INT_LIMIT <= value < _INT_LIMIT:
        raise Malformed("an int of more than 32 bits")
    return after


def _boolean(body: bytes, at: int, out: bytearray) -> int:
    if at >= len(body) or body[at] > 1:
        raise Malformed("a boolean that is neither 0 nor 1")
    out.append(body[at])
    return at + 1


def _fixed_width(width: int) -> Reader:
    def read(body: bytes, at: int, out: bytearray) -> int:
        if at + width > len(body):
            raise Malformed("a number is cut off")
        out += body[at : at + width]
        return at + width

    return read


def _string(body: bytes, at: int, out: bytearray) -> int:
    length, start = _copy_long(body, at, out)
    if not 0 <= length <= len(body) - start:
        raise Malformed("a string longer than the datum")
    text = body[start : start + length]
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("a string is not UTF-8", utf8=True) from None
    out += text
    return start + length


def _nullable(read: Reader) -> Reader:
    def read_branch(body: bytes, at: int, out: bytearray) -> int:
        branch, after = _copy_long(body, at, out)
        if branch not in (0, 1):
            raise Malformed("a union branch that does not exist")
        return read(body, after, out) if branch else after

    return read_branch


def _enum(inner: dict[str, Any]) -> Reader:
    count = len(inner["symbols"])

    def read(body: bytes, at: int, out: bytearray) -> int:
        index, after = _copy_long(body, at, out)
        if not 0 <= index < count:
            raise Malformed("an enum index that does not exist")
        return after

    return read


def _record(inner: dict[str, Any]) -> Reader:
    readers = [_reader(field["type"]) for field in inner["fields"]]

    def read(body: bytes, at: int, out: bytearray) -> int:
        for reader in readers:
            at = reader(body, at, out)
        return at

    return read


def _array(inner: dict[str, Any]) -> Reader:
    item = _reader(inner["items"])

    def read(body: bytes, at: int, out: bytearray) -> int:
        total, items = 0, bytearray()
        while True:
            count, at = _read_long(body, at)
            if count == 0:
                break
            size = None
            if count < 0:
                count = -count
                size, at = _read_long(body, at)
            if count > len(body) - at:
                raise Malformed("an array of more items than bytes")
            start = at
            for _ in range(count):
                at = item(body, at, items)
            if size is not None and at - start != size:
                raise Malformed("an array block of another size than it says")
            total += count
        out += zigzag(total) + items + b"\0" if total else b"\0"
        return at

    return read


_READERS: dict[str, Reader] = {
    "long": _long,
    "int": _int,
    "boolean": _boolean,
    "float": _fixed_width(4),
    "double": _fixed_width(8),
    "string": _string,
}
_COMPLEX: dict[str, Callable[[Any], Reader]] = {"enum": _enum, "record": _record, "array": _array}
