"""Generation from bf16 and int8 weights needs products that not every CPU has."""

import pytest
import torch

PACKED = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_vnni_supported()
needs_packing = pytest.mark.skipif(not PACKED, reason="this CPU has no packed products in bf16 and int8")
