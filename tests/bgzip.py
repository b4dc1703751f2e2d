"""Blocked gzip by hand, as in the SAM specification."""

import struct
import zlib

END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def bgzip(content: bytes, block: int = 300) -> bytes:
    """Compress blocks of so many bytes one by one, and put the end marker after them."""
    members = []
    for start in range(0, len(content), block):
        part = content[start : start + block]
        compressor = zlib.compressobj(1, wbits=-15)
        data = compressor.compress(part) + compressor.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
        tail = struct.pack("<II", zlib.crc32(part), len(part))
        members.append(head + struct.pack("<H", len(head) + len(data) + 9) + data + tail)
    return b"".join(members) + END
