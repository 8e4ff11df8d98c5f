"""The tiny cloud of the server's tests."""

from tests.cloud_server.conftest import cloud, folder, server

__all__ = ["cloud", "folder", "server"]
