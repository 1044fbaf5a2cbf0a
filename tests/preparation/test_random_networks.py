"""Networks that nobody thought of: prepared they are the float network, converted near it."""

from hypothesis import HealthCheck, given, settings
from network_properties import check
from random_networks import sources

DRAWN = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
    print_blob=False,
)


@settings(DRAWN, max_examples=55)
@given(sources())
def test_prepared_and_converted(source):
    check(source)


@settings(DRAWN, max_examples=5)
@given(sources())
def test_the_file(tmp_path_factory, source):
    check(source, tmp_path_factory.mktemp("drawn"))
