"""The ATen operators that a program may name: those that export writes, and no others.

Measured by ``benchmarks/operators.py`` on torchvision's classification networks, torch.nn's layers
and plain arithmetic. Whoever may write a program chooses what runs in the enclave, so an operator
must also be one that looks at nothing but its arguments' elements. Views of given strides
(``as_strided``, ``_reshape_alias``) read memory that is not theirs, tensors without values
(``empty`` and its kin) hold what the enclave kept there before: they stay out, whatever a network
would write.
"""

from __future__ import annotations

_NAMES = """
__and__.Scalar __and__.Tensor __lshift__.Scalar __or__.Tensor __xor__.Tensor
_native_batch_norm_legit_no_training.default _to_copy.default _unsafe_view.default
_upsample_bilinear2d_aa.vec _upsample_nearest_exact2d.vec abs.default acos.default acosh.default
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool1d.default
adaptive_max_pool2d.default add.Tensor addcdiv.default addcmul.default addmm.default
adjoint.default affine_grid_generator.default all.default all.dim alpha_dropout.default
amax.default amin.default any.default any.dim arange.default arange.start_step argmax.default
argmin.default argsort.default asin.default asinh.default atan.default atan2.default atanh.default
avg_pool1d.default avg_pool2d.default avg_pool3d.default baddbmm.default batch_norm.default
bitwise_and.Tensor bitwise_not.default bmm.default broadcast_tensors.default cat.default
ceil.default celu.default channel_shuffle.default chunk.default clamp.Tensor clamp.default
clamp_max.default clamp_min.Tensor clamp_min.default clone.default col2im.default concat.default
contiguous.default conv1d.default conv2d.default conv2d.padding conv_transpose1d.default
conv_transpose2d.input copy.default cos.default cosh.default cosine_similarity.default
cumprod.default cumsum.default deg2rad.default detach.default diff.default div.Tensor
div.Tensor_mode dot.default dropout.default elu.default embedding.default eq.Scalar eq.Tensor
erf.default erfc.default exp.default exp2.default expand.default expand_as.default expm1.default
eye.m feature_alpha_dropout.default feature_dropout.default fill.Scalar fill.Tensor
flatten.using_ints flip.default floor.default floor_divide.default fmod.Scalar frac.default
full.default full_like.default gather.default ge.Scalar ge.Tensor gelu.default glu.default
grid_sampler.default group_norm.default gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default
hardswish.default hardtanh.default heaviside.default hstack.default hypot.default im2col.default
index.Tensor index_put.default index_select.default instance_norm.default isnan.default
l1_loss.default layer_norm.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar
lift_fresh_copy.default linalg_vector_norm.default linear.default linspace.default log.default
log10.default log1p.default log2.default log_sigmoid.default log_softmax.int logaddexp.default
logical_and.default logical_not.default logical_or.default logit.default logsumexp.default
lt.Scalar lt.Tensor mT.default masked_fill.Scalar matmul.default max.default max.dim
max_pool1d.default max_pool2d.default maximum.default mean.default mean.dim median.default
min.default min.dim minimum.default mish.default mm.default movedim.int movedim.intlist
mse_loss.default mul.Tensor mv.default nan_to_num.default narrow.default ne.Scalar ne.Tensor
neg.default new_full.default new_ones.default new_zeros.default numpy_T.default one_hot.default
ones.default ones_like.default outer.default pad.default permute.default pixel_shuffle.default
pixel_unshuffle.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default prod.dim_int
ravel.default reciprocal.default relu.default relu6.default remainder.Scalar repeat.default
repeat_interleave.self_int reshape.default reshape_as.default rms_norm.default roll.default
rot90.default round.default rsqrt.default rsub.Scalar scaled_dot_product_attention.default
scatter.value select.int select_scatter.default selu.default sgn.default sigmoid.default
sign.default silu.default sin.default sinc.default sinh.default slice.Tensor slice_scatter.default
softmax.int softplus.default softshrink.default sort.default split.Tensor split_with_sizes.default
sqrt.default square.default squeeze.default squeeze.dim squeeze.dims stack.default std.correction
std.dim std_mean.dim sub.Tensor sum.default sum.dim_IntList swapaxes.default sym_numel.default
sym_size.int t.default take_along_dim.default tan.default tanh.default tensor_split.sections
tensordot.default threshold.default tile.default to.device to.dtype to.dtype_layout topk.default
transpose.int tril.default triu.default trunc.default type_as.default unbind.int unflatten.int
unsqueeze.default upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest1d.vec
upsample_nearest2d.vec var.correction var.dim var_mean.dim view.default view_as.default
vstack.default where.Scalar where.ScalarOther where.ScalarSelf where.self zeros.default
zeros_like.default
"""
OPERATORS = frozenset(f"aten.{name}" for name in _NAMES.split())
