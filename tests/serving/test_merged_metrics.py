"""What several servers count is one text, in which each sample says whose it is."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dit_cachegraph.serving.merged_metrics import merged


def text(count):
    registry = CollectorRegistry()
    outcomes = Counter("pictures", "Pictures.", ("outcome",), registry=registry)
    outcomes.labels("drawn").inc(count)
    Histogram("seconds", "Seconds.", registry=registry, buckets=(1.0,)).observe(0.5)
    return generate_latest(registry)


def test_each_family_once_with_the_samples_of_all():
    told = merged("replica", {"a": text(1), "b": text(2)}).decode()
    assert (
        told.count("# TYPE pictures_total counter") == told.count("# TYPE seconds histogram") == 1
    )
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }
    assert values["pictures_total", "drawn", "a"] == 1
    assert values["pictures_total", "drawn", "b"] == 2
    assert values["seconds_bucket", "1.0", "b"] == 1


def test_none_count_nothing():
    assert merged("replica", {}) == b""
