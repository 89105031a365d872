"""The XML that S3 speaks: documents, errors. Pure; what is put inside an element is escaped by `text`."""

from __future__ import annotations

from xml.sax.saxutils import escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MEDIA_TYPE = "application/xml"

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
_UNSPEAKABLE = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF), "\ufffd")


def tag(name: str, inside: str) -> str:
    """An element around what is XML already."""
    return f"<{name}>{inside}</{name}>"


def text(plain: str) -> str:
    """Any text as XML; what XML cannot hold becomes a replacement character."""
    return escape(plain.translate(_UNSPEAKABLE), {'"': "&quot;"})


def document(root: str, inside: str) -> str:
    """A whole answer in S3's namespace."""
    return f'{_HEAD}<{root} xmlns="{NAMESPACE}">{inside}</{root}>'


def error(code: str, message: str, *, resource: str, request_id: str, **details: str) -> str:
    """A refusal, such as `NoSuchKey`; S3 gives errors no namespace."""
    elements = {"Code": code, "Message": message, **details, "Resource": resource, "RequestId": request_id}
    return _HEAD + tag("Error", "".join(tag(name, text(said)) for name, said in elements.items()))
