"""The parts of the roofline that also run on a CPU."""

import pytest
import torch

from benchmarks.gpu import TINY
from benchmarks.roofline import kind_of, products_alone

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_320x128_64x3_1x2_h_bz_coopB_TNT", "products"),
        ("void cutlass::Kernel2<cutlass_75_tensorop_bf16_s1688gemm_bf16_128x128_tn_align1>(Params)", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_kernel0_0", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel)", "attention"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 128>(void const*, void const*)", "attention"),
        ("void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<c10::Half>", "norms"),
        ("void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int)", "gathers"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native>", "gathers"),
        ("void at::native::index_elementwise_kernel<128, 4, at::native::index_copy_kernel_impl>", "gathers"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::Half>>", "elementwise"),
    ],
)
def test_kernels_are_classified_by_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_matrix_products_are_timed() -> None:
    assert products_alone(TINY, 64, torch.float32, CPU, repeats=1) > 0
