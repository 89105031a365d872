"""The journal: an append-only record of what arrived, which survives a kill.

`Writer` appends, `recover` puts a journal in order after a kill, `Follower` reads what is there and what
is added. A journal is a folder of segments (see `record` for their bytes and `sealing` for how finished
ones are compressed). Two figures say how safe the data is: what is *acknowledged* survives a kill of the
process, what is *durable* survives a power cut; durable is at most `SYNC_EVERY` behind.
"""

from __future__ import annotations

from tapelab.store.journal.reading import Follower, Message, Note, messages, records
from tapelab.store.journal.record import FINAL, Kind, Record
from tapelab.store.journal.recovery import Recovery, last_sequence, recover
from tapelab.store.journal.writer import SEGMENT_BYTES, Writer

__all__ = [
    "FINAL",
    "SEGMENT_BYTES",
    "Follower",
    "Kind",
    "Message",
    "Note",
    "Record",
    "Recovery",
    "Writer",
    "last_sequence",
    "messages",
    "records",
    "recover",
]
