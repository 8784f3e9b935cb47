"""What an event says of workers, and what a command says to them."""

from collections.abc import Sequence

from scheduler.coordinator.events import (
    Answer,
    Answers,
    Command,
    Event,
    WorkerReported,
    WorkersReported,
)
from worker.protocol import Grant, Report


def reports_of(event: Event) -> Sequence[Report]:
    """Return the reports that an event is."""
    if isinstance(event, WorkerReported):
        return (event.report,)
    return event.reports if isinstance(event, WorkersReported) else ()


def grants_of(commands: Sequence[Command]) -> list[Grant]:
    """Return the answers among commands, in the order of the reports."""
    grants: list[Grant] = []
    for command in commands:
        if isinstance(command, Answer):
            grants.append(command.grant)
        elif isinstance(command, Answers):
            grants += command.grants
    return grants
