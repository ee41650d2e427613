"""What kind of content some bytes are, by their first bytes and never by a name.

Signatures: the WHATWG's MIME Sniffing Standard, sections 6 and 7, and the formats' own for FLAC,
MP3 frames and the brands of ISO base media files.
"""

from __future__ import annotations

import codecs
import json
from typing import Optional

__all__ = ["HEAD_BYTES", "MODALITIES", "OCTET_STREAM", "extension_of", "modality_of", "sniff"]

HEAD_BYTES = 64 * 1024
"""How much of the content `sniff` wants to see."""

MODALITIES = ("image", "video", "audio", "text", "model")
OCTET_STREAM = "application/octet-stream"

_PREFIXES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    b"avif": "image/avif",
    b"heic": "image/heic",
    b"M4A ": "audio/mp4",
    b"qt  ": "video/quicktime",
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
    "text/plain": ".txt",
    "application/json": ".json",
}


def sniff(head: bytes, complete: bool = False) -> str:
    """The MIME type of content that begins with `head`; `application/octet-stream` when unknown.

    Args:
        head: the first bytes, ideally `HEAD_BYTES` of them.
        complete: whether that is all of it; only then can text be known to be JSON.
    """
    for signature, mime_type in _PREFIXES:
        if head.startswith(signature):
            return mime_type
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if _is_mpeg_audio(head):
        return "audio/mpeg"
    return _sniff_text(head, complete) or OCTET_STREAM


def _is_mpeg_audio(head: bytes) -> bool:
    # A frame header: 11 bits of sync, then a version, layer, bit rate and sample rate in use.
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, sample_rate = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer == 1 and bit_rate not in (0, 15) and sample_rate != 3


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
        except ValueError:
            return "text/plain"
        return "application/json"
    return "text/plain"


def extension_of(mime_type: str) -> str:
    """The file name extension of a MIME type, with its dot; `.bin` when unknown."""
    return _EXTENSIONS.get(mime_type, ".bin")


def modality_of(mime_type: str) -> Optional[str]:
    """The modality whose bucket content of this type belongs in, or None when it could be any."""
    family = mime_type.partition("/")[0]
    if mime_type == "application/json":
        return "text"
    return family if family in MODALITIES else None
