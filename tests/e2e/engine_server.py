"""A real engine: llama.cpp's own HTTP server from xllamacpp, one thread, with the weights given.

Run as a process of its own: `python engine_server.py WEIGHTS PORT [embedding]`; serves until killed.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main() -> None:
    """Load the weights and serve."""
    weights, port = sys.argv[1], int(sys.argv[2])
    embeds = sys.argv[3:] == ["embedding"]
    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 4096
    params.n_parallel = 2
    params.endpoint_metrics = True
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    if embeds:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = 512
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
