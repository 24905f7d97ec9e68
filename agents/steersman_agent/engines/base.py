"""What every adapter offers, and what most engines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, ClassVar, Final

from steersman_agent.engines.exposition import names, whole
from steersman_agent.figures import About, Scrape
from steersman_agent.state import Symptom

#: Of what an engine says that it runs; a longer text is told by its hash.
REVISION_CHARACTERS_MAX: Final = 200


class EngineAdapter(ABC):
    """An engine's pages and their meaning. `about_paths` are asked in order; a page may be missing."""

    name: ClassVar[str]
    #: What routing must know of it (fields of extproc/engines.py's row), of an engine that a package adds;
    #: the rows of those here stand there.
    traits: ClassVar[Mapping[str, Any]] = {}
    #: The pages by which a server that nobody has named is known to be one.
    telling_paths: ClassVar[tuple[str, ...]]
    #: Others may show such pages too: asked last.
    told_weakly: ClassVar[bool] = False
    about_paths: ClassVar[tuple[str, ...]] = ("/v1/models",)
    #: Silence above this many milliseconds counts as a timeout, unless configured otherwise.
    timeout_ms: ClassVar[int] = 500

    @abstractmethod
    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """Whether the decoded JSON of `telling_paths` is this engine's."""

    @abstractmethod
    def scrape(self, page: bytes) -> Scrape:
        """Read `/metrics`; `ValueError` where it is not Prometheus text."""

    def about(self, pages: Mapping[str, Any]) -> About:
        """Read the decoded JSON of those of `about_paths` that were answered."""
        models = pages.get("/v1/models")
        return About(
            models=served_models(models),
            adapters=served_adapters(models),
            revision=revision_of(*roots(models)),
        )

    def health(self, status: int) -> Symptom:
        """What an answer of `/health` says."""
        return Symptom.ANSWERED if 200 <= status < 300 else Symptom.UNWELL

    def prompt(self, model: str | None) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of the lightest real request: one token.

        Plain completion, because a base model has no chat template and would refuse a chat.
        """
        body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 1, "temperature": 0}
        if model is not None:
            body["model"] = model
        return "/v1/completions", body


def served_models(page: Any) -> tuple[str, ...]:
    """The ids in OpenAI's model list; a LoRA adapter (vLLM gives it a parent) counts as a model too."""
    return names(mapping(entry).get("id") for entry in listed(mapping(page).get("data")))


def served_adapters(page: Any) -> tuple[str, ...] | None:
    """The LoRA adapters in OpenAI's model list: those with a parent. None where no entry says whether it has
    one (TGI, llama.cpp), or there are too many."""
    entries = [mapping(entry) for entry in listed(mapping(page).get("data"))]
    if not any("parent" in entry for entry in entries):
        return None
    return whole(entry.get("id") for entry in entries if entry.get("parent"))


def roots(page: Any) -> tuple[str, ...]:
    """What the ids in OpenAI's model list stand for, where it tells (vLLM: the weights); adapters' apart.

    Not `created`: some engines say there what time it is.
    """
    entries = [mapping(entry) for entry in listed(mapping(page).get("data"))]
    return names(entry.get("root") for entry in entries if not entry.get("parent"))


def revision_of(*parts: Any) -> str:
    """One text of what an engine tells of its model and itself; a hash of it where that is long."""
    text = " ".join(part for part in parts if isinstance(part, str) and part)
    if len(text) <= REVISION_CHARACTERS_MAX and text.isprintable():
        return text
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def mapping(page: Any) -> Mapping[str, Any]:
    """A JSON object as it is; empty for anything else."""
    return page if isinstance(page, dict) else {}


def listed(page: Any) -> list[Any]:
    """A JSON array as it is; empty for anything else."""
    return page if isinstance(page, list) else []
