from pathlib import Path

import pytest
from support.evaluation import save_peer, write_table


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "test.tsv")


@pytest.fixture(scope="session")
def peer_folder(tmp_path_factory) -> Path:
    return save_peer(tmp_path_factory.mktemp("peer") / "nllb")
