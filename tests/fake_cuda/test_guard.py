"""The made-up GPU notices what a real one would."""

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)


def test_tensors_stand_on_it(fake_cuda):
    with FakeTensorMode():
        x = torch.empty(3, 4, device=fake_cuda)
        assert (x @ x.T).device == fake_cuda


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda x: x.tolist(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x + torch.ones(3), Exception),
    ],
    ids=["copied to the host", "as long as its content says", "beside one on the CPU"],
)
def test_what_waits_for_it_or_stands_elsewhere_raises(fake_cuda, wait, error):
    with FakeTensorMode(), pytest.raises(error):
        wait(torch.empty(3, device=fake_cuda))
