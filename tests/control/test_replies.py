"""What Envoy says by itself, against what the service says of the same status: one table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import ResponseMapper

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.load import loads
from extproc.control.replies import WHERE, local_reply_config, replies
from extproc.core.errors import GATEWAY_ERROR, Error
from extproc.core.outcome import Reject
from extproc.core.request import Dialect
from extproc.wire.codec import immediate

CONFIG = loads("gateway: {auth: none}\npools: [{name: a, models: [m], endpoints: [{address: 10.0.0.3:1}]}]")
MAPPERS = local_reply_config(CONFIG).mappers
REPLIES = replies(CONFIG.gateway.body_bytes_max)
FLAGS = ("", "UH", "NC", "UO", "UF", "URX", "UC", "UR", "UT", "SI")


def fits(mapper: ResponseMapper, status: int, flag: str, dialect: Dialect) -> bool:
    """Whether Envoy would take this one, as it reads the filters."""
    assert mapper.filter is not None
    both = mapper.filter.and_filter
    for each in both.filters if both is not None else [mapper.filter]:
        if each.extension_filter is not None:
            expression = each.extension_filter.typed_config
            for where in (Dialect.OPENAI, Dialect.ANTHROPIC):
                if WHERE[where].encode() in expression.value and dialect is not where:
                    return False
        elif each.response_flag_filter is not None:
            if flag not in each.response_flag_filter.flags:
                return False
        else:
            assert each.status_code_filter is not None
            comparison = each.status_code_filter.comparison
            assert comparison is not None
            assert comparison.value is not None
            bound = comparison.value.default_value
            if not {"EQ": status == bound, "GE": status >= bound, "LE": status <= bound}[comparison.op.name]:
                return False
    return True


def envoys(status: int, flag: str, dialect: Dialect) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of Envoy's own answer: those of the first mapper that fits."""
    mapper = next(each for each in MAPPERS if fits(each, status, flag, dialect))
    said = mapper.body_format_override
    assert said is not None
    assert said.json_format is not None
    headers = {each.header.key: each.header.value for each in mapper.headers_to_add if each.header}
    return said.json_format.to_dict(), {"content-type": said.content_type, **headers}


def services(refused: Reject, dialect: Dialect) -> tuple[dict[str, Any], dict[str, str]]:
    """The same of the service's answer."""
    out = pb.ProcessingResponse.FromString(immediate(refused, dialect)).immediate_response
    headers = {each.header.key: each.header.raw_value.decode() for each in out.headers.set_headers}
    headers.pop("www-authenticate", None)
    return json.loads(out.body), headers


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("status", range(400, 600))
def test_envoy_says_of_a_status_what_the_service_says(status: int, dialect: Dialect) -> None:
    """The type in either dialect, whatever Envoy's reason: clients choose their exception by it."""
    for flag in FLAGS:
        body, headers = envoys(status, flag, dialect)
        reply = next(each for each in REPLIES if each.body(dialect) == body)
        known = next((each for each in Error if (each.status, each.code) == (status, reply.code)), None)
        assert known is not None or reply.code == GATEWAY_ERROR
        wait_s = known.retry_after_s if known is not None else None
        refused = Reject(status=status, code=reply.code, message=reply.message, retry_after_s=wait_s)
        assert (body, headers) == services(refused, dialect)


@pytest.mark.parametrize("dialect", Dialect)
def test_the_same_error_has_the_same_words(dialect: Dialect) -> None:
    """Whether Envoy or the service meets it first: a body that is too large, a sender that is too slow."""
    too_large = Error.BODY_TOO_LARGE.reject(bytes=CONFIG.gateway.body_bytes_max)
    assert envoys(413, "", dialect) == services(too_large, dialect)
    assert envoys(408, "", dialect) == services(Error.REQUEST_TIMEOUT.reject(), dialect)
    assert envoys(503, "UH", dialect) == services(Error.NO_READY_ENDPOINT.reject(), dialect)
