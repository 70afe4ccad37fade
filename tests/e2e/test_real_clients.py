"""Real clients, where `python tests/e2e/real_clients.py` has installed them."""

import os
from pathlib import Path

import pytest
from real_clients import CLIENTS, DEFAULT_CACHE, Client

CACHE = Path(os.environ.get("SWEQ_CLIENTS", DEFAULT_CACHE))


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_does_its_work(client: Client) -> None:
    if not client.is_installed(CACHE):
        pytest.skip(f"{client.name} is not installed in {CACHE}: run python tests/e2e/real_clients.py {CACHE}")
    assert client.run(CACHE)
