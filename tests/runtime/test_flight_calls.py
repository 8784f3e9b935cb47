"""What a client hears of a handler that fails: what is of use to it, and no file of the server."""

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from runtime.flight_calls import only_flight_errors


class Failing(flight.FlightServerBase):  # type: ignore[misc]
    """Each action raises the error of its name."""

    def do_action(self, context: object, action: flight.Action) -> None:
        with only_flight_errors():
            raise {
                "flight": flight.FlightUnavailableError("come again"),
                "arrow": pa.ArrowInvalid("no such column"),
                "key": KeyError("secret"),
            }[action.type]


@pytest.mark.parametrize(
    ("raised", "arrives", "text"),
    [
        ("flight", flight.FlightUnavailableError, "come again"),
        ("arrow", flight.FlightServerError, "what was sent can't be read: no such column"),
        ("key", flight.FlightInternalError, "the server failed at this call; its log says at what"),
    ],
)
def test_an_error_arrives_as_text_and_without_the_servers_traceback(
    raised: str, arrives: type[Exception], text: str
) -> None:
    with Failing("grpc://127.0.0.1:0") as server:
        client = flight.connect(f"grpc://127.0.0.1:{server.port}")
        with pytest.raises(arrives) as heard:
            list(client.do_action(flight.Action(raised, b"")))
        client.close()

    assert str(heard.value).startswith(text)
    assert not any(word in str(heard.value) for word in ("Traceback", ".py", "secret"))


def test_what_does_not_fail_goes_through() -> None:
    with only_flight_errors():
        seen = 1
    assert seen == 1
