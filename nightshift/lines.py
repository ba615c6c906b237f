"""From a stored file to its lines: open, decompress, recognise the encoding, bound every line.

Nothing here holds more than a block and the line it is in; a line past the limit is skipped as
it streams by, and only its beginning is kept.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from .errors import NightshiftError, PassingError, SourceError
from .showing import unmasked

BLOCK_BYTES = 1 << 18
# Of compressed data. Decompressing has no other bound on what one call returns: 1 KiB of hostile
# gzip gives 1 MiB, of zstd 32 MiB.
PIECE_BYTES = 1 << 10
HEAD_BYTES = 1 << 20
RAW_CHARACTERS = 500
BOMB_RATIO = 250
"""Text unpacks to 3 to 50 times its size; what comes to more, and to more than `BOMB_BYTES`, is
meant to fill a disk or a night."""
BOMB_BYTES = 256 << 20

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class TooLong(bytes):
    """The first bytes of a line above the limit, in place of the line."""


class DamagedError(Exception):
    """The file ends early or is corrupt from here on; what came before it is good.

    Never leaves the readers: it becomes one rejected row, or a SourceError when nothing came.
    """

    def __init__(self, problem: str, raw: bytes = b"") -> None:
        super().__init__(problem)
        self.raw = raw


@dataclass(frozen=True)
class OpenText:
    """A text file being read: its encoding, its first MiB (to look at), and all its blocks."""

    encoding: str
    head: bytes
    blocks: Iterator[bytes]


@contextmanager
def open_bytes(uri: str, places: Sequence[str] = ()) -> Iterator[Any]:
    """The stored bytes of a path or fsspec URL, for reading.

    Args: the declared places, one of which has the password that a listed URL does not show.
    Raises: SourceError if there is nothing to open, PassingError if a store does not answer.
    """
    import fsspec

    try:
        if "://" in uri:
            opened: Any = fsspec.open(unmasked(uri, places), "rb")  # named: an archive closes with
            stream = opened.open()  # the object behind it
        else:
            # Not by fsspec: a file's name is anybody's, and :: in it would name another store.
            stream = open(uri, "rb")  # noqa: SIM115
    except (OSError, ValueError, ImportError) as error:
        raise opening_error(uri, error) from error
    with stream:
        yield stream


def opening_error(uri: str, error: Exception) -> NightshiftError:
    """What a person should read when a path or store could not be opened."""
    if isinstance(error, ConnectionError | TimeoutError):
        return PassingError(f"{uri}: the store does not answer ({error}). Try again later.")
    problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceError(
        f"{uri}: cannot be opened ({problem}). Check the path in source.paths, the permissions "
        "and, for a URL, that the fsspec package of its protocol is installed."
    )


def stored_blocks(stream: Any, uri: str) -> Iterator[bytes]:
    """The file's bytes as stored, block by block.

    Raises: PassingError when reading fails midway, so that a store that stops answering is
    never taken for a file that ends early.
    """
    while True:
        try:
            block = stream.read(BLOCK_BYTES)
        except OSError as error:
            raise PassingError(f"{uri}: reading stopped ({error}). Try again later.") from error
        if not block:
            return
        yield block


# --- decompression --------------------------------------------------------------------------


def decompressed(stored: Iterator[bytes], compression: str, uri: str) -> Iterator[bytes]:
    """The bytes below `gz`, `zst` or no compression, in blocks of about BLOCK_BYTES.

    Raises: DamagedError after the last good byte of a stream that is cut or corrupt, SourceError
    where it unpacks to more than any text would.
    """
    if not compression:
        yield from stored
        return
    parts: list[bytes] = []
    size = unpacked = 0
    packed = _Counted(stored)
    damage = None
    try:
        for part in _gunzip(packed) if compression == "gz" else _unzstd(packed):
            parts.append(part)
            size += len(part)
            unpacked += len(part)
            if unpacked > max(BOMB_BYTES, BOMB_RATIO * packed.bytes):
                raise SourceError(bomb(uri, unpacked, packed.bytes))
            if size >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except DamagedError as error:
        damage = error
    if parts:
        yield b"".join(parts)
    if damage:
        raise damage


class _Counted:
    """Blocks as they pass, and how many bytes they were."""

    def __init__(self, stored: Iterator[bytes]) -> None:
        self.stored = stored
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self.stored:
            self.bytes += len(block)
            yield block


def bomb(uri: str, unpacked: int, packed: int) -> str:
    """What a person should read when a file unpacks to far more than it is."""
    return (
        f"{uri}: found {unpacked >> 20} MiB in {max(packed, 1) / 1024:.0f} KiB that are stored, "
        f"and expected no more than {BOMB_RATIO} times as much: this is a decompression bomb, or "
        "the same row over and over. It is read no further; if it should be, store it without "
        "compression."
    )


def _pieces(stored: Iterable[bytes]) -> Iterator[bytes]:
    """Small enough that little is lost where a stream breaks, and little comes out at once."""
    for block in stored:
        for start in range(0, len(block), PIECE_BYTES):
            yield block[start : start + PIECE_BYTES]


def _gunzip(stored: Iterable[bytes]) -> Iterator[bytes]:
    member: Any = None
    for piece in _pieces(stored):
        while piece:
            if member is None or member.eof:
                member = zlib.decompressobj(wbits=31)
            try:
                yield member.decompress(piece)
            except zlib.error as error:
                raise DamagedError(str(error)) from error
            # Zeros between members are padding, as gzip itself has it.
            piece = member.unused_data.lstrip(b"\0")
    if member is not None and not member.eof:
        raise DamagedError("compressed data ends early")


def _unzstd(stored: Iterable[bytes]) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor, ZstdError

    # Not the package's stream_reader: it takes a truncated file for a complete one.
    frame: Any = None
    for piece in _pieces(stored):
        while piece:
            if frame is None or frame.eof:
                frame = ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(piece)
            except ZstdError as error:
                raise DamagedError(str(error)) from error
            piece = frame.unused_data if frame.eof else b""
    if frame is not None and not frame.eof:
        raise DamagedError("compressed data ends early")


# --- encoding -------------------------------------------------------------------------------


def open_text(stream: Any, uri: str, compression: str, encoding: str) -> OpenText:
    """Look at the first MiB, decide the encoding, and stand before the first character.

    Raises: SourceError for what is not text at all, or nothing but a damaged stream.
    """
    blocks = decompressed(stored_blocks(stream, uri), compression, uri)
    head, damage = _read_head(blocks)
    if damage and not head:
        raise SourceError(
            f"{uri}: not a readable .{compression} file ({damage}). Write it again, or correct "
            "its name if it is not compressed."
        ) from damage
    _refuse_binary(head, uri)
    head = head.removeprefix(UTF8_BOM)
    if encoding == "auto":
        encoding = detect_encoding(head)
    rest = _raising(damage) if damage else blocks
    return OpenText(encoding, head, chain([head], rest))


def _read_head(blocks: Iterator[bytes]) -> tuple[bytes, DamagedError | None]:
    parts: list[bytes] = []
    size = 0
    try:
        while size < HEAD_BYTES and (block := next(blocks, None)) is not None:
            parts.append(block)
            size += len(block)
    except DamagedError as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _raising(error: Exception) -> Iterator[bytes]:
    yield b""
    raise error


def _refuse_binary(head: bytes, uri: str) -> None:
    if head.startswith(UTF16_BOMS):
        raise SourceError(
            f"{uri}: found UTF-16, expected UTF-8, GB18030 or Latin-1. Save it again as UTF-8."
        )
    if b"\0" in head[:1024]:
        raise SourceError(
            f"{uri}: found binary data (a zero byte within the first KB), expected text. "
            "Correct the file's extension or source.format, or leave the file out of source.paths."
        )


def detect_encoding(head: bytes) -> str:
    """`utf-8`, `gb18030` or `latin-1`, from the lines that are not plain ASCII.

    A few broken lines do not change the encoding of a file, so lines vote. Where nothing is
    plausible it is UTF-8, and every row that is not gets rejected as undecodable.
    """
    lines = [line for line in _complete_lines(head) if not line.isascii()]
    broken = [line for line in lines if not decodes(line, "utf-8")]
    if 2 * len(broken) <= len(lines):
        return "utf-8"
    chinese = [line.decode("gb18030") for line in broken if decodes(line, "gb18030")]
    if 2 * len(chinese) > len(broken) and _looks_chinese("".join(chinese)):
        return "gb18030"
    return "latin-1" if _looks_latin(b"\n".join(broken)) else "utf-8"


def _complete_lines(head: bytes) -> list[bytes]:
    lines = re.split(rb"[\r\n]+", head)
    # The head's end cuts a line, and perhaps a character.
    return lines[:-1] if len(head) >= HEAD_BYTES and len(lines) > 1 else lines


def decodes(line: bytes, encoding: str) -> bool:
    """Whether the bytes are valid in the encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _looks_chinese(text: str) -> bool:
    """Whether most of it is in daily use: Latin-1 read as GB18030 gives rare characters."""
    marked = [char for char in text[:20_000] if not char.isascii()]
    common = sum(char in _common_chinese() for char in marked)
    return common > 0.7 * len(marked)


@cache
def _common_chinese() -> frozenset[str]:
    """GB2312's punctuation and its first level: the 3,755 characters in common use."""
    rows = chain((0xA1, 0xA3), range(0xB0, 0xD8))
    codes = (bytes([row, cell]) for row in rows for cell in range(0xA1, 0xFF))
    return frozenset("".join(code.decode("gb2312", "ignore") for code in codes))


HIGH = re.compile(rb"[\x80-\xff]")
# Where Western European text has them: an accented letter beside a plain one, a capital only
# where a word may have one, the word "à", and marks (quotes, dashes, degrees) by themselves.
LATIN = re.compile(
    rb"(?<=[A-Za-z])[\xdf-\xf6\xf8-\xff]|[\xdf-\xf6\xf8-\xff](?=[A-Za-z])"
    rb"|(?<![a-z\x80-\xff])[\xc0-\xd6\xd8-\xde](?=[A-Za-z])|(?<=[A-Z])[\xc0-\xd6\xd8-\xde]"
    rb"|(?<= )[\xc0\xe0](?= )"
    rb"|(?<![\x80-\xbf])[\x80\x82-\x8c\x91-\x9c\xa0-\xbf](?![\x80-\xbf])"
)


def _looks_latin(text: bytes) -> bool:
    """Whether the bytes above ASCII stand where Western European letters and marks would."""
    high = len(HIGH.findall(text))
    return high < 0.5 * len(text) and len(LATIN.findall(text)) > 0.8 * high


def decode(line: bytes, encoding: str) -> tuple[str, bool]:
    """The line's text, and whether all of it could be decoded; what could not is escaped."""
    # As the web does, Latin-1 means Windows-1252: the same letters, and quotes where Latin-1
    # has control characters that nobody writes.
    codec = "cp1252" if encoding == "latin-1" else encoding
    try:
        return line.decode(codec), True
    except UnicodeDecodeError:
        return line.decode(codec, "surrogateescape"), False


def shorten(raw: str | bytes) -> str:
    """The beginning of what was found, fit to be stored beside a reject."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * RAW_CHARACTERS].decode("utf-8", "replace")
    return raw[:RAW_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


# --- lines ----------------------------------------------------------------------------------


def split_lines(text: OpenText, max_bytes: int) -> Iterator[bytes]:
    """Every physical line without its newline; one above `max_bytes` as its TooLong beginning.

    Zero bytes are dropped. Raises: DamagedError, with the line it broke off in.
    """
    # Some old spreadsheets end lines with a lone carriage return.
    newline = b"\r" if b"\r" in text.head and b"\n" not in text.head else b"\n"
    begun = _Line(max_bytes)
    try:
        for block in text.blocks:
            first, *others = block.replace(b"\0", b"").split(newline)
            begun.extend(first)
            if others:
                yield begun.finish()
                for line in others[:-1]:
                    yield line if len(line) <= max_bytes else TooLong(line[:RAW_CHARACTERS])
                begun.extend(others[-1])
    except DamagedError as error:
        raise DamagedError(str(error), begun.finish()) from error
    if begun.size:
        yield begun.finish()


class _Line:
    """The line that the current block breaks off in; past the limit only its size grows."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.parts: list[bytes] = []
        self.size = 0

    def extend(self, part: bytes) -> None:
        self.size += len(part)
        self.parts.append(part)
        if self.size > self.max_bytes:
            self.parts = [b"".join(part[:RAW_CHARACTERS] for part in self.parts[:2])]

    def finish(self) -> bytes:
        line = b"".join(self.parts)
        if self.size > self.max_bytes:
            line = TooLong(line[:RAW_CHARACTERS])
        self.parts, self.size = [], 0
        return line
