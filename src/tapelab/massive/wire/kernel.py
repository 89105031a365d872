"""The compiled reading of the stream: the bytes of many messages into columns, driven by `plan`.

Importing this module compiles it, or loads what was compiled before: only `compiled` does that. It takes
what is plain and certain (compact JSON, ASCII without escapes, keys of the plan, numbers that a double or
an int64 holds exactly, within their bounds) and leaves every other message, whole, to the plain decoder.

Keys, numbers and strings are read where they lie, by words of eight bytes, the first byte the lowest.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from tapelab.massive.wire.plan import (
    ARRIVAL,
    ARRIVALS,
    BEGINS,
    BEHIND,
    BIT,
    CELL,
    CODES,
    COUNT,
    DATA,
    ENDS,
    EXACT,
    FILL,
    HEAD,
    HEADS,
    HIGH,
    KIND,
    LENGTH,
    LOW,
    MASK,
    MAX_KEY,
    MESSAGE,
    MOST,
    NAME,
    NEXT,
    POOL,
    REAL,
    RECEIVED,
    RECORD,
    REQUIRED,
    ROWS,
    RUN,
    SEEN,
    SHAPE,
    STAMP,
    TEXT,
    TEXT_OR_WHOLE,
    WHOLE,
    WORD,
    Cells,
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

# Words are unsigned, and all else is signed; where the two meet, numba makes doubles of them.
_unsigned = np.uint64
_1, _3, _7, _8, _64 = map(_unsigned, (1, 3, 7, 8, 64))
_LOWEST_BYTE, _LOWEST_ZERO, _LOWEST_DOT = map(_unsigned, (0xFF, _ZERO, _DOT))


def _eight(byte: int) -> np.uint64:
    return _unsigned(int.from_bytes(bytes([byte]) * WORD, "little"))


_QUOTES, _BACKSLASHES, _SPACES, _ZEROS = map(_eight, (_QUOTE, _BACKSLASH, _PRINTABLE, _ZERO))
_LOW_BITS, _HIGH_BITS, _ABOVE_NINE = map(_eight, (0x01, 0x80, 0x80 - 10))
# Digits become pairs, pairs become fours, and those the number: a factor that adds halves, a shift, a mask.
_PAIRS = _unsigned(10 << 8 | 1), _unsigned(8), _unsigned(0x00FF00FF00FF00FF)
_FOURS = _unsigned(100 << 16 | 1), _unsigned(16), _unsigned(0x0000FFFF0000FFFF)
_EIGHT = _unsigned(10_000 << 32 | 1), _unsigned(32)

_FINAL_TEXT, _LENGTH_FOLLOWS = 0x81, 126  # of WebSocket frames, RFC 6455


@intrinsic
def _load(context, at):
    """The word at an address."""

    def made(context, builder, signature, values):
        word = builder.load(builder.inttoptr(values[0], ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(types.int64), made


@intrinsic
def _byte(context, at):
    """The byte at an address."""

    def made(context, builder, signature, values):
        return builder.load(builder.inttoptr(values[0], ir.IntType(8).as_pointer()))

    return types.uint8(types.int64), made


@intrinsic
def _get(context, array, at):
    """An element, without a look whether the place counts from the array's end."""

    def made(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.load(builder.gep(data, [values[1]]))

    return array.dtype(array, types.int64), made


@intrinsic
def _put(context, array, at, value):
    """The same for laying down: a number, a double among whole numbers, or a word among bytes."""

    def made(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        place = builder.bitcast(builder.gep(data, [values[1]]), values[2].type.as_pointer())
        builder.store(values[2], place).align = 1
        return context.get_dummy_value()

    return types.none(array, types.int64, value), made


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
    value = value * _PAIRS[0] >> _PAIRS[1] & _PAIRS[2]
    value = value * _FOURS[0] >> _FOURS[1] & _FOURS[2]
    return np.int64(value * _EIGHT[0] >> _EIGHT[1])


@_inlined
def _plain(word, count):
    """Whether a word begins with a number that ends within it and has no zero in front."""
    return count - _1 < _7 and (word & _LOWEST_BYTE != _LOWEST_ZERO or count == _1)


@_inlined
def _digits(at, value):
    """Go on with a number of which `value` was read; returns it, and where it goes on."""
    most = at + _MAX_DIGITS
    count = _8
    while count == _8 and at <= most:
        word = _load(at)
        count = _zero_bits(_others(word)) >> _3
        if count:
            value = value * _TENS[count] + _number(word, count)
            at += np.int64(count)
    return value, at


@_called
def _any_whole(at):
    value, end = _digits(at, 0)
    count = end - at
    if count == 0 or count > _MAX_DIGITS or (count > 1 and _byte(at) == _ZERO):
        return 0, _FAILED
    return value, end


@_inlined
def _whole(at):
    """A whole number that is not negative."""
    word = _load(at)
    count = _zero_bits(_others(word)) >> _3
    if _plain(word, count):
        return _number(word, count), at + np.int64(count)
    if count == _8 and word & _LOWEST_BYTE != _LOWEST_ZERO:  # a time in milliseconds has 13 digits
        rest = _load(at + WORD)
        more = _zero_bits(_others(rest)) >> _3
        if more - _1 < _7:
            return _number(word, _8) * _TENS[more] + _number(rest, more), at + WORD + np.int64(more)
    return _any_whole(at)


@_called
def _any_decimal(at, in_text):
    value, end = _digits(at, 0)
    count = end - at
    if count == 0 or (count > 1 and _byte(at) == _ZERO and not in_text):
        return 0.0, _FAILED
    power = 0
    if _byte(end) == _DOT:
        begin = end + 1
        value, end = _digits(begin, value)
        power = end - begin
        if power == 0 or (in_text and power > _MAX_FRACTION_TEXT):
            return 0.0, _FAILED
    if count + power > _MAX_DIGITS or value > _EXACT:
        return 0.0, _FAILED
    return np.float64(value) / _POWERS[power], end


@_inlined
def _decimal(at, in_text):
    """A decimal that is not negative, and only if it is the nearest double beyond doubt."""
    word = _load(at)
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
    return _any_decimal(at, in_text)


@_inlined
def _text(at, texts, fill):
    """Copy a string's bytes up to its quote; returns where it goes on and how far the texts are filled."""
    while True:
        word = _load(at)
        quotes, slashes = word ^ _QUOTES, word ^ _BACKSLASHES
        ends = (quotes - _LOW_BITS) & ~quotes & _HIGH_BITS
        refused = ((slashes - _LOW_BITS) & ~slashes | (word - _SPACES) & ~word | word) & _HIGH_BITS
        if refused & ~ends & (ends - _1):
            return _FAILED, fill
        _put(texts, fill, word)
        count = np.int64(_zero_bits(ends) >> _3)
        fill += count
        at += count
        if ends:
            return at + 1, fill


@_called
def _codes(at, high, codes, fill):
    """A list of codes; returns where it goes on and how far the codes are filled."""
    if _byte(at) != _BEGIN:
        return _FAILED, fill
    at += 1
    if _byte(at) == _END:
        return at + 1, fill
    while True:
        value, at = _whole(at)
        if at < 0 or value > high:
            return _FAILED, fill
        _put(codes, fill, np.int16(value))
        fill += 1
        at += 1
        if _byte(at - 1) == _END:
            return at, fill
        if _byte(at - 1) != _COMMA:
            return _FAILED, fill


@_called
def _passed(at):
    """Where it goes on behind a value that has no column: a string, a plain number, true or false."""
    if _byte(at) == _QUOTE:
        at += 1
        while _byte(at) != _QUOTE:
            if not _PRINTABLE <= _byte(at) <= _ASCII or _byte(at) == _BACKSLASH:
                return _FAILED
            at += 1
        return at + 1
    word = np.int64(_load(at))
    for text, mask, length in (_TRUE, _FALSE):
        if word & mask == text:
            return at + length
    if _byte(at) == _MINUS:
        at += 1
    return _any_decimal(at, False)[1]


@_called
def _key(at, steps, channel):
    """The record of the key that stands here, and where its value begins."""
    if _byte(at) != _COMMA or _byte(at + 1) != _QUOTE:
        return 0, _FAILED
    at += 2
    name = 0
    for _ in range(MAX_KEY):
        if _byte(at) == _QUOTE:
            break
        if _byte(at) < _PRINTABLE:
            return 0, _FAILED
        name = name << 8 | np.int64(_byte(at))
        at += 1
    if _byte(at) != _QUOTE or _byte(at + 1) != _COLON:
        return 0, _FAILED
    for key in range(channel + RECORD, _get(steps, channel + BEHIND), RECORD):
        if _get(steps, key + NAME) == name:
            return key, at + 2
    return 0, _FAILED


@_inlined
def _value(at, row, key, steps, cells):
    """Read one value into its column; returns where it goes on."""
    kind, cell = _get(steps, key + KIND), _get(steps, key + CELL) + row
    if kind == REAL:
        real, at = _decimal(at, False)
        _put(cells.numbers, cell, real)
        return at
    if kind == WHOLE:
        value, at = _whole(at)
        _put(cells.numbers, cell, value)
        return at if _get(steps, key + LOW) <= value <= _get(steps, key + HIGH) else _FAILED
    pool, fill = _get(steps, key + POOL), _get(steps, key + FILL)
    if kind in (TEXT, TEXT_OR_WHOLE):
        if _byte(at) == _QUOTE:
            at, end = _text(at + 1, cells.texts, pool + fill)
            _put(steps, key + FILL, end - pool)
            return at
        if kind == TEXT:
            return _FAILED
        end = _whole(at)[1]
        for n in range(at, end):
            _put(cells.texts, pool + fill + n - at, _byte(n))
            _put(steps, key + FILL, fill + 1 + n - at)
        return end
    if kind == CODES:
        at, end = _codes(at, _get(steps, key + HIGH), cells.codes, pool + fill)
        _put(steps, key + FILL, end - pool)
        return at
    if kind == EXACT:
        if _byte(at) != _QUOTE:
            return _FAILED
        real, at = _decimal(at + 1, True)
        _put(cells.numbers, cell, real)
        return at + 1 if at >= 0 and _byte(at) == _QUOTE else _FAILED
    return _passed(at)


@_inlined
def _event(at, number, arrival, stamp, steps, cells):
    """Read one event into the next row of its channel; returns where it goes on."""
    if np.int64(_load(at)) & _HEAD[1] != _HEAD[0]:
        return _FAILED
    at += _HEAD[2]
    word, channel = np.int64(_load(at)), 0
    while word & _get(steps, channel + MASK) != _get(steps, channel + SHAPE):
        channel = _get(steps, channel + BEHIND)
        if channel == len(steps):
            return _FAILED
    at += _get(steps, channel + LENGTH)
    row = _get(steps, channel + ROWS)
    if row == _get(steps, channel + MOST):
        return _FAILED
    _put(steps, channel + ROWS, row + 1)
    _put(cells.numbers, _get(steps, channel + MESSAGE) + row, number)
    _put(cells.numbers, _get(steps, channel + ARRIVAL) + row, arrival)
    _put(cells.numbers, _get(steps, channel + RECEIVED) + row, stamp)
    _begin(channel, row, steps, cells)
    before, seen = channel, 0
    while True:
        key = _get(steps, before + NEXT)
        if np.int64(_load(at)) & _get(steps, key + MASK) == _get(steps, key + SHAPE):
            at += _get(steps, key + LENGTH)
        elif _byte(at) == _CLOSE:
            break
        else:
            key, at = _key(at, steps, channel)
            if at < 0:
                return _FAILED
            _put(steps, before + NEXT, key)
        before = key
        bit = _get(steps, key + BIT)
        if seen & bit:
            return _FAILED
        seen |= bit
        at = _value(at, row, key, steps, cells)
        if at < 0:
            return _FAILED
    _put(cells.numbers, _get(steps, channel + SEEN) + row, seen)
    required = _get(steps, channel + REQUIRED)
    return at + 1 if seen & required == required else _FAILED


@_inlined
def _begin(channel, row, steps, cells):
    """Note where a row's strings and lists begin."""
    for n in range(_get(steps, channel + HEADS)):
        key = channel + RECORD * (n + 1)
        _put(cells.numbers, _get(steps, key + CELL) + row, _get(steps, key + FILL))


@_called
def _take_back(number, steps, cells):
    """Forget the rows of a message."""
    channel = 0
    while channel < len(steps):
        message, row = _get(steps, channel + MESSAGE), _get(steps, channel + ROWS)
        while row and _get(cells.numbers, message + row - 1) == number:
            row -= 1
            for n in range(_get(steps, channel + HEADS)):
                key = channel + RECORD * (n + 1)
                _put(steps, key + FILL, _get(cells.numbers, _get(steps, key + CELL) + row))
        _put(steps, channel + ROWS, row)
        channel = _get(steps, channel + BEHIND)


@_inlined
def _message(at, stop, number, arrival, stamp, steps, cells):
    """Read one message; says whether it was taken."""
    if _byte(at) != _BEGIN:
        return False
    at += 1
    if _byte(at) == _END:
        return at + 1 == stop
    while True:
        at = _event(at, number, arrival, stamp, steps, cells)
        if at < 0:
            return False
        if _byte(at) == _END:
            return at + 1 == stop
        if _byte(at) != _COMMA:
            return False
        at += 1
        arrival += 1


@njit(
    types.void(
        types.int64[::1],
        types.int64[::1],
        types.NamedTuple((types.int64[::1], types.uint8[::1], types.int16[::1]), Cells),
        types.boolean[::1],
    ),
    cache=True,
    nogil=True,
    **_BARE,
)
def scan(runs, steps, cells, taken):
    """Read every message that is certain, and say in `taken` which those are; see `plan` for the arrays.

    Behind each message stands a byte that no JSON may have there, and then as much as `LOOK_AHEAD`.
    """
    number = 0
    for run in range(0, len(runs), RUN):
        data, stamp, arrival = _get(runs, run + DATA), _get(runs, run + STAMP), _get(runs, run + ARRIVALS)
        for place in range(0, _get(runs, run + COUNT) * WORD, WORD):
            begin = np.int64(_load(_get(runs, run + BEGINS) + place))
            end = np.int64(_load(_get(runs, run + ENDS) + place))
            taken[number] = _message(data + begin, data + end, number, arrival + begin, stamp, steps, cells)
            if not taken[number]:
                _take_back(number, steps, cells)
            number += 1
    channel = 0
    while channel < len(steps):
        _begin(channel, _get(steps, channel + ROWS), steps, cells)
        channel = _get(steps, channel + BEHIND)


@njit(
    types.UniTuple(types.int64, 3)(
        types.Array(types.uint8, 1, "C", readonly=True), types.int64, types.int64[::1], types.int64[::1]
    ),
    cache=True,
    nogil=True,
    **_BARE,
)
def walk(data, at, begins, ends):
    """Find whole unfragmented text frames side by side from `at` on; stop at anything else.

    Gives how many there are (at most as `begins` and `ends` have room for), their bytes without the headers,
    and where the last one ends.
    """
    count, size, stop = 0, 0, len(data)
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
        count, size = count + 1, size + length
    return count, size, at
