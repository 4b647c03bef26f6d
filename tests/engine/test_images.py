"""Models that take images: the decoder follows the reference, with images and without."""

import pytest

from testbench.multimodal import FAMILIES
from testbench.one_side import ask
from testbench.vision import PLACE


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not PLACE.exists(), reason="needs torchvision: run `make vision-tool`")
def test_images_and_text_alone() -> None:
    status, result = ask("checks.images", timeout=600)
    assert status == 0, result
    assert set(result["served"]) == set(FAMILIES)
    assert all(one["tokens"] == 24 for one in result["served"].values())
