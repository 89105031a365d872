"""The stand-in for Massive: a tape spoken back over REST, WebSocket and S3."""

from tapelab.exchange.server import Exchange, serve

__all__ = ["Exchange", "serve"]
