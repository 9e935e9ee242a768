"""Numbers with their units, as people read them."""

from __future__ import annotations

GIB = 1 << 30


def size_text(count: int) -> str:
    """The size of a file or of data: 1.5 GB, in powers of 1000 and three digits."""
    size, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"


def memory_text(count: int) -> str:
    """An amount of memory: 1.50 GiB."""
    return f"{count / GIB:,.2f} GiB"


def plural(count: int, noun: str) -> str:
    """A number of things: 1 rank, 2 ranks, 1,000 ranks."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
