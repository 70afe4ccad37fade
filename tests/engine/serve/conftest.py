from collections.abc import Iterator

import pytest
from serve_fixtures import Server, running_server, scripted_service


@pytest.fixture(scope="module")
def scripted() -> Iterator[Server]:
    """A server over the scripted engine, ready."""
    with running_server(scripted_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        yield server
