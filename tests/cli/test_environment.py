"""Environment variables before torch is imported."""

from cli.environment import configure_openmp


def test_threads_sleep_unless_the_user_decided():
    environment = {}
    configure_openmp(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    for chosen in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}):
        environment = dict(chosen)
        configure_openmp(environment)
        assert environment == chosen
