"""A linear layer's product, whose way back is written by hand, against torch's own."""

import math

import pytest
import torch
from torch import Tensor

from cpmbee_job.model.net.layers import Linear


def linear(dtype: torch.dtype = torch.float64, *, trained: bool = True) -> Linear:
    torch.manual_seed(0)
    layer = Linear(6, 4).to(dtype).requires_grad_(trained)
    with torch.no_grad():
        layer.weight.normal_()
    return layer


def plain(layer: Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T / math.sqrt(6)


def test_gradients_equal_those_of_the_product_and_finite_differences() -> None:
    layer, x = linear(), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), plain(layer, x))
    g = torch.randn(5, 4, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(of, [x, layer.weight], g) for of in (layer(x), plain(layer, x)))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(layer, (x,))


def test_frozen_weights_get_no_gradient_and_keep_no_input() -> None:
    layer, x = linear(trained=False), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer(x)
    assert [tensor.shape for tensor in kept] == [layer.weight.shape]
    y.sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, torch.autograd.grad(plain(layer, x).sum(), x)[0])


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    layer, x = linear(), torch.randn(5, 6, dtype=torch.float64)
    layer(x).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(layer.weight.grad, torch.autograd.grad(plain(layer, x).sum(), layer.weight)[0])


def test_an_empty_batch() -> None:
    layer, x = linear(), torch.empty(0, 6, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 6)
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    layer, x = linear(dtype), torch.randn(5, 6).to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (dtype, dtype, dtype)  # type: ignore[union-attr]
    wide = x.detach().double() @ layer.weight.detach().double().T / math.sqrt(6)
    # Half a unit in the last place, and a little for sums in fp32.
    torch.testing.assert_close(y.double(), wide, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)
