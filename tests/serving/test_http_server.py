"""What `http_server` takes from uvicorn without a promise is still there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tellapart.serving import http_server
from tellapart.serving.http_server import Connection, ConnectionBalancer, Server, address, bind

CALLBACKS = {
    "connection_made": ["transport"], "connection_lost": ["exc"], "on_message_begin": [], "on_url": ["url"],
    "on_header": ["name", "value"], "on_headers_complete": [], "on_body": ["body"], "on_message_complete": [],
    "on_response_complete": [],
}  # fmt: skip
SERVER = {"startup": ["sockets"], "capture_signals": [], "handle_exit": ["sig", "frame"], "on_tick": ["counter"]}


@pytest.fixture
def connection() -> Iterator[HttpToolsProtocol]:
    """Return a connection of uvicorn's that nobody has made."""
    loop = asyncio.new_event_loop()
    config = uvicorn.Config(app=lambda: None, log_config=None)
    yield HttpToolsProtocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    loop.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_the_address_that_is_said_is_one_to_open(host: str):
    # Of the socket only the port counts: a container may have no IPv6.
    with bind("127.0.0.1", 0) as bound:
        shown = host if "." in host else "[::1]"
        assert address(bound, host) == f"http://{shown}:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("theirs", "ours", "methods"), [(HttpToolsProtocol, Connection, CALLBACKS), (uvicorn.Server, Server, SERVER)]
)
def test_the_methods_that_are_extended_are_uvicorns(theirs: type, ours: type, methods: dict[str, list[str]]):
    extended = {name for name, value in vars(ours).items() if inspect.isfunction(value) and hasattr(theirs, name)}
    assert extended - {"__init__"} == set(methods), "name each here that is extended, and no other"
    for name, parameters in methods.items():
        assert list(inspect.signature(getattr(theirs, name)).parameters)[1:] == parameters, name


def test_the_attributes_that_are_read_are_uvicorns(connection: HttpToolsProtocol):
    assert connection.connections is connection.server_state.connections
    assert {"transport", "loop", "cycle"} <= vars(connection).keys()
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.more_body = True" in cycle
    assert "self.response_complete = False" in cycle
    server = uvicorn.Server(connection.config)
    assert {"started", "should_exit", "force_exit"} <= vars(server).keys()


def test_a_process_lets_those_with_fewer_connections_take_the_next_one(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(http_server.time, "sleep", slept.append)
    # The third one does not run any more: nobody waits for it.
    counts = [0, 2, -1, 5]
    balancer = ConnectionBalancer(counts, 0)
    for _ in range(3):
        balancer.accepted()
    assert (counts, slept) == ([3, 2, -1, 5], []), "it has one more than it could have left to the other"
    counts[1] = 0
    for _ in range(12):
        balancer.accepted()
    assert counts[0] == 15
    assert slept[:3] == pytest.approx([0.0008, 0.0016, 0.002])
    assert max(slept) == 0.002, "however far it is ahead"
    balancer.note(1)
    assert counts[0] == 1


def test_a_connection_is_counted_as_soon_as_it_is_accepted(connection: HttpToolsProtocol):
    counts = [-1, 0]
    protocol = http_server._protocol(Connection.bounds, ConnectionBalancer(counts, 0))
    made = protocol(config=connection.config, server_state=connection.server_state, app_state={}, _loop=connection.loop)
    assert counts == [1, 0]
    assert isinstance(made, Connection)
