"""The served model, which stands alone, takes the parameters that the rules of the trainer's Generate take."""

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_registry import serving_model
from gpt2_rules import value_violations
from gpt2_rules.reading import rules_of

pytestmark = pytest.mark.process

_FIELDS = {**pb.GenerateRequest.DESCRIPTOR.fields_by_name, **pb.SamplingConfig.DESCRIPTOR.fields_by_name}
_MAX_INT32 = 2**31 - 1
_RULED = sorted(set(serving_model.NUMBERS) - {"seed"})


def refuses(name, value):
    try:
        serving_model.NUMBERS[name].check(name, value)
    except MlflowException:
        return True
    return False


@pytest.mark.parametrize("name", _RULED)
def test_numbers_have_the_bounds_of_the_rules(name):
    number, field = serving_model.NUMBERS[name], _FIELDS[name]
    whole = isinstance(number.default, int)
    below, above = (-1, 1) if whole else (-np.inf, np.inf)

    def beside(value, direction):
        return value + direction if whole else float(np.nextafter(value, direction))

    values = [
        number.default,
        number.minimum,
        beside(number.minimum, below),
        beside(number.minimum, above),
        beside(number.maximum, below),
    ]
    values += [] if whole else [float("nan"), float("inf")]
    assert [refuses(name, value) for value in values] == [bool(value_violations(field, value)) for value in values]
    assert not refuses(name, number.maximum)
    assert not value_violations(field, number.maximum)
    # Where the rule has no upper bound, the type of the model's input has one.
    if rules_of(field).number.HasField("maximum"):
        assert value_violations(field, beside(number.maximum, above))
    else:
        assert number.maximum == (_MAX_INT32 if whole else float(np.finfo(np.float32).max))


def test_stops_have_the_bound_of_the_rules():
    most = rules_of(_FIELDS["stop"]).list.max_items
    for count, is_refused in ((most, False), (most + 1, True)):
        try:
            serving_model._parameters({"stop": ["x"] * count})
        except MlflowException:
            assert is_refused
        else:
            assert not is_refused
