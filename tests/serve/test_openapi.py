"""The published OpenAPI document: whatever it allows, and what it does not, is answered."""

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, content_type_conformance, response_schema_conformance,
    status_code_conformance,
]  # fmt: skip


def answers(operation, mode):
    """The statuses of some requests, every answer checked."""
    statuses = set()

    @settings(max_examples=25, derandomize=True)  # by chance all of a few could be refused
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        if isinstance(case.body, dict):
            if isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"
            for name, most in (("n", 3), ("max_tokens", 9), ("max_completion_tokens", 9)):
                if isinstance(case.body.get(name), int):
                    case.body[name] = min(case.body[name], most)
        answer = case.call(timeout=60)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    check()
    return statuses


@pytest.mark.slow
def test_every_operation_keeps_to_the_document(server):
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    seen = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or operation.body:  # a name may be anything
                seen[operation.path, mode.value] = answers(operation, mode)
    paths = {path for path, _ in seen}
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/models"} <= paths
    assert [p for p in paths if "{" not in p and 200 not in seen[p, "positive"]] == []
    assert 400 in seen["/v1/chat/completions", "negative"]
