"""Labels and text of metrics, whatever names people choose."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vbnet._native import CounterFile, counter_labels
from vbnet.devices.venet.metrics import PORT
from vbnet.metric import MetricCatalogue
from vbnet.sharedmem.snapshot import parse_labels
from vbnet.telemetry.exposition import compile_catalogue

parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
NAMES = st.text(st.characters(codec="utf-8"), max_size=40)
LABEL_BYTES = 192


@given(st.dictionaries(st.sampled_from(["guest", "device", "switch"]), NAMES))
def test_labels_come_back_as_they_were(labels: dict[str, str]) -> None:
    """Commas, equals signs, zero bytes, backslashes and what else there is survive, while they fit."""
    text = counter_labels(list(labels.items()))

    if sum(len(text.encode()) for text in labels.values()) < 80:
        assert labels == parse_labels(text)
    assert list(labels) == list(parse_labels(text))


@given(NAMES.map(lambda name: name * 40), st.text(max_size=600))
def test_long_labels_are_cut_to_fit_and_stay_apart(begin: str, end: str) -> None:
    """Two names that begin alike are two, in every place."""
    texts = {counter_labels([("guest", begin + end + last), ("device", "eth0")]) for last in ("1", "2")}

    assert 2 == len(texts)
    assert all(len(text.encode()) <= LABEL_BYTES for text in texts)
    assert {"eth0"} == {parse_labels(text)["device"] for text in texts}


@given(st.text(max_size=300))
def test_any_text_is_some_labels(text: str) -> None:
    """What is in a file is read, not believed."""
    found = parse_labels(text)

    assert all("=" not in name for name in found)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), max_size=5, unique=True))
def test_names_come_through_the_text_to_a_parser(owners: list[tuple[str, str, str]]) -> None:
    """What Prometheus' own client reads are the names that were counted under."""
    with tempfile.TemporaryDirectory() as folder:
        file = CounterFile.create(Path(folder) / "x.counters")
        texts = [counter_labels(list(zip(PORT.labels, owner, strict=True))) for owner in owners]
        blocks = [file.allocate(PORT.kind, text, PORT.words) for text in texts]
        native = compile_catalogue(MetricCatalogue([PORT]))
        paths = [Path(folder) / "x.counters"]
        text = b"".join(native.render(paths, "text")[0])
        openmetrics = b"".join([*native.render(paths, "openmetrics")[0], b"# EOF\n"])

    wanted = {tuple(parse_labels(text).values()) for text in texts}
    for families in (parse_text(text.decode()), parse_openmetrics(openmetrics.decode())):
        found = [
            tuple(sample.labels[label] for label in PORT.labels)
            for family in families
            if family.name == "vbnet_device_kicks"
            for sample in family.samples
        ]
        assert sorted(wanted) == sorted(found)
    assert len(owners) == len(blocks)
