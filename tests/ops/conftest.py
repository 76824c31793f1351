"""What every test of the ops begins with: no backend asked for, and as many threads as before."""

import pytest
import torch


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("EVOWORLD_BACKEND", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
