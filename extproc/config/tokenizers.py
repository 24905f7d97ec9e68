"""The section of a pool's tokenizer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from extproc.config.section import Section


class PoolTokenizer(Section):
    """How a pool's prompts are counted: by the model's own tokenizer.json, or by its engine."""

    path: str | None = Field(default=None, min_length=1, max_length=4_096)
    """The model's tokenizer.json (the extra `tokenizers` reads it). Either this or source."""
    source: Literal["engine"] | None = None
    """'engine': a replica's /tokenize is asked, beside the requests and once a text."""
    context_tokens: int = Field(default=0, ge=0, le=100_000_000)
    """Tokens of prompt and answer together that the model takes (vLLM's max_model_len, TGI's
    max_total_tokens). What is counted above it is refused with 400 before it takes a place; 0: the engine
    alone says so. Not for engines that cut long answers short instead (llama.cpp)."""
    bytes_max: int = Field(default=16 * 1024 * 1024, ge=64 * 1024, le=16 * 1024**3)
    """Memory for counts that are kept (about 240 bytes a text or block of 1,024 characters); above it the
    least recently used go."""
    inline_bytes: int = Field(default=0, ge=0, le=4_096)
    """Texts of at most so many characters are counted at once, on the decision's way (with a file; about 1 µs
    a character); 0 counts all in the background, for the next time. The file is read in the service then, and
    decisions wait while it is."""
    cpu_share: float = Field(default=0.25, gt=0.0, le=1.0)
    """The share of one core that the counting may take; of an engine, of the time that it may be asked."""
    error_max: float = Field(default=0.05, gt=0.0, le=1.0)
    """Counts that are further than this from what the engine tells (over the last 64 answers) are not
    gone by."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.source is None):
            raise ValueError("name one of the two: path: /models/NAME/tokenizer.json, or source: engine")
        return self
