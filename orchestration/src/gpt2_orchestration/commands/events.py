"""`gpt2 events`: the services' events on Kafka, and their dead letters."""

import os
from dataclasses import asdict
from typing import Annotated, Any

import typer

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.events import DEFAULT_TOPIC
from gpt2_orchestration.client.dead_letters import DeadLetter, list_letters, replay
from gpt2_orchestration.client.event_log import LoggedEvent, list_events
from gpt2_orchestration.client.jobs import state_name
from gpt2_orchestration.commands.command_groups import HelpGroup
from gpt2_orchestration.commands.configuration import KAFKA_VARIABLES, current_configuration
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.commands.tables import print_table

events = typer.Typer(cls=HelpGroup, no_args_is_help=True, help="Events on Kafka.")
letters = typer.Typer(
    cls=HelpGroup, no_args_is_help=True, help="Dead-letter topic: events that a consumer could not process."
)
events.add_typer(letters, name="dlq")

TopicOption = Annotated[str, typer.Option(envvar="GPT2_KAFKA_TOPIC", help="Topic of the events.")]
_KAFKA = "localhost:9092"
KafkaOption = Annotated[str, typer.Option(envvar="GPT2_KAFKA_BOOTSTRAP_SERVERS", help="Kafka brokers.")]


@events.command("list")
@shows_errors
def list_all(
    key: Annotated[str, typer.Option("--run", help="Only events of this run, or of this model.")] = "",
    kafka: KafkaOption = _KAFKA,
    topic: TopicOption = DEFAULT_TOPIC,
    json: JsonOption = False,
) -> None:
    """List the events in Kafka: state changes of jobs, and changes of labels."""
    _announce(kafka)
    found = list_events(kafka, topic, key)
    if json:
        print_json([_event_as_json(event) for event in found])
        return
    rows = ((event.time, event.key, event.subject, _describe(event)) for event in found)
    print_table(("time", "run or model", "of", "what"), rows)


@letters.command("list")
@shows_errors
def list_dead_letters(
    kafka: KafkaOption = _KAFKA, topic: TopicOption = DEFAULT_TOPIC, json: JsonOption = False
) -> None:
    """List dead letters and the reason for each."""
    _announce(kafka)
    found = list_letters(kafka, topic)
    if json:
        print_json([_letter_as_json(letter) for letter in found])
        return
    rows = ((letter.place, letter.time, letter.consumer, letter.reason) for letter in found)
    print_table(("place", "time", "consumer", "reason"), rows)


@letters.command("replay")
@shows_errors
def replay_dead_letters(
    places: Annotated[list[str] | None, typer.Argument(help="Places, as `list` shows them. Default: all.")] = None,
    kafka: KafkaOption = _KAFKA,
    topic: TopicOption = DEFAULT_TOPIC,
    json: JsonOption = False,
) -> None:
    """Republish dead letters to their original topic, once the cause is fixed."""
    _announce(kafka)
    chosen = [letter for letter in list_letters(kafka, topic) if not places or letter.place in places]
    count = replay(kafka, chosen)
    if json:
        print_json({"republished": count})
    else:
        print(f"republished: {count}")


def _announce(kafka: str) -> None:
    """Prints which Kafka is used, unless an option names it."""
    if kafka == (os.environ.get(KAFKA_VARIABLES[0]) or _KAFKA):
        current_configuration().announce(KAFKA_VARIABLES)


def _describe(event: LoggedEvent) -> str:
    message = event.message
    if isinstance(message, events_pb2.JobStateChanged):
        before, now = (state_name(state) for state in (message.previous_state, message.job.state))
        return now if message.previous_state == job_pb2.Job.STATE_UNSPECIFIED else f"{before} to {now}"
    if isinstance(message, events_pb2.ModelLabelChanged):
        return f"{message.label}: version {message.previous_version or 'none'} to {message.version or 'none'}"
    return event.type


def _event_as_json(event: LoggedEvent) -> dict[str, Any]:
    facts = {name: getattr(event, name) for name in ("id", "source", "time", "key", "subject", "type")}
    return {**facts, "message": as_json(event.message)}


def _letter_as_json(letter: DeadLetter) -> dict[str, Any]:
    return {name: value for name, value in asdict(letter).items() if name != "record"}
