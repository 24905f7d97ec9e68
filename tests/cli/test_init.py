"""`steersman init`: what backends say, as a configuration; servers here answer as each engine does."""

from __future__ import annotations

import importlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from extproc.cli import group
from extproc.config.load import load
from extproc.core.tenant import hash_key
from extproc.supervise.ports import free_ports

Pages = dict[str, Any]

TGI: Pages = {
    "/health": "",
    "/info": {
        "model_id": "meta-llama/Llama-3.1-8B-Instruct", "max_concurrent_requests": 64,
        "max_batch_prefill_tokens": 8192, "version": "3.3.7",
    },
}  # fmt: skip
VLLM: Pages = {
    "/health": "",
    "/version": {"version": "0.11.0"},
    "/v1/models": {"data": [{"id": "Qwen/Qwen2.5-7B"}, {"id": "sql-lora", "parent": "Qwen/Qwen2.5-7B"}]},
}
SGLANG: Pages = {
    "/health": "",
    "/get_model_info": {"model_path": "/weights/mistral"},
    "/get_server_info": {"max_total_num_tokens": 200_000, "max_running_requests": 48, "version": "0.5.1"},
    "/v1/models": {"data": [{"id": "mistral"}]},
}
LLAMACPP: Pages = {
    "/health": {"status": "ok"},
    "/props": {
        "total_slots": 2,
        "default_generation_settings": {"n_ctx": 2048},
        "model_path": "/w/smol.gguf",
    },
    "/v1/models": {"data": [{"id": "smollm2"}]},
}
STRANGER: Pages = {"/health": "", "/": "hello"}
#: An API like OpenAI's that says not what it is.
ANONYMOUS: Pages = {"/v1/models": {"data": [{"id": "gpt-oss"}]}}


@contextmanager
def serving(pages: Pages, *, key: str = "", tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server of pages, for who has the key; its ip:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            if key and self.headers["authorization"] != f"Bearer {key}":
                page = 401
            status = page if isinstance(page, int) else 404 if page is None else 200
            text = "" if page is None or isinstance(page, int) else page
            data = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def init(file: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(group, ["init", "-o", str(file), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("pages", "engine", "models", "max_concurrent", "kv_tokens"),
    [
        (TGI, "tgi", ["meta-llama/Llama-3.1-8B-Instruct"], 64, None),
        (VLLM, "vllm", ["Qwen/Qwen2.5-7B", "sql-lora"], 128, None),
        (SGLANG, "sglang", ["mistral"], 48, 200_000),
        (LLAMACPP, "llamacpp", ["smollm2"], 2, 2048),
    ],
    ids=["tgi", "vllm", "sglang", "llamacpp"],
)
def test_each_engine_is_known_by_what_it_says(
    servers: ExitStack,
    tmp_path: Path,
    pages: Pages,
    engine: str,
    models: list[str],
    max_concurrent: int,
    kv_tokens: int,
) -> None:
    """Engine, models, permits and KV; the file loads and has them."""
    address = servers.enter_context(serving(pages))
    file = tmp_path / "steersman.yaml"
    result = init(file, address)
    assert (result.exit_code, result.stderr) == (0, "")
    config = load(file)
    assert not config.gateway.debug_headers, "which replica served is not every client's to know"
    pool = config.pools[0]
    assert (pool.engine, pool.models) == (engine, models)
    endpoint = pool.endpoints[0]
    assert (endpoint.address, endpoint.max_concurrent) == (address, max_concurrent)
    assert endpoint.kv_capacity_tokens == kv_tokens
    if pages is TGI:
        assert pool.prefill_budget_tokens == 8192


def test_replicas_of_a_model_are_one_pool(servers: ExitStack, tmp_path: Path) -> None:
    """Two of one model and one of another: two pools, the same address once, localhost as 127.0.0.1."""
    first, second = servers.enter_context(serving(TGI)), servers.enter_context(serving(TGI))
    other = servers.enter_context(serving(LLAMACPP))
    file = tmp_path / "steersman.yaml"
    result = init(file, first, f"http://{second}/", other, f"localhost:{first.rpartition(':')[2]}")
    assert result.exit_code == 0, result.output
    pools = load(file).pools
    assert [(pool.name, [each.address for each in pool.endpoints]) for pool in pools] == [
        ("llama-3.1-8b-instruct", [first, second]),
        ("smollm2", [other]),
    ]


def test_the_key_is_shown_once_and_its_hash_is_in_the_file(servers: ExitStack, tmp_path: Path) -> None:
    """JSON has it for scripts; the file has no trace of it."""
    file = tmp_path / "steersman.yaml"
    result = init(file, servers.enter_context(serving(TGI)), "--tenant", "acme", "--json")
    told = json.loads(result.stdout)
    tenant = load(file).tenants[0]
    assert (tenant.name, tenant.keys[0].sha256) == ("acme", hash_key(told["key"]))
    assert told["key"] not in file.read_text()
    assert told["pools"][0]["engine"] == "tgi"
    assert told["url"] == f"http://{load(file).gateway.listen}"


def test_a_file_that_is_there_is_left_alone(servers: ExitStack, tmp_path: Path) -> None:
    """Exit 1 without asking anybody; --force writes over it."""
    address = servers.enter_context(serving(TGI))
    file = tmp_path / "steersman.yaml"
    file.write_text("mine")
    result = init(file, address)
    assert (result.exit_code, result.stdout, file.read_text()) == (1, "", "mine")
    assert "--force" in result.stderr
    assert init(file, address, "--force").exit_code == 0
    assert load(file).pools


def test_everything_that_does_not_answer_is_named(servers: ExitStack, tmp_path: Path) -> None:
    """All of them at once, and the way to say it by hand; nothing is written."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    strange = servers.enter_context(serving(STRANGER))
    file = tmp_path / "steersman.yaml"
    result = init(file, dead, strange, servers.enter_context(serving(TGI)))
    assert (result.exit_code, result.stdout, file.exists()) == (1, "", False)
    assert result.stderr.splitlines() == [
        f"{dead} does not answer: Connection refused",
        f"{strange} answers, but is no TGI, vLLM, SGLang or llama.cpp server that says so",
        "nothing was written; start what does not answer, or say what it is with --engine and --model",
    ]


def test_an_engine_that_loads_its_model_is_waited_for(
    servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 503 until then; the file is of what it says afterwards."""
    pages: Pages = {"/health": 503}
    address = servers.enter_context(serving(pages))
    module = importlib.import_module("extproc.cli.init")
    monkeypatch.setattr(module.time, "sleep", lambda _: pages.update(LLAMACPP))
    result = init(tmp_path / "steersman.yaml", address)
    assert result.exit_code == 0, result.output
    assert "waiting for it" in result.stderr
    assert load(tmp_path / "steersman.yaml").pools[0].engine == "llamacpp"


def test_what_cannot_be_asked_is_said_by_hand(servers: ExitStack, tmp_path: Path) -> None:
    """A dead one needs both; one that lists its models the engine alone."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    file = tmp_path / "steersman.yaml"
    result = init(file, dead, "--engine", "tgi", "--model", "llama")
    assert result.exit_code == 0
    assert "taken as tgi, as you say" in result.stderr
    assert load(file).pools[0].models == ["llama"]
    anonymous = servers.enter_context(serving(ANONYMOUS))
    assert init(file, anonymous, "--engine", "vllm", "--force").exit_code == 0
    assert (load(file).pools[0].engine, load(file).pools[0].models) == ("vllm", ["gpt-oss"])


def test_one_model_on_two_engines_is_refused(servers: ExitStack, tmp_path: Path) -> None:
    """A pool's replicas are alike; the message says what to do."""
    sglang = {**SGLANG, "/v1/models": VLLM["/v1/models"]}
    file = tmp_path / "steersman.yaml"
    result = init(file, servers.enter_context(serving(VLLM)), servers.enter_context(serving(sglang)))
    assert (result.exit_code, file.exists()) == (1, False)
    assert "Qwen/Qwen2.5-7B is served by vllm at" in result.stderr
    assert "run init for one kind" in result.stderr


def test_a_host_name_may_stay_one(
    servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dns: the name goes into discovery; without, its addresses do, with the name beside them."""
    port = int(servers.enter_context(serving(TGI)).rpartition(":")[2])
    told = [(0, 0, 0, "", ("127.0.0.1", port))]
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **named: Any) -> Any:
        return told if host == "gpus.example" else real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    file = tmp_path / "steersman.yaml"
    assert init(file, f"gpus.example:{port}").exit_code == 0
    assert load(file).pools[0].endpoints[0].address == f"127.0.0.1:{port}"
    assert "gpus.example" in file.read_text()
    assert init(file, f"gpus.example:{port}", "--dns", "--force").exit_code == 0
    pool = load(file).pools[0]
    assert pool.endpoints == []
    assert (pool.discovery.dns[0].name, pool.discovery.dns[0].port) == ("gpus.example", port)


def test_a_backend_behind_tls_with_a_key(
    servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked as it will be reached, and the file says how; of what is wrong nothing is written."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    out = [
        "-keyout",
        "key.pem",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=llm.test",
        "-addext",
        "subjectAltName=DNS:llm.test",
    ]
    subprocess.run([*new, *out], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    pages = {f"/openai{path}": page for path, page in VLLM.items()}
    port = servers.enter_context(serving(pages, key="sk-engine", tls=context)).rpartition(":")[2]
    (tmp_path / "key").write_text("sk-engine\n")
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: real("127.0.0.1" if host == "llm.test" else host, *more, **named),
    )
    file, url = tmp_path / "steersman.yaml", f"https://llm.test:{port}/openai/v1"
    strange = init(file, url)
    assert strange.exit_code == 1
    assert "an authority that upstream.tls.ca does not hold" in strange.stderr
    keyless = init(file, url, "--ca", str(tmp_path / "ca.pem"))
    assert keyless.exit_code == 1
    assert "wants a key" in keyless.stderr
    assert not file.exists()
    good = init(file, url, "--ca", str(tmp_path / "ca.pem"), "--engine-key-file", str(tmp_path / "key"))
    assert good.exit_code == 0, good.stderr
    (pool,) = load(file).pools
    assert (pool.endpoints[0].address, pool.engine) == (f"llm.test:{port}", "vllm")
    assert pool.upstream.tls is not None
    assert pool.upstream.tls.ca == str(tmp_path / "ca.pem")
    assert (pool.upstream.path_prefix, pool.upstream.key and pool.upstream.key.file) == (
        "/openai",
        str(tmp_path / "key"),
    )
    assert "sk-engine" not in file.read_text() + good.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the backends"),
        (["10.0.0.1"], "has no port; write 10.0.0.1:8080"),
        (["https://10.0.0.1:443"], "a certificate has a name; write https://NAME"),
        (["ftp://10.0.0.1"], "is no backend"),
        (["10.0.0.1:99999"], "is no backend"),
        (["http://"], "is no backend"),
    ],
)
def test_what_is_no_backend_is_wrong_usage(tmp_path: Path, arguments: list[str], said: str) -> None:
    """Exit 2, before anybody is asked."""
    result = init(tmp_path / "steersman.yaml", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_it_can_be_printed(servers: ExitStack, tmp_path: Path) -> None:
    """-o -: the file on standard output, the key on standard error."""
    address = servers.enter_context(serving(VLLM))
    result = CliRunner().invoke(group, ["init", address, "-o", "-", "--listen", "0.0.0.0:8000"])
    assert result.exit_code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(result.stdout)
    config = load(file)
    assert config.gateway.listen == "0.0.0.0:8000"
    key = result.stderr.strip().rpartition(" ")[2]
    assert config.tenants[0].keys[0].sha256 == hash_key(key)


def test_a_bad_tenant_is_exit_2(servers: ExitStack, tmp_path: Path) -> None:
    """The configuration's own words; nothing is written."""
    file = tmp_path / "steersman.yaml"
    result = init(file, servers.enter_context(serving(TGI)), "--tenant", "Not A Name")
    assert (result.exit_code, file.exists()) == (2, False)
    assert "is not a name" in result.stderr


def test_editors_complete_from_the_schema_beside_the_file(servers: ExitStack, tmp_path: Path) -> None:
    """The first line names a file that is there, and by which the written configuration is good."""
    file = tmp_path / "mine.yaml"
    result = init(file, servers.enter_context(serving(TGI)))
    assert result.exit_code == 0, result.output
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert named == "mine.schema.json"
    validator = Draft202012Validator(json.loads((tmp_path / named).read_text(encoding="utf-8")))
    assert list(validator.iter_errors(yaml.safe_load(rest))) == []
    assert list(validator.iter_errors(yaml.safe_load(rest.replace("endpoints:", "endpionts:"))))
