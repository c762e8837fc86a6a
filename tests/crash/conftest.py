"""The broker of the integration tests, for the real kills."""

from tests.integration.conftest import kafka

__all__ = ["kafka"]
