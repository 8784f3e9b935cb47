"""Many reports, or their grants, in one message: columns, not a list of objects. No pickle.

    body = msgpack [columns of int64, columns of float64, what few of them have]

A column has a value of each report, of each token that one names, or of each batch that has ended.
What few have (scores, rows, figures of a process) comes with the number of whom it is of. Lengths
are checked against those of the bytes before anything is made of them.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar, get_args

import msgpack
import numpy as np

from ps.messages.wire import WireError
from runtime.process_figures import NOT_MEASURED, ProcessFigures
from runtime.typed import decoder_of
from worker.control_wire import plain, unpacked
from worker.data.arrived import BatchRows
from worker.protocol import (
    MAX_TOKENS,
    Evaluation,
    Finished,
    Grant,
    Outcome,
    Report,
    SkipReason,
    StageName,
    Token,
    TokenKind,
)

# Of one message. A relay passes on what is more in the next one.
MAX_REPORTS = 1024
# A report of one frame of its own may take most of it.
MAX_BUNDLE_BYTES = (16 << 20) + (4 << 20)
_MAX_TEXT_BYTES = 1 << 20
_MAX_NAMED = MAX_REPORTS * MAX_TOKENS

T = TypeVar("T")
Identity = tuple[TokenKind, int, int]

_KINDS: dict[int, TokenKind] = dict(enumerate(get_args(TokenKind)))
_OUTCOMES: dict[int, Outcome] = dict(enumerate(get_args(Outcome)))
_REASONS: dict[int, SkipReason | None] = dict(enumerate((None, *get_args(SkipReason))))
_STAGES: dict[int, StageName] = dict(enumerate(get_args(StageName)))
_KIND = {name: code for code, name in _KINDS.items()}
_OUTCOME = {name: code for code, name in _OUTCOMES.items()}
_REASON = {name: code for code, name in _REASONS.items()}
_STAGE = {name: code for code, name in _STAGES.items()}

_decode_scores = decoder_of(tuple[tuple[int, Evaluation], ...])
_decode_figures = decoder_of(tuple[tuple[int, ProcessFigures], ...])
_decode_rows = decoder_of(tuple[tuple[int, tuple[BatchRows, ...]], ...])


def pack_reports(reports: Sequence[Report]) -> bytes:
    """Return the body of a message of reports, MAX_REPORTS at most."""
    finished = [each for report in reports for each in report.finished]
    held = [identity for report in reports for identity in report.held]
    tokens = [each.token for each in finished]
    ints = _ints(
        [r.worker for r in reports],
        [r.incarnation for r in reports],
        [r.sequence for r in reports],
        [r.recovery_epoch for r in reports],
        [r.want for r in reports],
        [r.waiting for r in reports],
        [_STAGE[r.stage] for r in reports],
        [len(r.held) for r in reports],
        [len(r.finished) for r in reports],
        *_identities(held),
        *_tokens(tokens),
        [_OUTCOME[f.outcome] for f in finished],
        [f.samples for f in finished],
        [f.skipped for f in finished],
        [_REASON[f.reason] for f in finished],
        [f.pull_step for f in finished],
        [f.buffer_bytes for f in finished],
    )
    floats = [
        [f.loss_sum for f in finished],
        [f.seconds for f in finished],
        [f.started_at for f in finished],
    ]
    scores = [(n, f.evaluation) for n, f in enumerate(finished) if f.evaluation is not None]
    figures = [(n, r.process) for n, r in enumerate(reports) if r.process is not NOT_MEASURED]
    counts = [len(reports), len(held), len(finished)]
    columns = np.array(list(chain(*floats)), np.float64).tobytes()
    return _packed([*counts, ints, columns, scores, figures])


def unpack_reports(body: bytes) -> list[Report]:
    """Return the reports of a message; raises WireError for what is none."""
    return _unpacked(body, 7, _reports)


def _reports(
    num: int, num_held: int, num_finished: int, ints: bytes, floats: bytes, *few: Any
) -> list[Report]:
    _check_counts((num, MAX_REPORTS), (num_held, _MAX_NAMED), (num_finished, _MAX_NAMED))
    columns = _Columns(ints, "q")
    head = columns.take(num, 9)
    holds = _identities_in(columns.take(num_held, 3))
    tokens = _tokens_in(columns.take(num_finished, 6))
    ends = columns.take(num_finished, 6)
    columns.check_over()
    sums = _Columns(floats, "d")
    losses, seconds, started = sums.take(num_finished, 3)
    sums.check_over()
    scores, figures = dict(_decode_scores(few[0])), dict(_decode_figures(few[1]))
    finished = [
        Finished(
            token, _OUTCOMES[outcome], samples, skipped, _REASONS[reason], loss,
            pull_step, took, start, nbytes, scores.get(number),
        )
        for number, (
            token, outcome, samples, skipped, reason, pull_step, nbytes, loss, took, start,
        ) in enumerate(zip(tokens, *ends, losses, seconds, started, strict=True))
    ]  # fmt: skip
    reports, held_at, ended_at = [], 0, 0
    for number, (worker, incarnation, sequence, epoch, want, waiting, stage, n, m) in enumerate(
        zip(*head, strict=True)
    ):
        _check_counts((n, MAX_TOKENS), (m, MAX_TOKENS))
        held, ended = holds[held_at : held_at + n], finished[ended_at : ended_at + m]
        held_at, ended_at = held_at + n, ended_at + m
        reports.append(
            Report(
                worker, incarnation, sequence, tuple(held), tuple(ended), want, bool(waiting),
                figures.get(number, NOT_MEASURED), epoch, _STAGES[stage],
            )
        )  # fmt: skip
    _check_sums((held_at, num_held), (ended_at, num_finished))
    return reports


def pack_grants(grants: Sequence[Grant]) -> bytes:
    """Return the body of a message of the grants of reports, in their order."""
    tokens = [token for grant in grants for token in grant.tokens]
    revoked = [identity for grant in grants for identity in grant.revoked]
    ints = _ints(
        [g.sequence for g in grants],
        [g.stop for g in grants],
        [g.read_from for g in grants],
        [g.recovery_epoch for g in grants],
        [len(g.tokens) for g in grants],
        [len(g.revoked) for g in grants],
        *_tokens(tokens),
        *_identities(revoked),
    )
    rows = [(number, grant.rows) for number, grant in enumerate(grants) if grant.rows]
    return _packed([len(grants), len(tokens), len(revoked), ints, rows])


def unpack_grants(body: bytes) -> list[Grant]:
    """Return the grants of a message; raises WireError for what is none."""
    return _unpacked(body, 5, _grants)


def _grants(num: int, num_tokens: int, num_revoked: int, ints: bytes, rows: Any) -> list[Grant]:
    _check_counts((num, MAX_REPORTS), (num_tokens, _MAX_NAMED), (num_revoked, _MAX_NAMED))
    columns = _Columns(ints, "q")
    head = columns.take(num, 6)
    tokens = _tokens_in(columns.take(num_tokens, 6))
    revoked = _identities_in(columns.take(num_revoked, 3))
    columns.check_over()
    rows_of = dict(_decode_rows(rows))
    grants, given_at, revoked_at = [], 0, 0
    for number, (sequence, stop, read_from, epoch, n, m) in enumerate(zip(*head, strict=True)):
        _check_counts((n, MAX_TOKENS), (m, MAX_TOKENS))
        given, gone = tokens[given_at : given_at + n], revoked[revoked_at : revoked_at + m]
        given_at, revoked_at = given_at + n, revoked_at + m
        rest = (bool(stop), read_from, epoch, rows_of.get(number, ()))
        grants.append(Grant(sequence, tuple(given), tuple(gone), *rest))
    _check_sums((given_at, num_tokens), (revoked_at, num_revoked))
    return grants


# Columns ------------------------------------------------------------------------------------------


class _Columns:
    """Columns of numbers, one behind the other.

    Args:
        data: their bytes.
        code: of a number, as `memoryview.cast` has it.
    """

    def __init__(self, data: bytes, code: str) -> None:
        numbers: Any = memoryview(data)
        self._numbers = numbers.cast(code)
        self._at = 0

    def take(self, rows: int, columns: int) -> list[list[Any]]:
        """Return the next columns, each of so many numbers."""
        begin, self._at = self._at, self._at + rows * columns
        if self._at > len(self._numbers):
            raise ValueError("there are fewer numbers than it says")
        return [
            self._numbers[begin + rows * n : begin + rows * (n + 1)].tolist()
            for n in range(columns)
        ]

    def check_over(self) -> None:
        """Raise ValueError where there are more."""
        _check_sums((self._at, len(self._numbers)))


def _identities(identities: Sequence[Identity]) -> tuple[list[int], ...]:
    return (
        [_KIND[kind] for kind, _, _ in identities],
        [batch_id for _, batch_id, _ in identities],
        [attempt for _, _, attempt in identities],
    )


def _tokens(tokens: Sequence[Token]) -> tuple[list[int], ...]:
    return (
        [token.step for token in tokens],
        [token.batch_id for token in tokens],
        [token.attempt for token in tokens],
        [token.at_step for token in tokens],
        [token.mode_epoch for token in tokens],
        [_KIND[token.kind] for token in tokens],
    )


def _identities_in(columns: list[list[int]]) -> list[Identity]:
    return [(_KINDS[k], batch_id, attempt) for k, batch_id, attempt in zip(*columns, strict=True)]


def _tokens_in(columns: list[list[int]]) -> list[Token]:
    return [
        Token(step, batch_id, attempt, at_step, mode_epoch, _KINDS[kind])
        for step, batch_id, attempt, at_step, mode_epoch, kind in zip(*columns, strict=True)
    ]


def _ints(*columns: Iterable[int]) -> bytes:
    return np.array(list(chain(*columns)), np.int64).tobytes()


def _packed(fields: list[Any]) -> bytes:
    body: bytes = msgpack.packb(fields, default=plain)
    if len(body) > MAX_BUNDLE_BYTES:
        raise ValueError(
            f"a message of reports would take {len(body)} bytes, a frame holds {MAX_BUNDLE_BYTES}."
            " Use smaller batches"
        )
    return body


def _unpacked(body: bytes, num_fields: int, made_of: Callable[..., list[T]]) -> list[T]:
    try:
        fields = unpacked(body, max_text_bytes=_MAX_TEXT_BYTES)
        if type(fields) is not list or len(fields) != num_fields:
            raise ValueError(f"it has not {num_fields} fields")
        return made_of(*fields)
    except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException) as error:
        raise WireError(f"a message of reports that can't be read: {error}") from error


def _check_counts(*counts: tuple[Any, int]) -> None:
    for count, limit in counts:
        if type(count) is not int or not 0 <= count <= limit:
            raise ValueError(f"a count of {count!r} is not in 0 to {limit}")


def _check_sums(*sums: tuple[int, int]) -> None:
    for one, other in sums:
        if one != other:
            raise ValueError(f"it has {other} of what it says that are {one}")
