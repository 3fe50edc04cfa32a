"""What several servers count, as one text of Prometheus."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merged(label: str, texts: Mapping[str, bytes]) -> bytes:
    """`texts` are by the names of the servers, which each sample has as `label`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(label, texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, label: str, texts: Mapping[str, bytes]) -> None:
        self._label, self._texts = label, texts

    def collect(self) -> Iterator[Metric]:
        """Each family once, with the samples of all."""
        families: dict[str, Metric] = {}
        for name, text in self._texts.items():
            for own in text_string_to_metric_families(text.decode()):
                family = Metric(own.name, own.documentation, own.type)
                family = families.setdefault(own.name, family)
                family.samples += [
                    sample._replace(labels={**sample.labels, self._label: name})
                    for sample in own.samples
                ]
        yield from families.values()
