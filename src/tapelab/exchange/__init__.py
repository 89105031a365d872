"""The stand-in for Massive: a tape spoken back over REST, WebSocket and S3.

opening.py → server.py   what is settled before it opens; the running thing
plans.py  sights.py      what a key is entitled to; what of the tape it sees, and when
tape/                    what there is to say: flat files, a dataset, a simulated market
rest/  stream/  files/   the three doors, each with its `app.py`
faults/                  what goes wrong at them, by script
doors.py  control.py     whose request it is; the clock over HTTP
"""

from tapelab.exchange.server import Exchange, serve

__all__ = ["Exchange", "serve"]
