"""The live stream: `app.py` is the door, `speaker.py` says a script (`script.py`) to its clients."""
