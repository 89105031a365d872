"""Record what is happening: a receiver process that only journals, and what starts, follows and closes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapelab.live.connector import get_connector as get_connector
    from tapelab.live.connector import list_connectors as list_connectors
    from tapelab.live.recorder import RecordingStats as RecordingStats
    from tapelab.live.recorder import WebSocketDataRecorder as WebSocketDataRecorder

_MODULES = {
    "RecordingStats": "recorder",
    "WebSocketDataRecorder": "recorder",
    "get_connector": "connector",
    "list_connectors": "connector",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    # The receiver process loads this package too; it must not pay for what only its parent needs.
    if name not in _MODULES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"tapelab.live.{_MODULES[name]}"), name)
