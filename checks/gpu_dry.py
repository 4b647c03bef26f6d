"""All of the GPU path that can be shown without a GPU: kernels in Triton's interpreter against the
reference, the real engine on model runner V2, builders, compilation for sm_80 and sm_90.

    python -m checks.gpu_dry     the tests marked `gpu`; the last line is one JSON object
"""

from __future__ import annotations

import json
import sys

import pytest

from checks import gpu_tally


def main() -> int:
    """Run the tests and sum up."""
    status = pytest.main(["-m", "gpu", "tests/gpu", "tests/kernels", *sys.argv[1:]], [gpu_tally])
    result = gpu_tally.summary()
    print(json.dumps({**result, "ok": result["ok"] and status == 0}))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
