"""A link to a server of one session, and one whose server dies on the way. For models of every kind."""

from __future__ import annotations

from dataclasses import replace

from cloud_server.server import CloudServer
from cloud_server.staff import Served
from device_client.link import CloudLink
from evaluation.relay import Relay
from shared.messages import Draft


def link_to(server: CloudServer) -> CloudLink:
    return CloudLink(f"127.0.0.1:{server.port}", retry_s=5.0)


class Unplugged(Relay):
    """Kills the server before round `at` and starts another one at its port."""

    def __init__(self, link: CloudLink, cloud: Served, server: CloudServer, at: int) -> None:
        super().__init__(link)
        self.cloud, self.server, self.at, self.round = cloud, server, at, 0

    async def send(self, draft: Draft) -> None:
        """Through, or into the void."""
        self.round += 1
        if self.round == self.at:
            port = self.server.port
            await self.server.stop()
            self.server = CloudServer(self.cloud, replace(self.server.settings, port=port))
            await self.server.start()
        await super().send(draft)
