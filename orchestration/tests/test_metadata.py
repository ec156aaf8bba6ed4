import pytest

from gpt2_orchestration.pipelines.settings import PostgresMetadata
from gpt2_orchestration.pipelines.specification import SpecificationError
from gpt2_orchestration.runners.airflow.settings import AirflowSettings


def test_the_address_of_a_metadata_database_is_read_once():
    settings = AirflowSettings.from_environment({"GPT2_METADATA_URL": "postgresql://gpt2@db.example.com/tfx"})
    assert settings.metadata == PostgresMetadata(host="db.example.com", port=5432, user="gpt2", database="tfx")
    assert AirflowSettings.from_environment({}).metadata is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://gpt2:secret@db/tfx", "must not contain a password; set PGPASSWORD"),
        ("mysql://gpt2@db/tfx", "must be postgresql://"),
        ("postgresql://db/tfx", "must be postgresql://"),
        ("postgresql://gpt2@db", "must be postgresql://"),
        ("postgresql://gpt2@db:many/tfx", "is not a valid URL"),
    ],
)
def test_a_wrong_address_is_refused_without_the_secret_in_it(url, words):
    with pytest.raises(SpecificationError, match=words) as error:
        PostgresMetadata.parse(url)
    assert "secret" not in str(error.value)
