"""THE algorithm (SPEC section 6): a device draws an image and asks the cloud where it is unsure.

`decode` yields a Progress per decision; every consumer reads that one iterator. Knows no gRPC, no pictures.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from device_client.cloud import Cloud, Request
from device_client.image import Image
from device_client.policy import Policy
from device_client.progress import Counters, Progress, Source
from shared.models.zoo import DevicePackage

__all__ = ["Cloud", "Counters", "Progress", "Request", "Source", "decode"]


async def decode(
    package: DevicePackage, request: Request, policy: Policy, cloud: Cloud | None
) -> AsyncGenerator[Progress, None]:
    """Algorithm 1: draw; keep what is sure; send what is not, with guesses behind it; settle; go on.

    Pipelined (policy.in_flight > 1), the device does not wait: it draws on behind the span it sent, where the
    cloud's bonus belongs first, and throws that away if the answer is another. The image is the same.

    Yields once the session is open, and whenever tokens were decided; the last Progress is complete. The
    session ends with the iteration, early or not. `cloud` may be None where the policy does not use it.
    Raises InvalidPrompt, InvalidRequest, ModelMismatch, and whatever `cloud` raises.
    """
    image = Image(package, request, policy, cloud)
    try:
        if image.cloud is not None:
            image.begin(await image.waiting(image.cloud.open(image.order())))
            yield image.progress()
        while not image.done:
            if image.cloud is not None and image.must_listen:
                image.settle(await image.waiting(image.cloud.receive()))
            else:
                step = await image.draw()
                if image.owes_bonus:
                    image.assume(step)
                elif image.cloud is None or (step.score <= policy.threshold and not image.in_span):
                    image.keep(step)
                elif image.extend_span(step):
                    await image.waiting(image.cloud.send(image.draft()))
            if image.grew:
                yield image.progress()
    finally:
        await image.close()
