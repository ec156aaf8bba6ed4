"""What the containers may reach, show and write."""

from pathlib import Path

import pytest

_LOOPBACK = "127.0.0.1"
# Kafka's image writes its configuration and its log beside its programs.
_WRITTEN = {"kafka": ("/opt/kafka/config", "/opt/kafka/logs")}


@pytest.fixture(scope="module")
def secrets(stack) -> set[str]:
    """All secrets that the first start has made."""
    show = "bash -c 'for file in /secrets/all/*; do cat $file; echo; done'"
    found = set(stack.compose("run", "--rm", "-T", "--entrypoint", show, "prepare").split())
    assert len(found) > 5
    return found


def test_no_secret_can_be_read_from_the_engine(stack, secrets):
    seen = {
        name: [text for text in (str(container.details),) for secret in secrets if secret in text]
        for name, container in stack.containers().items()
    }
    assert sorted(name for name, texts in seen.items() if texts) == []


def test_no_secret_is_in_a_log(stack, secrets):
    logs = {name: stack.logs(name) for name in stack.containers()}
    assert sorted(name for name, log in logs.items() if any(secret in log for secret in secrets)) == []


def test_ports_are_published_on_loopback_alone(stack):
    published = {
        (name, port, binding["HostIp"])
        for name, container in stack.containers().items()
        for port, bindings in (container.details["NetworkSettings"]["Ports"] or {}).items()
        for binding in bindings or ()
    }
    assert published
    assert {item for item in published if item[2] != _LOOPBACK} == set()


def test_no_container_is_privileged_or_grows_without_bounds(stack):
    for name, container in stack.containers().items():
        settings = container.details["HostConfig"]
        assert not settings["Privileged"], name
        assert settings["Memory"] > 0, f"{name} has no limit of memory"
        assert (settings["PidsLimit"] or 0) > 0, f"{name} has no limit of processes"
        assert settings["CapDrop"] == ["ALL"], name
        assert any("no-new-privileges" in option for option in settings["SecurityOpt"] or ()), name
        assert settings["LogConfig"]["Config"].get("max-size"), f"{name}'s log is never rotated"


def test_nothing_is_written_outside_volumes_and_memory(stack):
    """Only places to mount at appear in a container's own layer."""
    changed = {}
    for name, container in stack.containers().items():
        mounts = {mount["Destination"] for mount in container.details["Mounts"]}
        mounts |= set(container.details["HostConfig"].get("Tmpfs") or ())
        known = (*mounts, *_WRITTEN.get(name, ()))
        places = {str(parent) for place in known for parent in (Path(place), *Path(place).parents)}
        lines = stack.run(["docker", "diff", container.name]).splitlines()
        paths = [line.split(" ", 1)[1] for line in lines]
        if found := [path for path in paths if path not in places and not path.startswith(_WRITTEN.get(name, ()))]:
            changed[name] = found[:5]
    assert changed == {}
