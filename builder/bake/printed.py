"""What is printed for people: text without control characters, numbers in decimal units as disks and the hub count."""


def printable(text: str) -> str:
    """The text in one line, each character that cannot be seen written as its escape.

    Names, paths and the words of a hub come from elsewhere: a terminal must not obey what is in them.
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def amount(count: float) -> str:
    """`count` bytes in the unit that suits: `253.8 MB`, `42.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def megabytes(count: float) -> str:
    """`count` bytes in megabytes: `12654.4 MB`."""
    return f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A time to wait: `42 s`, `3 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
