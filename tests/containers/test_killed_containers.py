"""The main process of each container dies in the middle of a run, as for lack of memory: the run ends right."""

from .runs import finish, start_run, wait_for_job

# The moment at which a run needs a container; for all others, while it trains.
_MOMENTS = {"exporter": "ExportCorpus", "mongodb": "ExportCorpus", "tokenizer": "TrainTokenizer"}


def test_a_run_survives_the_death_of_each_container(stack, documents, tell):
    """One after the other, as a test each could not know the names of services before the file is read."""
    for service in stack.long_running():
        run_id = f"killed-{service}"
        before = stack.containers()[service]
        start_run(run_id)
        wait_for_job(run_id, _MOMENTS.get(service, "TrainModel"))
        stack.kill_main_process(service)
        finish(run_id)
        after = stack.wait_until_healthy(service)
        assert after.pid != before.pid
        tell(f"{service}: killed, {after.restarts - before.restarts} restarts, the run has ended")
