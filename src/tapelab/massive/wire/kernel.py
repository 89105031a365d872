"""The compiled reading of the stream: the bytes of many messages into columns, driven by `bulk`'s plan.

Importing this module compiles it, or loads what was compiled before: only `compiled` does that. It takes
what is plain and certain (compact JSON, ASCII without escapes, keys of the plan, numbers that a double or
an int64 holds exactly, within their bounds) and leaves every other message, whole, to the plain decoder.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from tapelab.massive.wire.plan import (
    CODES,
    EXACT,
    FIRST,
    HEADS,
    HIGH,
    KEY,
    KIND,
    LOW,
    MAX_KEY,
    MESSAGE,
    PLACE,
    POOL,
    REAL,
    REQUIRED,
    SEEN,
    SLOT,
    TAG,
    TEXT,
    TEXT_OR_WHOLE,
    WHOLE,
)

# Nothing here allocates, so arrays need no counting of references, which made it ten times slower.
_BARE = {"error_model": "numpy", "_nrt": False}
_inlined = njit(inline="always", **_BARE)
_called = njit(**_BARE)

_FAILED = -1
_MAX_DIGITS = 18  # so that an int64 cannot overflow while they are added up
# Whole numbers up to here are doubles, and their quotient by a power of ten is rounded only once.
_EXACT = 2**53
_POWERS = 10.0 ** np.arange(_MAX_DIGITS + 1)
_MAX_WHOLE_TEXT, _MAX_FRACTION_TEXT = 20, 12

_QUOTE, _BACKSLASH, _COMMA, _COLON, _DOT, _MINUS = 34, 92, 44, 58, 46, 45
_OPEN, _CLOSE, _BEGIN, _END = 123, 125, 91, 93  # { } [ ]
_ZERO, _NINE = 48, 57
_PRINTABLE, _ASCII = 32, 127

_FINAL_TEXT, _LENGTH_FOLLOWS = 0x81, 126  # of WebSocket frames, RFC 6455


@_inlined
def _name(data, at):
    """The bytes up to the next quote as one number, and where it goes on behind the quote."""
    packed = 0
    for n in range(MAX_KEY + 1):
        byte = data[at + n]
        if byte == _QUOTE:
            return packed, at + n + 1
        packed = packed << 8 | np.int64(byte)
    return _FAILED, at


@_called
def _whole(data, at):
    """A whole number that is not negative."""
    first, value = at, 0
    while _ZERO <= data[at] <= _NINE:
        value = value * 10 + (np.int64(data[at]) - _ZERO)
        at += 1
    digits = at - first
    if digits == 0 or digits > _MAX_DIGITS or (digits > 1 and data[first] == _ZERO):
        return 0, _FAILED
    return value, at


@_called
def _decimal(data, at, in_text):
    """A decimal that is not negative, and only if it is the nearest double beyond doubt."""
    first, value, digits = at, 0, 0
    while _ZERO <= data[at] <= _NINE:
        value = value * 10 + (np.int64(data[at]) - _ZERO)
        at += 1
    digits = at - first
    if digits == 0 or (digits > 1 and data[first] == _ZERO and not in_text):
        return 0.0, _FAILED
    power = 0
    if data[at] == _DOT:
        at += 1
        point = at
        while _ZERO <= data[at] <= _NINE:
            value = value * 10 + (np.int64(data[at]) - _ZERO)
            at += 1
        power = at - point
        if power == 0 or (in_text and power > _MAX_FRACTION_TEXT):
            return 0.0, _FAILED
    if digits + power > _MAX_DIGITS or value > _EXACT:
        return 0.0, _FAILED
    return np.float64(value) / _POWERS[power], at


@_inlined
def _text(data, at, texts, pool, fill):
    """Copy a string's bytes up to its quote; returns where it goes on and how far the pool is filled."""
    byte = data[at]
    while byte != _QUOTE:
        if byte < _PRINTABLE or byte > _ASCII or byte == _BACKSLASH:
            return _FAILED, fill
        texts[pool, fill] = byte
        fill += 1
        at += 1
        byte = data[at]
    return at + 1, fill


@_called
def _codes(data, at, high, codes, pool, fill):
    """A list of codes; returns where it goes on and how far the pool is filled."""
    if data[at] != _BEGIN:
        return _FAILED, fill
    at += 1
    if data[at] == _END:
        return at + 1, fill
    while True:
        value, at = _whole(data, at)
        if at < 0 or value > high:
            return _FAILED, fill
        codes[pool, fill] = value
        fill += 1
        at += 1
        if data[at - 1] == _END:
            return at, fill
        if data[at - 1] != _COMMA:
            return _FAILED, fill


@_called
def _passed(data, at):
    """Where it goes on behind a value that has no column: a string, a plain number, true or false."""
    byte = data[at]
    if byte == _QUOTE:
        at += 1
        while data[at] != _QUOTE:
            if data[at] < _PRINTABLE or data[at] > _ASCII or data[at] == _BACKSLASH:
                return _FAILED
            at += 1
        return at + 1
    if byte == 116:
        good = data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101
        return at + 4 if good else _FAILED
    if byte == 102:
        good = data[at + 1] == 97 and data[at + 2] == 108 and data[at + 3] == 115 and data[at + 4] == 101
        return at + 5 if good else _FAILED
    if byte == _MINUS:
        at += 1
    return _decimal(data, at, False)[1]


@_inlined
def _value(data, at, row, plan, channel, n, ints, reals, texts, codes, fills):
    """Read one value into its column; returns where it goes on."""
    kind, slot = plan[channel, n, KIND], plan[channel, n, SLOT]
    if kind == REAL:
        reals[slot, row], at = _decimal(data, at, False)
        return at
    if kind == WHOLE:
        value, at = _whole(data, at)
        ints[slot, row] = value
        return at if plan[channel, n, LOW] <= value <= plan[channel, n, HIGH] else _FAILED
    if kind == CODES:
        pool = plan[channel, n, POOL]
        at, fills[slot, 0] = _codes(data, at, plan[channel, n, HIGH], codes, pool, fills[slot, 0])
        return at
    if kind in (TEXT, TEXT_OR_WHOLE):
        pool = plan[channel, n, POOL]
        if data[at] == _QUOTE:
            at, fills[slot, 0] = _text(data, at + 1, texts, pool, fills[slot, 0])
            return at
        if kind == TEXT:
            return _FAILED
        end = _whole(data, at)[1]
        for k in range(at, end):
            texts[pool, fills[slot, 0]] = data[k]
            fills[slot, 0] += 1
        return end
    if kind == EXACT:
        if data[at] != _QUOTE:
            return _FAILED
        reals[slot, row], at = _decimal(data, at + 1, True)
        return at + 1 if at >= 0 and data[at] == _QUOTE else _FAILED
    return _passed(data, at)


@_inlined
def _event(data, at, message, place, plan, channels, follow, ints, reals, texts, codes, rows, fills):
    """Read one event into the next row of its channel; returns where it goes on."""
    if not (
        data[at] == _OPEN
        and data[at + 1] == _QUOTE
        and data[at + 2] == 101
        and data[at + 3] == 118
        and data[at + 4] == _QUOTE
        and data[at + 5] == _COLON
        and data[at + 6] == _QUOTE
    ):
        return _FAILED
    tag, at = _name(data, at + 7)
    channel = 0
    while channels[channel, TAG] != tag:
        channel += 1
        if channel == len(channels):
            return _FAILED
    row = rows[channel, 0]
    for n in range(channels[channel, HEADS]):
        slot = plan[channel, n, SLOT]
        ints[slot, row] = fills[slot, 0]
    seen, before = 0, 0
    while data[at] == _COMMA:
        if data[at + 1] != _QUOTE:
            return _FAILED
        name, at = _name(data, at + 2)
        if data[at] != _COLON:
            return _FAILED
        n = follow[channel, before]
        if plan[channel, n, KEY] != name:
            n = 0
            while plan[channel, n, KEY] != name:
                n += 1
                if n == plan.shape[1]:
                    return _FAILED
            follow[channel, before] = n
        bit = 1 << n
        if seen & bit:
            return _FAILED
        seen |= bit
        before = n + 1
        at = _value(data, at + 1, row, plan, channel, n, ints, reals, texts, codes, fills)
        if at < 0:
            return _FAILED
    required = channels[channel, REQUIRED]
    if data[at] != _CLOSE or seen & required != required:
        return _FAILED
    first = channels[channel, FIRST]
    ints[first + MESSAGE, row] = message
    ints[first + PLACE, row] = place
    ints[first + SEEN, row] = seen
    rows[channel, 0] = row + 1
    return at + 1


@_called
def _message(data, at, stop, message, plan, channels, follow, ints, reals, texts, codes, rows, fills):
    """Read one message; says whether it was taken."""
    if data[at] != _BEGIN:
        return False
    at += 1
    if data[at] == _END:
        return at + 1 == stop
    place = 0
    while True:
        at = _event(data, at, message, place, plan, channels, follow, ints, reals, texts, codes, rows, fills)
        if at < 0:
            return False
        if data[at] == _END:
            return at + 1 == stop
        if data[at] != _COMMA:
            return False
        at += 1
        place += 1


@njit(
    "void(u1[::1], i8[::1], i8[::1], i8[:,:,::1], i8[:,::1], i8[:,::1], i8[:,::1], f8[:,::1], u1[:,::1],"
    "i2[:,::1], i8[:,::1], i8[:,::1], b1[::1])",
    cache=True,
    nogil=True,
    **_BARE,
)
def scan(data, begins, ends, plan, channels, follow, ints, reals, texts, codes, rows, fills, taken):
    """Read every message that is certain.

    `data`: the messages from `begins` to `ends`, behind each a byte that no JSON may have there, and zeros as
    far as the longest look ahead. `plan`, `channels`, `follow`: see `plan`. `ints`, `reals`: a row for each
    column; `texts`, `codes`: for each column of strings and lists the bytes and codes of all rows, whose
    beginnings stand in `ints`. `rows`, `fills`: how many rows each channel has and how full each pool is, now
    and behind the last message that was taken. `taken`: by message.
    """
    for message in range(len(begins)):
        taken[message] = _message(
            data, begins[message], ends[message], message, plan, channels, follow,
            ints, reals, texts, codes, rows, fills,
        )  # fmt: skip
        for n in range(len(rows)):
            if taken[message]:
                rows[n, 1] = rows[n, 0]
            else:
                rows[n, 0] = rows[n, 1]
        for n in range(len(fills)):
            if taken[message]:
                fills[n, 1] = fills[n, 0]
            else:
                fills[n, 0] = fills[n, 1]


@njit(
    types.UniTuple(types.int64, 2)(
        types.Array(types.uint8, 1, "C", readonly=True), types.int64, types.int64[::1], types.int64[::1]
    ),
    cache=True,
    nogil=True,
    **_BARE,
)
def walk(data, at, begins, ends):
    """Find whole unfragmented text frames side by side from `at` on; stop at anything else.

    Gives how many there are (at most as `begins` and `ends` have room for) and where the last one ends.
    """
    count, stop = 0, len(data)
    while count < len(begins) and at + 2 <= stop and data[at] == _FINAL_TEXT:
        length = np.int64(data[at + 1])
        body = at + 2
        if length >= _LENGTH_FOLLOWS:
            bytes_of_length = 2 if length == _LENGTH_FOLLOWS else 8
            body += bytes_of_length
            if length > _LENGTH_FOLLOWS + 1 or body > stop:
                break
            length = 0
            for n in range(at + 2, body):
                length = length << 8 | np.int64(data[n])
        if length < 0 or length > stop - body:
            break
        begins[count] = body
        ends[count] = at = body + length
        count += 1
    return count, at
