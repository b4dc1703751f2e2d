import pytest
import torch

from packedesm.esm2.threads import one_thread

pytestmark = pytest.mark.usefixtures("one_thread")  # and afterwards as before


def test_it_is_one_thread_within_and_as_many_as_before_after_it():
    torch.set_num_threads(3)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_fault_gives_the_threads_back():
    torch.set_num_threads(3)
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == 3
