"""The compiled reading of daily files: the bytes of many lines into columns, driven by `lines`.

It reads as `kernel` does, and is imported as that is. It takes a block in which every line is plain and
certain (a name in ASCII without quotes, numbers that a double or an int64 holds exactly) and no other.
"""

from __future__ import annotations

from numba import njit, types

from tapelab.massive.wire.kernel import (
    _ASCII,
    _BARE,
    _COMMA,
    _FAILED,
    _PRINTABLE,
    _QUOTE,
    _byte,
    _decimal,
    _inlined,
    _load,
    _number,
    _others,
    _unsigned,
    _whole,
    _zero_bits,
)
from tapelab.massive.wire.plan import REAL, WHOLE

_NEWLINE, _ONE, _NINE = b"\n19"
_0, _1, _3, _8 = map(_unsigned, (0, 1, 3, 8))
_INSTANT = 19  # digits of a time in ns from 2001 to 2286


@_inlined
def _count(at):
    """A whole number that is not negative."""
    first = _load(at)
    if _others(first):
        return _whole(at)
    second, third = _load(at + 8), _load(at + 16)
    digits = _8 + _8 + (_zero_bits(_others(third)) >> _3)
    if _others(second) or digits != _INSTANT or not _ONE <= _byte(at) < _NINE:
        return _whole(at)
    high = _number(first, _8) * 10**8 + _number(second, _8)
    return high * 1000 + _number(third, _3), at + _INSTANT


@_inlined
def _same(at, before, length):
    """Whether the bytes at two places are the same."""
    while length >= 8:
        if _load(at) != _load(before):
            return False
        at, before, length = at + 8, before + 8, length - 8
    mask = (_1 << (_unsigned(length) << _3)) - _1
    return (_load(at) ^ _load(before)) & mask == _0


@njit(
    types.int64(
        types.int64,
        types.int64,
        types.int64[:, ::1],
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.int32[::1],
        types.int32[::1],
        types.uint8[::1],
    ),
    cache=True,
    nogil=True,
    **_BARE,
)
def lines(at, stop, fields, ints, reals, runs, ends, names):
    """Read every line; how many runs of one name there were, or -1 if a line is not plain.

    `fields`: the kind of each column, and its row in `ints` or `reals`. `runs`: for each line the run that it
    is of, whose name ends in `names` where `ends` says, after that of the run before. Behind `stop` are
    `LOOK_AHEAD` zeros.
    """
    row, count, fill, name, length, last = 0, 0, 0, 0, 0, len(fields) - 1
    while at < stop:
        for n in range(len(fields)):
            kind, slot = fields[n, 0], fields[n, 1]
            if kind == REAL:
                reals[slot, row], at = _decimal(at, False)
            elif kind == WHOLE:
                ints[slot, row], at = _count(at)
            else:
                if count and _same(at, name, length):
                    at += length - 1
                else:
                    name = at
                    while _PRINTABLE < _byte(at) < _ASCII and _byte(at) != _COMMA and _byte(at) != _QUOTE:
                        names[fill] = _byte(at)
                        fill, at = fill + 1, at + 1
                    if at == name:
                        return _FAILED
                    length = at + 1 - name  # with what stands behind it
                    count += 1
                    ends[count] = fill
                runs[row] = count - 1
            if at < 0 or _byte(at) != (_NEWLINE if n == last else _COMMA):
                return _FAILED
            at += 1
        row += 1
    return count
