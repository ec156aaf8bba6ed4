"""The protocol between a service and its child processes, with a real child."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from gpt2_common.child_process import CANCEL, EXIT_ORPHANED, HEARTBEAT, TASK, ChildProcess

pytestmark = pytest.mark.process

CHILD = """
import sys, threading
from gpt2_common.child_process import ServiceConnection

service = ServiceConnection.open()
_, task = service.receive()
service.listen(lambda command, content: service.send({"received": command}), task["lease_seconds"])
print("a library prints")
service.send({"task": task})
threading.Event().wait()
"""


async def start(folder: Path, lease_seconds: float) -> ChildProcess:
    (folder / "a_child.py").write_text(CHILD)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    child = await ChildProcess.start("a_child", environment={**os.environ, "PYTHONPATH": path})
    await child.send(TASK, {"lease_seconds": lease_seconds, "text": "ü\n"})
    return child


def test_commands_and_messages_arrive_and_prints_do_not(tmp_path):
    async def converse() -> list[object]:
        child = await start(tmp_path, lease_seconds=60)
        messages = child.messages()
        found = [await anext(messages)]
        for command in (HEARTBEAT, CANCEL):
            await child.send(command)
            found.append(await anext(messages))
        child.kill()
        await child.wait()
        await child.send(CANCEL)
        return found

    task = {"lease_seconds": 60, "text": "ü\n"}
    assert asyncio.run(converse()) == [{"task": task}, {"received": HEARTBEAT}, {"received": CANCEL}]


def test_a_child_without_a_heartbeat_ends_when_its_lease_is_over(tmp_path):
    async def neglect() -> int:
        child = await start(tmp_path, lease_seconds=0.3)
        return await asyncio.wait_for(child.wait(), 60)

    assert asyncio.run(neglect()) < 0


def test_a_child_ends_when_its_service_closes_the_connection(tmp_path):
    async def leave() -> int:
        child = await start(tmp_path, lease_seconds=60)
        await anext(child.messages())
        child._process.stdin.close()
        return await asyncio.wait_for(child.wait(), 60)

    assert asyncio.run(leave()) == EXIT_ORPHANED
