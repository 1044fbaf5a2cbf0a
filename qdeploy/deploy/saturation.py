"""Whether a layer's sums may pass int16, in which x86 without VNNI adds two products at a time.

ONNX Runtime's kernels for AVX2 and AVX512 multiply uint8 by int8 with vpmaddubsw, which adds the
products of two neighbours and saturates at int16. VNNI and AMX add in int32, as do ARM's kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

INT16 = np.iinfo(np.int16)

Codes = npt.NDArray[np.signedinteger]


def may_saturate(codes: Codes, highest: int, order_known: bool = True) -> bool:
    """Whether two products that meet in the kernel may add up to what int16 does not hold.

    codes        int8 [outputs, K], in the kernel's order
    highest      the highest code of the uint8 input. The lowest counts as 0
    order_known  whether the first code of a row meets the second, the third the fourth, and so on;
                 else any two of a row may meet
    """
    wide = codes.astype(np.int64)
    positive, negative = (_largest_pair(side.clip(min=0), order_known) for side in (wide, -wide))
    return highest * positive > INT16.max or highest * negative > -INT16.min


def _largest_pair(sizes: Codes, order_known: bool) -> int:
    """The largest sum of two entries that meet; sizes: [outputs, K]."""
    pairs = np.pad(sizes, ((0, 0), (0, sizes.shape[1] % 2)))
    if not order_known:
        pairs = np.sort(pairs)[:, -2:]
    return int((pairs[:, 0::2] + pairs[:, 1::2]).max(initial=0))


def in_kernel_order(product: onnx.NodeProto, codes: Codes, one_zero: bool) -> Codes | None:
    """The weight's codes [outputs, K] as the kernel adds their products.

    A convolution goes through its window, and through the channels of each place. None for a depthwise
    one, which multiplies in 16 bits and adds in 32, if its channels have one zero point (`one_zero`):
    else it runs as any other.
    """
    settings = {one.name: onnx.helper.get_attribute_value(one) for one in product.attribute}
    if "Conv" in product.op_type:
        if one_zero and codes.shape[1] == 1 and len(codes) == settings.get("group", 1):
            return None
        return np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    if not settings.get("transB", 0):
        codes = np.moveaxis(codes, -2, -1)
    return codes.reshape(-1, codes.shape[-1])
