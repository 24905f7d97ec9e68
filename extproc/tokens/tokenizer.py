"""A model's own tokenizer from its file, tokenizer.json, with the package `tokenizers` (Hugging Face).

Owns the reading and what is said of a file that cannot be used. Counts in batches, without the interpreter's
lock, so that decisions go on beside; one text of a batch takes microseconds a token.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from extproc.extras import missing, needed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: A larger file is refused unread: the largest of today's has 35 MB.
FILE_BYTES_MAX: Final = 256 * 1024 * 1024

#: Tokens of each text, in order.
CountTexts = Callable[[Sequence[str]], list[int]]

#: Texts that are cut between two words, for what a cut costs.
_PAIRS: Final = (
    ("The quick brown fox jumps over", " the lazy dog near the river bank"),
    ("You are a helpful assistant who answers", " in short and plain sentences only"),
    ("Summarise the following document for", " readers who have little time today"),
    ("Please translate this text into", " another language and explain it"),
)
#: Each half, and both together.
PROBES: Final = tuple(text for a, b in _PAIRS for text in (a, b, a + b))


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message names the file and the mend."""


class FileTokenizer:
    """Counts texts with one file's tokenizer. `bias` is what a cut between two words costs, in tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bias = bias_of(self.counts(PROBES))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without what a model wants around it."""
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [len(each) for each in self._tokenizer.encode_batch_fast(whole, add_special_tokens=False)]


def bias_of(told: Sequence[int]) -> float:
    """Tokens that a cut between two words adds, by the counts of PROBES.

    0 for byte-level BPE, about 1 where each text gets a blank, or a token of its own, in front.
    """
    each = [told[i] + told[i + 1] - told[i + 2] for i in range(0, len(told), 3)]
    return sum(each) / len(each)


def load(path: Path) -> FileTokenizer:
    """The tokenizer in a file. Raises TokenizerError."""
    if missing("tokenizers"):
        raise TokenizerError(needed("tokenizers", by="a pool's tokenizer", instead="leave it out"))
    # It would count with every core of the machine, and warn at each fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            # A pipe or a device may never end.
            raise TokenizerError(f"{path}: is no file; write the path of the model's tokenizer.json")
        size = found.st_size
        if size > FILE_BYTES_MAX:
            raise TokenizerError(f"{path}: has {size} bytes; at most {FILE_BYTES_MAX} are read")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read: {error.strerror}; write the path of the model's tokenizer.json"
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:
        # The package raises bare Exceptions.
        raise TokenizerError(
            f"{path}: is no tokenizer.json ({str(error)[:120]}); copy it anew from the model's folder"
        ) from error
    # A file may say that prompts are cut off, or filled up: a count must do neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FileTokenizer(tokenizer)
