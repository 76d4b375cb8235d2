"""What one operator costs in multiply-accumulates (MACs), by fvcore's conventions.

fvcore's "flop" is one multiply-accumulate, and so is a unit here. Products count fully, LayerNorm
5 an element, and whatever only moves, compares or maps elements counts nothing. Two departures,
both to close a silent zero of fvcore: every kind of fused attention counts as its two products, and
an operator that is in neither list below has no cost (`None`), which the counter makes an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

Formula = Callable[[Sequence[Any], Any], int]  # (operator's arguments, its result) -> MACs


def _size(tensor: Any) -> int:
    return prod(int(n) for n in tensor.shape)


def _mm(first: int) -> Formula:
    """A matrix product (…,n,k) x (…,k,m) whose left factor is argument `first`: n*k*m a matrix."""

    def macs(args: Sequence[Any], out: Any) -> int:
        right = args[first + 1].shape
        return _size(args[first]) * (int(right[-1]) if len(right) > 1 else 1)

    return macs


def _linear(args: Sequence[Any], out: Any) -> int:
    return _size(args[0]) * int(args[1].shape[0])


def _convolution(args: Sequence[Any], out: Any) -> int:
    """Filter size x output positions (input positions where transposed), any number of groups."""
    image, weight, transposed = args[0], args[1], bool(args[6])
    positions = (image if transposed else out).shape[2:]
    return int(image.shape[0]) * _size(weight) * prod(int(n) for n in positions)


def _attention(args: Sequence[Any], out: Any) -> int:
    """Both products for q (B,H,N,D), k (B,h,M,D), v (B,h,M,E); a causal mask saves nothing."""
    query, key, value = args[:3]
    depth, width = int(query.shape[-1]), int(value.shape[-1])
    return _size(query) // depth * int(key.shape[-2]) * (depth + width)


def _pairwise(args: Sequence[Any], out: Any) -> int:
    return _size(out) * int(args[0].shape[-1])


def _norm(weight: int, affine: int = 5, plain: int = 4) -> Formula:
    """A normalisation whose scale is argument `weight`: so many an element with it, without it."""

    def macs(args: Sequence[Any], out: Any) -> int:
        has_scale = len(args) > weight and args[weight] is not None
        return _size(args[0]) * (affine if has_scale else plain)

    return macs


def _batch_norm(args: Sequence[Any], out: Any) -> int:
    """Batch norm with a `training` argument (the sixth); at inference it is one scale and shift."""
    training = bool(args[5])
    return _norm(1)(args, out) if training else _norm(1, affine=2, plain=1)(args, out)


def _elements(inputs: int, outputs: int) -> Formula:
    def macs(args: Sequence[Any], out: Any) -> int:
        return inputs * _size(args[0]) + outputs * _size(out)

    return macs


# Not here: matmul and einsum, which the counter takes apart into the products they become.
COUNTED: dict[str, Formula] = {
    "mm": _mm(0),
    "bmm": _mm(0),
    "mv": _mm(0),
    "dot": _mm(0),
    "vdot": _mm(0),
    "_int_mm": _mm(0),
    "_scaled_mm": _mm(0),
    "addmm": _mm(1),
    "_addmm_activation": _mm(1),
    "baddbmm": _mm(1),
    "addbmm": _mm(1),
    "addmv": _mm(1),
    "linear": _linear,
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_cdist_forward": _pairwise,
    "_euclidean_dist": _pairwise,
    "_pdist_forward": _pairwise,
    "native_layer_norm": _norm(2),
    "layer_norm": _norm(2),
    "native_group_norm": _norm(1),
    "group_norm": _norm(2),
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _norm(1, affine=2, plain=1),
    "_batch_norm_with_update": _norm(1),
    "_batch_norm_no_update": _norm(1, affine=2, plain=1),
    "_adaptive_avg_pool2d": _elements(1, 0),
    "grid_sampler_2d": _elements(0, 4),
    "upsample_nearest2d": _elements(0, 1),
    "_upsample_nearest_exact2d": _elements(0, 1),
    "upsample_bilinear2d": _elements(0, 4),
    "_upsample_bilinear2d_aa": _elements(0, 4),  # fvcore has none of the next three: by their taps
    "upsample_bicubic2d": _elements(0, 16),
    "_upsample_bicubic2d_aa": _elements(0, 16),
}

# Free by convention, and not recognisable as such by their tags (pointwise, reduction) or as views.
_FREE = """
    _softmax _log_softmax _safe_softmax softmax log_softmax _masked_softmax cumsum cumprod
    logcumsumexp _fused_rms_norm rms_norm native_norm renorm trace
    sum mean prod amax amin any all var std var_mean std_mean norm linalg_vector_norm logsumexp
    count_nonzero max min aminmax _aminmax argmax argmin cummax cummin median nanmedian mode

    floor_divide remainder bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift
    bitwise_right_shift complex polar isin isnan isinf equal allclose glu softplus
    hardswish log_sigmoid_forward _is_all_true _is_any_true _prelu_kernel

    gather scatter scatter_add scatter_reduce index index_select index_add index_copy index_fill
    index_put _index_put_impl _unsafe_index _unsafe_index_put index_reduce take put embedding
    masked_select masked_scatter slice_scatter select_scatter diagonal_scatter as_strided_scatter
    _unsafe_masked_index nonzero nonzero_static bincount histc bucketize searchsorted one_hot
    sort topk argsort kthvalue _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive

    cat stack _stack _chunk_cat block_diag split_with_sizes_copy split_copy unbind_copy unsafe_split
    unsafe_split_with_sizes repeat repeat_interleave roll flip rot90 tile channel_shuffle
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    pixel_shuffle pixel_unshuffle im2col col2im tril triu tril_indices triu_indices diag_embed
    avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices adaptive_max_pool2d
    clone copy _to_copy contiguous to lift lift_fresh lift_fresh_copy detach resize resize_as set
    _unsafe_view _reshape_copy view_copy expand_copy _pin_memory is_pinned

    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like
    new_zeros ones ones_like new_ones full full_like new_full eye arange linspace logspace range
    scalar_tensor fill zero
    rand rand_like randn randn_like randint randint_like randperm random normal log_normal bernoulli
    uniform exponential geometric cauchy poisson multinomial native_dropout dropout _fused_dropout

    device size sym_size stride sym_stride numel sym_numel dim layout storage_offset
    sym_storage_offset is_contiguous sym_is_contiguous is_strides_like_format
    is_non_overlapping_and_dense is_same_size item _local_scalar_dense record_stream
    _assert_async _assert_scalar _functional_assert_async _assert_tensor_metadata
    sym_constrain_range sym_constrain_range_for_size _fused_sdp_choice
"""
FREE: frozenset[str] = frozenset(_FREE.split())

_FREE_TAGS = {
    getattr(torch.Tag, name) for name in ("pointwise", "reduction") if hasattr(torch.Tag, name)
}


@functools.cache
def name_of(func: Any) -> str:
    """'bmm' for aten.bmm.default; 'namespace::name' for an operator that is not PyTorch's own.

    An in-place operator (`add_`) goes by the name of the other one.
    """
    namespace, _, name = str(func.name()).partition("::")
    name = name.partition(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace in ("aten", "prim", "prims") else f"{namespace}::{name}"


def is_counted(func: Any) -> bool:
    """Whether the operator has a formula of its own, so that it need not be taken apart."""
    return name_of(func) in COUNTED


@functools.cache
def _is_free(name: str) -> bool:
    """Listed, or some overload is tagged or a view: the tags miss some in-place forms."""
    if name in FREE:
        return True
    if "::" in name:
        return False
    packet = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return any(o.is_view or _FREE_TAGS.intersection(o.tags) for o in overloads)


def macs_of(func: Any, args: Sequence[Any], out: Any) -> int | None:
    """MACs of one call of an operator, 0 if it is free by convention, None if nobody knows."""
    name = name_of(func)
    if name in COUNTED:
        return int(COUNTED[name](args, out[0] if isinstance(out, (tuple, list)) else out))
    return 0 if _is_free(name) else None
