"""The compiled reading of the stream: the bytes of many messages into columns, driven by `bulk`'s plan.

Importing this module compiles it, or loads what was compiled before: only `compiled` does that. It takes
what is plain and certain (compact JSON, ASCII without escapes, keys of the plan, numbers that a double or
an int64 holds exactly, within their bounds) and leaves every other message, whole, to the plain decoder.

Keys, numbers and strings are read by words of eight bytes, the first byte the lowest.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tapelab.massive.wire.plan import (
    ARRIVAL,
    CODES,
    EXACT,
    FIRST,
    HEAD,
    HEADS,
    HIGH,
    KEY,
    KIND,
    LENGTH,
    LOW,
    MASK,
    MAX_KEY,
    MESSAGE,
    POOL,
    REAL,
    RECEIVED,
    REQUIRED,
    SEEN,
    SHAPE,
    SLOT,
    TEXT,
    TEXT_OR_WHOLE,
    WHOLE,
    WORD,
    Cells,
    Messages,
    Steps,
    shape,
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
_TENS = 10 ** np.arange(WORD + 1, dtype=np.int64)
_MAX_FRACTION_TEXT = 12

_QUOTE, _BACKSLASH, _COMMA, _COLON, _DOT, _MINUS, _ZERO = b'"\\,:.-0'
_CLOSE, _BEGIN, _END = b"}[]"
_PRINTABLE, _ASCII = 32, 127
_HEAD, _TRUE, _FALSE = shape(HEAD), shape("true"), shape("false")

# Numba looks at each signed index whether it counts from the array's end, which was a quarter of the time;
# on the hot way they are unsigned. Signed and unsigned numbers never meet: they would become doubles.
_unsigned = np.uint64
_0, _1, _3, _8, _64, _LOWEST_BYTE = map(_unsigned, (0, 1, 3, 8, 64, 0xFF))
_LOWEST_ZERO, _LOWEST_DOT = _unsigned(_ZERO), _unsigned(_DOT)


def _eight(byte: int) -> np.uint64:
    return _unsigned(int.from_bytes(bytes([byte]) * WORD, "little"))


_QUOTES, _BACKSLASHES, _SPACES, _ZEROS = map(_eight, (_QUOTE, _BACKSLASH, _PRINTABLE, _ZERO))
_LOW_BITS, _HIGH_BITS, _ABOVE_NINE = map(_eight, (0x01, 0x80, 0x80 - 10))
# Digits become pairs, pairs become fours, and those the number: a mask, a factor that adds halves, a shift.
_PAIRS = _unsigned(0x0F0F0F0F0F0F0F0F), _unsigned(10 << 8 | 1), _unsigned(8)
_FOURS = _unsigned(0x00FF00FF00FF00FF), _unsigned(100 << 16 | 1), _unsigned(16)
_EIGHT = _unsigned(0x0000FFFF0000FFFF), _unsigned(10_000 << 32 | 1), _unsigned(32)

_FINAL_TEXT, _LENGTH_FOLLOWS = 0x81, 126  # of WebSocket frames, RFC 6455


@intrinsic
def _load(context, data, at):
    """The word at a place."""

    def made(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        place = builder.bitcast(builder.gep(array.data, [values[1]]), ir.IntType(64).as_pointer())
        word = builder.load(place)
        word.align = 1
        return word

    return types.uint64(data, types.int64), made


@intrinsic
def _store(context, data, row, at, word):
    """Put a word into a row of an array."""

    def made(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        width = cgutils.unpack_tuple(builder, array.shape)[1]
        offset = builder.add(builder.mul(values[1], width), values[2])
        place = builder.bitcast(builder.gep(array.data, [offset]), ir.IntType(64).as_pointer())
        builder.store(values[3], place).align = 1
        return context.get_dummy_value()

    return types.none(data, types.int64, types.int64, types.uint64), made


@intrinsic
def _zero_bits(context, word):
    """How many bits are 0 below the lowest that is 1; 64 if none is."""

    def made(context, builder, signature, values):
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), made


@_inlined
def _others(word):
    """The high bit of each byte that is no digit; certain as far as the first that is not ASCII."""
    digits = word ^ _ZEROS
    return ((digits + _ABOVE_NINE) | digits) & _HIGH_BITS


@_inlined
def _number(word, count):
    """The number that the first `count` bytes of a word spell, 1 to 8 digits."""
    value = (word ^ _ZEROS) << (_64 - (count << _3))
    value = (value & _PAIRS[0]) * _PAIRS[1] >> _PAIRS[2]
    value = (value & _FOURS[0]) * _FOURS[1] >> _FOURS[2]
    return np.int64((value & _EIGHT[0]) * _EIGHT[1] >> _EIGHT[2])


@_inlined
def _plain(word, count):
    """Whether a word begins with a number that ends within it and has no zero in front."""
    return _0 < count < _8 and (count == _1 or word & _LOWEST_BYTE != _LOWEST_ZERO)


@_inlined
def _digits(data, at, value):
    """Go on with a number of which `value` was read; returns it, and where it goes on."""
    most = at + _MAX_DIGITS
    count = _8
    while count == _8 and at <= most:
        word = _load(data, at)
        count = _zero_bits(_others(word)) >> _3
        if count:
            value = value * _TENS[count] + _number(word, count)
            at += np.int64(count)
    return value, at


@_called
def _any_whole(data, at):
    value, end = _digits(data, at, 0)
    count = end - at
    if count == 0 or count > _MAX_DIGITS or (count > 1 and data[at] == _ZERO):
        return 0, _FAILED
    return value, end


@_inlined
def _whole(data, at):
    """A whole number that is not negative."""
    word = _load(data, at)
    count = _zero_bits(_others(word)) >> _3
    if _plain(word, count):
        return _number(word, count), at + np.int64(count)
    if count == _8 and word & _LOWEST_BYTE != _LOWEST_ZERO:  # a time in milliseconds has 13 digits
        rest = _load(data, at + WORD)
        more = _zero_bits(_others(rest)) >> _3
        if _0 < more < _8:
            return _number(word, _8) * _TENS[more] + _number(rest, more), at + WORD + np.int64(more)
    return _any_whole(data, at)


@_called
def _any_decimal(data, at, in_text):
    value, end = _digits(data, at, 0)
    count = end - at
    if count == 0 or (count > 1 and data[at] == _ZERO and not in_text):
        return 0.0, _FAILED
    power = 0
    if data[end] == _DOT:
        begin = end + 1
        value, end = _digits(data, begin, value)
        power = end - begin
        if power == 0 or (in_text and power > _MAX_FRACTION_TEXT):
            return 0.0, _FAILED
    if count + power > _MAX_DIGITS or value > _EXACT:
        return 0.0, _FAILED
    return np.float64(value) / _POWERS[power], end


@_inlined
def _decimal(data, at, in_text):
    """A decimal that is not negative, and only if it is the nearest double beyond doubt."""
    word = _load(data, at)
    others = _others(word)
    count = _zero_bits(others) >> _3
    if _plain(word, count):
        if (word >> (count << _3)) & _LOWEST_BYTE != _LOWEST_DOT:
            return np.float64(_number(word, count)), at + np.int64(count)
        length = _zero_bits(others & (others - _1)) >> _3
        if count + _1 < length < _8:
            whole = (_1 << (count << _3)) - _1
            value = np.float64(_number((word & whole) | ((word >> _8) & ~whole), length - _1))
            return value / _POWERS[length - count - _1], at + np.int64(length)
    return _any_decimal(data, at, in_text)


@_inlined
def _text(data, at, texts, pool, fill):
    """Copy a string's bytes up to its quote; returns where it goes on and how far the pool is filled."""
    while True:
        word = _load(data, at)
        quotes, slashes = word ^ _QUOTES, word ^ _BACKSLASHES
        ends = (quotes - _LOW_BITS) & ~quotes & _HIGH_BITS
        refused = ((slashes - _LOW_BITS) & ~slashes | (word - _SPACES) & ~word | word) & _HIGH_BITS
        if refused & ~ends & (ends - _1):
            return _FAILED, fill
        _store(texts, pool, fill, word)
        count = np.int64(_zero_bits(ends) >> _3)
        fill += count
        at += count
        if ends:
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
    if data[at] == _QUOTE:
        at += 1
        while data[at] != _QUOTE:
            if data[at] < _PRINTABLE or data[at] > _ASCII or data[at] == _BACKSLASH:
                return _FAILED
            at += 1
        return at + 1
    word = np.int64(_load(data, at))
    for text, mask, length in (_TRUE, _FALSE):
        if word & mask == text:
            return at + length
    if data[at] == _MINUS:
        at += 1
    return _any_decimal(data, at, False)[1]


@_called
def _key(data, at, keys, channel):
    """Which key of a channel stands here, and where its value begins."""
    if data[at] != _COMMA or data[at + 1] != _QUOTE:
        return 0, _FAILED
    at += 2
    name = 0
    for _ in range(MAX_KEY):
        if data[at] == _QUOTE:
            break
        if data[at] < _PRINTABLE:
            return 0, _FAILED
        name = name << 8 | np.int64(data[at])
        at += 1
    if data[at] != _QUOTE or data[at + 1] != _COLON:
        return 0, _FAILED
    for n in range(keys.shape[1]):
        if keys[channel, n, KEY] == name:
            return n, at + 2
    return 0, _FAILED


@_inlined
def _value(data, at, row, channel, key, keys, into):
    """Read one value into its column; returns where it goes on."""
    kind, slot = keys[channel, key, KIND], _unsigned(keys[channel, key, SLOT])
    if kind == REAL:
        into.reals[slot, row], at = _decimal(data, at, False)
        return at
    if kind == WHOLE:
        value, at = _whole(data, at)
        into.ints[slot, row] = value
        return at if keys[channel, key, LOW] <= value <= keys[channel, key, HIGH] else _FAILED
    pool = keys[channel, key, POOL]
    if kind == CODES:
        high = keys[channel, key, HIGH]
        at, into.fills[slot, 0] = _codes(data, at, high, into.codes, pool, into.fills[slot, 0])
        return at
    if kind in (TEXT, TEXT_OR_WHOLE):
        if data[at] == _QUOTE:
            at, into.fills[slot, 0] = _text(data, at + 1, into.texts, pool, into.fills[slot, 0])
            return at
        if kind == TEXT:
            return _FAILED
        end = _whole(data, at)[1]
        for n in range(at, end):
            into.texts[pool, into.fills[slot, 0]] = data[n]
            into.fills[slot, 0] += 1
        return end
    if kind == EXACT:
        if data[at] != _QUOTE:
            return _FAILED
        into.reals[slot, row], at = _decimal(data, at + 1, True)
        return at + 1 if at >= 0 and data[at] == _QUOTE else _FAILED
    return _passed(data, at)


@_inlined
def _event(data, at, number, place, messages, steps, into):
    """Read one event into the next row of its channel; returns where it goes on."""
    keys, channels, follow = steps.keys, steps.channels, into.follow
    if np.int64(_load(data, at)) & _HEAD[1] != _HEAD[0]:
        return _FAILED
    at += _HEAD[2]
    word, channel = np.int64(_load(data, at)), _0
    while word & channels[channel, MASK] != channels[channel, SHAPE]:
        channel += _1
        if channel == _unsigned(len(channels)):
            return _FAILED
    at += channels[channel, LENGTH]
    row = _unsigned(into.rows[channel, 0])
    for n in range(channels[channel, HEADS]):
        slot = _unsigned(keys[channel, _unsigned(n), SLOT])
        into.ints[slot, row] = into.fills[slot, 0]
    seen, behind = _0, _0
    while data[_unsigned(at)] != _CLOSE:
        key = _unsigned(follow[channel, behind])
        if np.int64(_load(data, at)) & keys[channel, key, MASK] == keys[channel, key, SHAPE]:
            at += keys[channel, key, LENGTH]
        else:
            n, at = _key(data, at, keys, np.int64(channel))
            if at < 0:
                return _FAILED
            follow[channel, behind] = n
            key = _unsigned(n)
        if seen & (_1 << key):
            return _FAILED
        seen |= _1 << key
        behind = key + _1
        at = _value(data, at, row, channel, key, keys, into)
        if at < 0:
            return _FAILED
    required = _unsigned(channels[channel, REQUIRED])
    if seen & required != required:
        return _FAILED
    first = channels[channel, FIRST]
    into.ints[_unsigned(first + MESSAGE), row] = number
    into.ints[_unsigned(first + ARRIVAL), row] = messages.arrivals[number] + place
    into.ints[_unsigned(first + RECEIVED), row] = messages.stamps[number]
    into.ints[_unsigned(first + SEEN), row] = np.int64(seen)
    into.rows[channel, 0] += 1
    return at + 1


@_inlined
def _message(data, number, messages, steps, into):
    """Read one message; says whether it was taken."""
    at, stop = messages.begins[number], messages.ends[number]
    if data[at] != _BEGIN:
        return False
    at += 1
    if data[at] == _END:
        return at + 1 == stop
    place = 0
    while True:
        at = _event(data, at, number, place, messages, steps, into)
        if at < 0:
            return False
        if data[at] == _END:
            return at + 1 == stop
        if data[at] != _COMMA:
            return False
        at += 1
        place += 1


_INTS = types.int64[:, ::1]


@njit(
    types.void(
        types.uint8[::1],
        types.NamedUniTuple(types.int64[::1], 4, Messages),
        types.NamedTuple((types.int64[:, :, ::1], _INTS), Steps),
        types.NamedTuple(
            (_INTS, types.float64[:, ::1], types.uint8[:, ::1], types.int16[:, ::1], _INTS, _INTS, _INTS),
            Cells,
        ),
        types.boolean[::1],
    ),
    cache=True,
    nogil=True,
    **_BARE,
)
def scan(data, messages, steps, into, taken):
    """Read every message that is certain, and say in `taken` which those are; see `plan` for the arrays.

    Behind each message stands in `data` a byte that no JSON may have there, and behind the last zeros as far
    as the longest look ahead.
    """
    rows, fills = into.rows, into.fills
    for number in range(len(taken)):
        taken[number] = _message(data, number, messages, steps, into)
        for n in range(len(rows)):
            if taken[number]:
                rows[n, 1] = rows[n, 0]
            else:
                rows[n, 0] = rows[n, 1]
        for n in range(len(fills)):
            if taken[number]:
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
