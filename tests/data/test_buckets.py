"""Buckets by NovelAI's scheme, and how pictures lie in them."""

import math

import pytest

from inkwash.data.buckets import BucketRules, bucket_sizes, place


def test_sizes_are_those_of_kohyas_trainer() -> None:
    """As it lists them for 512x512 with sides from 256 to 1024."""
    tall = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    wanted = sorted([*tall, (512, 512), *((height, width) for width, height in tall)])
    assert list(bucket_sizes(BucketRules((512, 512), high=1024))) == wanted


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (2000, 2000), (5000, 700), (515, 511)])
def test_a_large_picture_covers_the_bucket_of_the_nearest_shape(size: tuple[int, int]) -> None:
    rules = BucketRules((512, 512), high=1024)
    found = place(size, rules)
    aspect = math.log(size[0] / size[1])
    distances = {one: abs(math.log(one[0] / one[1]) - aspect) for one in bucket_sizes(rules)}
    assert distances[found.bucket] == min(distances.values())
    assert all(scaled >= side for scaled, side in zip(found.scaled, found.bucket, strict=True))
    assert any(scaled == side for scaled, side in zip(found.scaled, found.bucket, strict=True))
    assert found.scaled[0] / found.scaled[1] == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_small_picture_keeps_its_size_unless_it_is_to_grow() -> None:
    small = place((300, 200), BucketRules((512, 512)))
    assert (small.bucket, small.scaled) == ((256, 192), (300, 200))
    grown = place((300, 200), BucketRules((512, 512), upscale=True))
    assert grown.bucket == (640, 384) and min(grown.scaled) >= 384
    assert place((300, 200), BucketRules((512, 512), enabled=False)).bucket == (512, 512)
    with pytest.raises(ValueError, match="60x300 is smaller than a bucket's step of 64 pixels"):
        place((60, 300), BucketRules((512, 512)))
