"""Flat files by S3: `app.py` is the door."""
