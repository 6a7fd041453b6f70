from cpmbee_job.store.base import ObjectInfo, listing_digest


def test_listing_digest_changes_with_any_object():
    listing = [ObjectInfo("a", 1, "x"), ObjectInfo("b", 2, "y")]
    digest = listing_digest(listing)
    assert listing_digest(reversed(listing)) == digest
    assert listing_digest([ObjectInfo("a", 1, "z"), listing[1]]) != digest
    assert listing_digest(listing[:1]) != digest
