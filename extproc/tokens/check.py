"""What is wrong with the tokenizers that a configuration names, before anybody serves with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from extproc.config.model import Config
from extproc.tokens.tokenizer import TokenizerError, load


def wrong_tokenizers(config: Config) -> Iterator[str]:
    """Each as `PATH: FILE: what is wrong; what to write instead`. The files are read."""
    for i, pool in enumerate(config.pools):
        tokenizer = pool.tokenizer
        if tokenizer is None or tokenizer.path is None:
            continue
        try:
            load(Path(tokenizer.path))
        except TokenizerError as error:
            yield f"pools[{i}].tokenizer.path: {error}; until then prompts are estimated"
