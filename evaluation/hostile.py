"""Frames and bytes that no device would send, from a seed. Knows no network.

Valid frames are mangled, and protobuf is made up field by field: right in form, without sense.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shared.decoding.warp import Warp
from shared.messages import Draft, Finish, Open, ServerInfo, Tokens
from shared.wire import codec

HTTP1 = b"POST /generate HTTP/1.1\r\nHost: x\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INTERESTING = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_DEEPEST = 3  # messages in messages; the protocol has as many
_LARGEST_FIELD = 22  # the protocol's own numbers, and some it has not


@dataclass(frozen=True)
class Attack:
    """What one stream sends, frame by frame; or one connection, byte by byte."""

    kind: str
    frames: tuple[bytes, ...]


class Hostile:
    """An endless source of attacks on a server that says `info` about itself; the same ones per seed."""

    def __init__(self, info: ServerInfo, seed: int) -> None:
        self._dice, self._info = random.Random(seed), info
        model = info.models[0]
        self.order = Open(
            model=model.name,
            cloud_digest=model.digest,
            codebook_size=model.codebook_size,
            prompt="a cat",
            seed=7,
            warp=Warp(),
            prefix_tokens=1,
            acceptance="coupled",
        )
        self._kinds: dict[str, Callable[[], list[bytes]]] = {
            "noise": lambda: [self._noise() for _ in range(self._dice.randint(1, 3))],
            "made up": lambda: [self._message() for _ in range(self._dice.randint(1, 3))],
            "mangled": lambda: [self._mangled(frame) for frame in self._talk()],
            "one bad frame": self._spoilt,
            "out of order": lambda: self._dice.sample(self._talk(), 4),
            "out of range": lambda: [self._opening(), *(self._wild() for _ in range(3))],
        }

    def attack(self) -> Attack:
        """The next one for a stream."""
        kind = self._dice.choice(list(self._kinds))
        return Attack(kind, tuple(self._kinds[kind]()))

    def connection(self) -> Attack:
        """The next one for a bare socket."""
        return self._dice.choice(
            (
                lambda: Attack("socket: noise", (self._noise(),)),
                lambda: Attack("socket: HTTP/1", (HTTP1, self._noise())),
                lambda: Attack("socket: HTTP/2", (PREFACE, *(self._http2() for _ in range(4)))),
            )
        )()

    def _talk(self) -> list[bytes]:
        """A whole conversation as it should be."""
        rounds = [Draft(number, 1 + 3 * number, self._tokens(2), self._tokens(1)) for number in range(3)]
        return [
            self._opening(),
            *(codec.encode_draft(draft).SerializeToString() for draft in rounds),
            codec.encode_finish(Finish()).SerializeToString(),
        ]

    def _opening(self) -> bytes:
        return codec.encode_open(self.order).SerializeToString()

    def _spoilt(self) -> list[bytes]:
        frames = self._talk()
        place = self._dice.randrange(len(frames))
        frames[place] = self._dice.choice((self._mangled(frames[place]), self._message(), b""))
        return frames

    def _wild(self) -> bytes:
        """A frame of valid form whose values are anything."""
        some, dice = self._some, self._dice
        if dice.random() < 0.3:
            order = replace(
                self.order,
                seed=some(64),
                prefix_tokens=some(32),
                codebook_size=some(32),
                max_forwards=some(32),
                prompt="".join(chr(dice.randrange(1, 0xD7FF)) for _ in range(dice.randrange(40))),
                resume=self._tokens(dice.randrange(20)),
            )
            return codec.encode_open(order).SerializeToString()
        behind = some(32) if dice.random() < 0.3 else None
        draft = Draft(some(32), some(32), self._tokens(dice.randrange(70)), self._tokens(2), behind=behind)
        return codec.encode_draft(draft).SerializeToString()

    def _mangled(self, frame: bytes) -> bytes:
        """Some bytes changed, cut away, doubled or put in."""
        made, dice = bytearray(frame), self._dice
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(made) + 1)
            match dice.randrange(4):
                case 0 if place < len(made):
                    made[place] = dice.randrange(256)
                case 1:
                    del made[place : place + dice.randrange(8)]
                case 2:
                    made[place:place] = made[place : place + dice.randrange(16)]
                case _:
                    made[place:place] = dice.randbytes(dice.randrange(4))
        return bytes(made)

    def _message(self, depth: int = 0) -> bytes:
        """Protobuf of random fields."""
        return b"".join(self._field(depth) for _ in range(self._dice.randrange(1, 5)))

    def _field(self, depth: int) -> bytes:
        dice = self._dice
        number, kind = dice.randrange(1, _LARGEST_FIELD), dice.choice((0, 1, 2, 2, 2, 5))
        tag = _varint(number << 3 | kind)
        if kind == 0:
            return tag + _varint(self._some(64))
        if kind in (1, 5):
            return tag + dice.randbytes(8 if kind == 1 else 4)
        inside = self._message(depth + 1) if depth < _DEEPEST and dice.random() < 0.7 else self._noise(24)
        return tag + _varint(len(inside)) + inside

    def _http2(self) -> bytes:
        """A frame of HTTP/2 with a random type, random flags and random content."""
        inside = self._noise(64)
        kind, flags, stream = self._dice.randrange(12), self._dice.randrange(256), self._dice.randrange(8)
        return len(inside).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + inside

    def _noise(self, most: int = 200) -> bytes:
        return self._dice.randbytes(self._dice.randrange(most))

    def _tokens(self, count: int) -> Tokens:
        most = self._info.models[0].codebook_size + (self._dice.random() < 0.1)
        return np.array([self._dice.randrange(most) for _ in range(count)], dtype=np.int32)

    def _some(self, bits: int) -> int:
        """A number of so many bits, the ones at the edges often."""
        if self._dice.random() < 0.5:
            return int(self._dice.choice(_INTERESTING) % 2**bits)
        return self._dice.getrandbits(bits)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))
