"""What kind of content some bytes are, by the bytes and never by a name.

The same file in the platform (`vyvo_dagster/objects/`) and in the package `vyvo_runner`; a test
holds them equal. Binary formats are `filetype`'s to know; text and JSON, which have no signature,
are told here.
"""

import codecs
import json
import mimetypes
from typing import Optional

import filetype

__all__ = ["HEAD_BYTES", "MODALITIES", "OCTET_STREAM", "extension_of", "modality_of", "sniff"]

HEAD_BYTES = 64 * 1024
"""How much of the content `sniff` wants to see."""

MODALITIES = ("image", "video", "audio", "text", "model")
OCTET_STREAM = "application/octet-stream"

# The names in use for what `filetype` knows by older ones.
_NAMES = {
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/x-aiff": "audio/aiff",
    "image/apng": "image/png",
    "video/x-m4v": "video/mp4",
}
_EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "video/quicktime": ".mov",
    "video/x-msvideo": ".avi",
    "audio/wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mp4": ".m4a",
    "audio/midi": ".mid",
    "text/plain": ".txt",
    "application/json": ".json",
    "application/zip": ".zip",
    "application/pdf": ".pdf",
}


def sniff(head: bytes, complete: bool = False) -> str:
    """The MIME type of content that begins with `head`; `application/octet-stream` when unknown.

    Args:
        head: the first bytes, ideally `HEAD_BYTES` of them.
        complete: whether that is all of it; only then can text be known to be JSON.
    """
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    # Text next: some signatures are letters that a text may well begin with, such as BM.
    text = _sniff_text(head, complete)
    if text is not None:
        return text
    kind = filetype.guess(bytes(head))
    if kind is not None:
        name = str(kind.mime)
        return _NAMES.get(name, name)
    if head[4:8] == b"ftyp":
        # A brand of ISO base media files that it does not know, or a box longer than the head.
        return "video/mp4"
    return OCTET_STREAM


def _sniff_text(head: bytes, complete: bool) -> Optional[str]:
    if not head or any(byte < 0x20 and byte not in b"\t\n\r\x0c\x1b" for byte in head):
        return None
    # Where the head is cut off, the decoder keeps a character's first half back instead of failing.
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=complete)
    except UnicodeDecodeError:
        return None
    if complete and text.lstrip()[:1] in ("{", "["):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "text/plain"
        return "application/json"
    return "text/plain"


def extension_of(mime_type: str) -> str:
    """The file name extension of a MIME type, with its dot; `.bin` when unknown."""
    return _EXTENSIONS.get(mime_type) or mimetypes.guess_extension(mime_type) or ".bin"


def modality_of(mime_type: str) -> str:
    """The modality whose bucket content of this type belongs in.

    What is neither image, video nor audio goes with the texts, so that nothing is refused.
    """
    family = mime_type.partition("/")[0]
    return family if family in ("image", "video", "audio") else "text"
