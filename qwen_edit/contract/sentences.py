"""How a value is called in a sentence that may be shown."""

import json

LONGEST = 40
"""Characters of a value that a sentence repeats."""

PRIVATE = frozenset({"image", "prompt", "negative_prompt"})
"""Fields with what the caller sent to be looked at or read. Not a character of them is repeated: replies are logged."""


def shown(value: object, longest: int = LONGEST) -> str:
    """A value of JSON, in a few words."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            # Beyond some thousand digits, Python refuses to print an integer.
            return str(value) if value.bit_length() <= 64 else "an integer of more than 64 bits"
        case float():
            return repr(value)
        case str() if len(value) <= longest:
            return repr(value)
        case str():
            return f"a string of {len(value):,} characters"
        case bytes():
            return f"a file of {len(value):,} bytes"
        case list() | tuple():
            return f"a list of {len(value):,}"
        case dict():
            return f"an object of {len(value):,} fields"
    return f"a Python {type(value).__name__}"


def shown_of(field: str, value: object) -> str:
    """As `shown`, of a value for a field of the contract."""
    return shown(value, 0 if field in PRIVATE else LONGEST)
