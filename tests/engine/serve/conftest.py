from collections.abc import Iterator

import pytest
import torch
from serve_fixtures import Server, running_server, scripted_service


@pytest.fixture(scope="module")
def scripted() -> Iterator[Server]:
    """A server over the scripted engine, ready."""
    with running_server(scripted_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        yield server


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models here are tiny; waiting for a second thread on a busy machine takes longer than the work."""
    torch.set_num_threads(1)
