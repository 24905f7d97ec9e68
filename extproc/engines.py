"""One row an engine: what routing must know of each kind of model server.

Owns their names and traits. What an engine's pages, its health and its metrics mean is its adapter's, in
agents/steersman_agent/engines, by the same names (tests/test_engines.py holds the two equal); a package adds
both with one entry point (docs/plugins.md). The core asks for rows that are known (`traits_of`); packages are
looked for only where a file or a command names an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from extproc import plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """An engine's traits. The defaults are what most engines do; of one that nobody knows they are taken."""

    name: str
    #: As its users write it.
    title: str = ""
    #: What is above its limit waits in a queue of its own; else it is refused inside a 200 answer, where no
    #: retry can help.
    queues: bool = True
    #: It caches a prompt when it is prefilled, not when its request ends.
    caches_at_prefill: bool = True
    #: Which of OpenAI's two bounds on the output it obeys where both are given: the other where this one is 0
    #: or missing; "largest" where that differs by version, or it refuses both together.
    obeys: Literal["largest", "max_tokens", "max_completion_tokens"] = "largest"
    #: A bound of its own, `n_predict`, goes before both.
    n_predict: bool = False
    #: It can say the usage with every chunk of a stream (`continuous_usage_stats`).
    usage_each: bool = False
    #: Its streams of plain completions always end with their usage, asked for or not.
    usage_in_completions: bool = False
    #: A model that it does not serve is answered with 404; others take any name.
    strict_models: bool = False
    #: Its status for JSON on OpenAI's routes that is no request.
    unfit_status: int = 400
    #: The field in which its /tokenize takes a text.
    tokenize_field: Literal["inputs", "prompt", "content"] = "prompt"
    #: Its two calls that load and unload a LoRA adapter, by path; "" where it has none.
    load_adapter: str = ""
    unload_adapter: str = ""
    #: Its routes want an adapter as BASE:ADAPTER, and serve the base for the adapter's name alone.
    adapters_by_base: bool = False
    #: Its flag for the requests it runs at once, where none of its pages tells the number.
    limit_flag: str = ""


ENGINES: Final[Mapping[str, EngineRow]] = {
    row.name: row
    for row in (
        EngineRow(
            name="tgi",
            title="TGI",
            queues=False,
            caches_at_prefill=False,
            usage_in_completions=True,
            unfit_status=422,
            tokenize_field="inputs",
        ),
        EngineRow(
            name="vllm",
            title="vLLM",
            obeys="max_completion_tokens",
            usage_each=True,
            strict_models=True,
            load_adapter="/v1/load_lora_adapter",
            unload_adapter="/v1/unload_lora_adapter",
            limit_flag="--max-num-seqs",
        ),
        # It took over vLLM's option for the usage.
        EngineRow(
            name="sglang",
            title="SGLang",
            obeys="max_tokens",
            usage_each=True,
            strict_models=True,
            adapters_by_base=True,
            load_adapter="/load_lora_adapter",
            unload_adapter="/unload_lora_adapter",
        ),
        EngineRow(name="llamacpp", title="llama.cpp", n_predict=True, tokenize_field="content"),
    )
}
#: What a pool runs that does not say it.
DEFAULT: Final = "tgi"

#: Rows of packages, once they were asked for.
_added: dict[str, EngineRow] = {}


def names() -> tuple[str, ...]:
    """Every engine that a pool may name: those here, then what packages add."""
    return (*ENGINES, *(name for name in plugins.names("engine") if name not in ENGINES))


def titles() -> str:
    """All of them as a person reads them: "TGI, vLLM, SGLang or llama.cpp"."""
    *most, last = [named(name).title or name for name in names()]
    return f"{', '.join(most)} or {last}"


def named(name: str) -> EngineRow:
    """An engine's row. Raises KeyError for a name that nobody has, PluginError for a package's fault."""
    row = ENGINES.get(name) or _added.get(name)
    if row is None:
        adapter = plugins.load("engine", name)
        try:
            row = _added[name] = EngineRow(name=name, **adapter.traits)  # type: ignore[attr-defined]
        except AttributeError:
            raise plugins.unfit("engine", name, "it is no EngineAdapter") from None
        except TypeError as error:
            raise plugins.unfit("engine", name, f"its traits: {error}") from None
    return row


def traits_of(name: str) -> EngineRow:
    """The same where a name was taken before: one that nobody has (of a recording) is as most engines are."""
    return ENGINES.get(name) or _added.get(name) or EngineRow(name=name)
