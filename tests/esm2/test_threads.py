import pytest
import torch

from packedesm.esm2.threads import threads_worth

pytestmark = pytest.mark.usefixtures("one_thread")  # and afterwards as before


@pytest.mark.parametrize(("flops", "threads"), [(0, 1), (1e9, 1), (1e12, 3)])
def test_little_work_gets_one_thread_and_more_gets_all(flops, threads):
    torch.set_num_threads(3)
    with threads_worth(flops):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 3


def test_a_fault_gives_the_threads_back():
    torch.set_num_threads(3)
    with pytest.raises(RuntimeError), threads_worth(0):
        raise RuntimeError
    assert torch.get_num_threads() == 3
