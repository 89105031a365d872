"""REST for stocks: `app.py` is the door and its table of routes; the other files answer."""
