"""Apache Kafka as a process of the stack: how it is prepared."""

import os
import shutil
import uuid

import pytest

from gpt2_orchestration.stack import kafka_server

pytestmark = pytest.mark.process

needs_maven = pytest.mark.skipif(
    not (shutil.which("java") and shutil.which("mvn")), reason="Apache Kafka needs Java 17 and Maven"
)


@needs_maven
def test_storage_is_formatted_whatever_its_id_begins_with(tmp_path, monkeypatch):
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xf8" * 16))
    (tmp_path / "kafka").mkdir()
    java = ("java", "-cp", kafka_server.class_path(tmp_path / "kafka"))
    configuration = kafka_server.write_configuration(tmp_path / "kafka", "127.0.0.1:19092")
    kafka_server.format_storage(java, configuration, tmp_path / "kafka")
    [properties] = (tmp_path / "kafka").rglob("meta.properties")
    assert "cluster.id=-" in properties.read_text()


@needs_maven
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_storage_lies_in_its_folder_whatever_that_is_called(tmp_path, monkeypatch, locale):
    monkeypatch.setenv("LC_ALL", locale)
    folder = tmp_path / r"größe + 😀 c:\temp"
    folder.mkdir()
    java = ("java", "-cp", kafka_server.class_path(tmp_path))
    kafka_server.format_storage(java, kafka_server.write_configuration(folder, "127.0.0.1:19092"), folder)
    assert (folder / "logs" / "meta.properties").is_file()


@needs_maven
def test_a_start_in_the_same_folder_does_without_maven_until_a_jar_is_gone(tmp_path, monkeypatch):
    jars = kafka_server.class_path(tmp_path)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kafka_server.class_path(tmp_path) == jars
    [listing] = tmp_path.glob("classpath-*.txt")
    listing.write_text(f"{jars}{os.pathsep}{tmp_path / 'gone.jar'}")
    with pytest.raises(FileNotFoundError, match="mvn"):
        kafka_server.class_path(tmp_path)
    monkeypatch.setenv("PATH", path)
    assert kafka_server.class_path(tmp_path) == jars
