"""The state of a job in a manifest, from which another coordinator goes on."""

import json
from random import Random
from typing import Any

from fuzzing.frames import new_coordinator
from fuzzing.mutations import changed_value
from fuzzing.run import Target, WrongResultError
from runtime.process_figures import NOT_MEASURED
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import Answer, RecordsApplied, SendRecords, WorkerReported
from worker.protocol import Finished, Report, Token


class JobStates:
    """States of a coordinator at several steps, changed."""

    def __init__(self) -> None:
        coordinator = new_coordinator()
        self._states = []
        for _ in range(8):
            _train(coordinator, batches=5)
            self._states.append(coordinator.state().to_json())

    def target(self) -> Target:
        return Target("job-states", self.make, self.read, (ValueError,))

    def make(self, rng: Random) -> Any:
        data = changed_value(rng.choice(self._states), rng)
        try:
            return json.loads(json.dumps(data, allow_nan=True))
        except RecursionError:
            return None

    def read(self, data: Any) -> str:
        state = CoordinatorState.from_json(data)
        if CoordinatorState.from_json(state.to_json()).to_json() != state.to_json():
            raise WrongResultError(f"{state} is another one when it is written and read")
        coordinator = new_coordinator(state)
        _train(coordinator, batches=5)
        return "goes on"


def _train(coordinator: Coordinator, *, batches: int) -> None:
    """Let one worker train so many batches, and the shard apply what that orders."""
    finished: tuple[Finished, ...] = ()
    held: tuple[Token, ...] = ()
    for number in range(batches):
        report = Report(
            worker=0,
            incarnation=coordinator.step,
            sequence=number + 1,
            held=tuple(token.identity for token in held),
            finished=finished,
            want=1,
            process=NOT_MEASURED,
        )
        finished = ()
        for command in coordinator.handle(WorkerReported(report), float(number)):
            if isinstance(command, Answer):
                held = command.grant.tokens
                finished = tuple(Finished(token, "done", samples=10) for token in held)
            elif isinstance(command, SendRecords):
                for record in command.records:
                    coordinator.handle(RecordsApplied(0, record.step + 1), float(number))
