"""The tokenizer, built from its three files; the library is not let loose on the folder.

Left to read the folder, transformers takes whatever lies there: a `tokenizer.json` in place of the vocabulary, a
`config.json` that changes how text is split, fields that name other files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from qwen_edit.model.prompt import IMAGE_TOKEN
from qwen_edit.store.documents import CHECK, FileError, file_name, read_object, read_text, show
from qwen_edit.store.fields import Kind, Table, flag, misfit, part, take

MOST_TOKENS = 2**20
"""Far more than any vocabulary holds."""

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)
"""The tokens of the template around a prompt. In the prompt itself they are text, which only special tokens can be."""

_LONGEST_TOKEN = 200
_TOKEN: Table = {
    "content": Kind(lambda value: isinstance(value, str) and 0 < len(value) <= _LONGEST_TOKEN, "a short text"),
    **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), flag()),
}


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer of `vocab.json`, `merges.txt` and the added tokens of `tokenizer_config.json`.

    Args:
        folder: the base model's `tokenizer/`.

    Raises:
        ModelUnavailable: a file is missing or damaged, or does not fit the others.
    """
    vocabulary = _vocabulary(folder / "vocab.json")
    name, document = file_name(folder / "tokenizer_config.json"), read_object(folder / "tokenizer_config.json")
    added = _added_tokens(name, document)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=_merges(folder / "merges.txt", vocabulary),
        added_tokens_decoder=added,
        **take(name, document, {"add_prefix_space": flag()}),
    )
    for number, token in added.items():
        if (given := tokenizer.convert_tokens_to_ids(token.content)) != number:
            raise misfit(name, f"added_tokens_decoder {show(token.content)}", number, f"{given}, the next number")
    return tokenizer


def _vocabulary(path: Path) -> dict[str, int]:
    name, tokens = file_name(path), read_object(path)
    for token, number in tokens.items():
        if type(number) is not int or not 0 <= number < MOST_TOKENS:
            raise misfit(name, f"token {show(token)}", number, f"an integer from 0 to {MOST_TOKENS - 1}")
    if len(set(tokens.values())) < len(tokens):
        raise FileError(f"{name}: has a number twice, expected another for each token; {CHECK}")
    if missing := set(ByteLevel.alphabet()) - tokens.keys():
        raise FileError(f"{name}: has no token {show(min(missing))}, expected one for each byte; {CHECK}")
    return tokens


def _merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, in order. Each makes a token, and each token but a byte's is made by one."""
    name = file_name(path)
    lines = [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise FileError(f"{name}: line {number} is {show(line)}, expected two tokens that make a third; {CHECK}")
        merges.append((first, second))
    made = {first + second for first, second in merges}
    if orphans := vocabulary.keys() - made - set(ByteLevel.alphabet()):
        raise FileError(f"{name}: does not make the token {show(min(orphans))}; {CHECK}")
    return merges


def _added_tokens(name: str, document: Mapping[str, Any]) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    tokens = part(name, document, "added_tokens_decoder")
    for number in tokens:
        if not (number.isascii() and number.isdigit() and len(number) < 8 and int(number) < MOST_TOKENS):
            raise misfit(name, "added_tokens_decoder", number, f"numbers from 0 to {MOST_TOKENS - 1}")
        fields = take(f"{name}: token {number}", part(name, tokens, number), _TOKEN, frozenset({"content"}))
        added[int(number)] = AddedToken(**fields)
    special = {token.content for token in added.values() if token.special}
    if missing := [token for token in SPECIAL if token not in special]:
        raise FileError(f"{name}: has no special token {missing[0]} in added_tokens_decoder; {CHECK}")
    return added
