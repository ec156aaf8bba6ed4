import shutil
import uuid

import pytest

from gpt2_orchestration.stack import kafka_server


@pytest.mark.skipif(not (shutil.which("java") and shutil.which("mvn")), reason="Apache Kafka needs Java 17 and Maven")
def test_storage_is_formatted_whatever_its_id_begins_with(tmp_path, monkeypatch):
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xf8" * 16))
    (tmp_path / "kafka").mkdir()
    java = ("java", "-cp", kafka_server.class_path(tmp_path / "kafka"))
    configuration = kafka_server.write_configuration(tmp_path / "kafka", "127.0.0.1:19092")
    kafka_server.format_storage(java, configuration, tmp_path / "kafka")
    [properties] = (tmp_path / "kafka").rglob("meta.properties")
    assert "cluster.id=-" in properties.read_text()
