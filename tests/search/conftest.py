from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items):
    """`archsearch.search` silences this warning of Optuna; pytest makes it an error again."""
    quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(quiet)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As in a worker: sums depend on the number of threads in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
