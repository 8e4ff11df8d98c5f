"""The device: `from device_client import Client` is its Python API, `device-client` its command line."""

from device_client.client import Client, Drawing
from device_client.loop import Counters, Progress, Source
from device_client.wish import Wish

__all__ = ["Client", "Counters", "Drawing", "Progress", "Source", "Wish"]
