"""Asks for the models through Envoy: exit code 0 when a request would be served, 1 when not.

    ask.py http://127.0.0.1:8080                       # GET /v1/models
    ask.py --model llama-3-8b http://127.0.0.1:8080    # and this one must be among them
    ask.py --path /health http://127.0.0.1:8001        # an engine

An open port is not enough: the question goes through Envoy's filters to the deciding service and back. The
key of a probing tenant comes from the file that STEERSMAN_PROBE_KEY_FILE names. Without a key a 401 in
Steersman's own words is an answer too: the way to the service and back was gone. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 2.5
ANSWER_BYTES_MAX = 4 * 1024 * 1024


def ask(
    base: str, *, path: str, model: str | None, key: str | None, context: ssl.SSLContext | None = None
) -> str:
    """Empty when all is well, else what is wrong."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(base.rstrip("/") + path, headers=headers)  # noqa: S310 (our own address)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:  # noqa: S310
            body = response.read(ANSWER_BYTES_MAX)
    except urllib.error.HTTPError as error:
        said = error.read(ANSWER_BYTES_MAX)
        if error.code == 401 and key is None and b"error" in said:
            return "" if model is None else f"401, so nobody can say whether {model} is served; give a key"
        return f"{error.code}: {said[:200].decode(errors='replace')}"
    except OSError as error:
        return str(error)
    if model is None:
        return ""
    try:
        served = [each["id"] for each in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return f"{path} is no list of models: {body[:200].decode(errors='replace')}"
    return "" if model in served else f"{model} is not among {', '.join(map(str, served)) or 'no models'}"


def main() -> int:
    """0 when it would be served, 1 when not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", help="where Envoy listens, such as http://127.0.0.1:8080")
    parser.add_argument("--path", default="/v1/models")
    parser.add_argument("--model", help="this one must be listed")
    parser.add_argument(
        "--unverified", action="store_true", help="take any certificate: this is the own pod's"
    )
    given = parser.parse_args()
    context = ssl._create_unverified_context() if given.unverified else None  # noqa: S323, SLF001
    key_file = os.environ.get("STEERSMAN_PROBE_KEY_FILE")
    key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else None
    wrong = ask(given.base, path=given.path, model=given.model, key=key, context=context)
    if wrong:
        print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
