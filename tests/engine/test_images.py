"""Models that take images: the decoder follows the reference, with images and without."""

import json
import subprocess
import sys

import pytest

from testbench.multimodal import FAMILIES
from testbench.vision import PLACE


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not PLACE.exists(), reason="needs torchvision: run `make vision-tool`")
def test_images_and_text_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.images"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    assert set(result["served"]) == set(FAMILIES)
    assert all(one["tokens"] == 24 for one in result["served"].values())
