"""All that a service finds wrong with a request: by the rules of the protos, and by its own function."""

from gpt2_common.jobs.checks import merge_violations
from gpt2_rules import violations


def request_problems(request, own=()):
    return merge_violations(violations(request), own)
