"""What the other side said last is left out of frames and put back; nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shared.errors import CiarError, InvalidDraft
from shared.messages import Draft, Verdict
from shared.wire import codec
from shared.wire.echoes import Echoes
from shared.wire.pb import ciar_pb2 as pb


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def draft(span: np.ndarray, base: int = 0, number: int = 1, **more: object) -> Draft:
    return Draft(number, base, span, **more)  # type: ignore[arg-type]


def verdict(accepted: int, guesses: np.ndarray, number: int = 1) -> Verdict:
    return Verdict(number, accepted, 7, 0.0, guesses=guesses)


class Stream:
    """Both ends of one stream, and frames as bytes between them."""

    def __init__(self, granted: bool = True) -> None:
        self.device, self.cloud = Echoes(), Echoes()
        self.device.granted = self.cloud.granted = granted

    def up(self, message: Draft) -> tuple[Draft, pb.Draft]:
        frame = codec.encode_draft(message)
        self.device.cut_draft(frame.draft, message)
        sent = pb.GenerateRequest.FromString(frame.SerializeToString())
        whole = pb.GenerateRequest.FromString(frame.SerializeToString())
        self.cloud.mend_draft(whole.draft)
        received = codec.decode_request(whole)
        assert isinstance(received, Draft)
        return received, sent.draft

    def down(self, message: Verdict, answered: Draft) -> tuple[Verdict, pb.Verdict]:
        frame = codec.encode_response(message)
        self.cloud.cut_verdict(frame.verdict, message, answered)
        sent = pb.GenerateResponse.FromString(frame.SerializeToString())
        whole = pb.GenerateResponse.FromString(frame.SerializeToString())
        self.device.mend_verdict(whole.verdict, answered)
        received = codec.decode_response(whole)
        assert isinstance(received, Verdict)
        return received, sent.verdict


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_every_frame_arrives_as_it_was_and_none_grows(granted: bool, share: float) -> None:
    """Chains of rounds in which a `share` of guesses repeat the draft, and of drafts repeat the guesses."""
    rng, stream = np.random.default_rng(5), Stream(granted)
    base = saved = 0
    said: dict[int, int] = {}
    for number in range(1, 60):
        kept = rng.integers(0, 1024, rng.integers(0, 4)).astype(np.int32)
        first, length = base + len(kept), int(rng.integers(1, 33))
        span = rng.integers(0, 1024, length).astype(np.int32)
        for place in range(length):
            if rng.random() < share:
                span[place] = said.get(first + place, span[place])
        message = draft(span, base, number, catch_up=kept)
        received, sent = stream.up(message)
        assert received.span.tolist() == span.tolist() and received.catch_up.tolist() == kept.tolist()
        plain = codec.encode_draft(message).draft.ByteSize()
        assert sent.ByteSize() <= plain
        saved += plain - sent.ByteSize()
        accepted = int(rng.integers(0, length + 1))
        guesses = rng.integers(0, 1024, 0 if accepted == length else rng.integers(0, 40)).astype(np.int32)
        for place in range(len(guesses)):
            if accepted + 1 + place < length and rng.random() < share:
                guesses[place] = span[accepted + 1 + place]
        answer = verdict(accepted, guesses, number)
        heard, sent_back = stream.down(answer, received)
        assert heard.guesses.tolist() == guesses.tolist()
        plain = codec.encode_response(answer).verdict.ByteSize()
        assert sent_back.ByteSize() <= plain
        saved += plain - sent_back.ByteSize()
        base = first + accepted + 1
        if len(guesses):
            said = dict(enumerate(guesses.tolist(), base))
    assert (saved > 0) == (granted and share > 0)


def test_a_span_of_guesses_alone_has_no_tokens_in_it() -> None:
    stream = Stream()
    first = draft(tokens(1, 2, 3, 4, 5, 6, 7, 8))
    stream.down(verdict(0, tokens(*range(20, 40))), first)
    received, sent = stream.up(draft(tokens(*range(20, 30)), base=1, number=2))
    assert received.span.tolist() == [*range(20, 30)]
    assert not sent.HasField("span") and sent.echoes == b"\xff\xc0"


def test_a_repeated_draft_is_read_as_the_first_time() -> None:
    stream, first = Stream(), draft(tokens(*range(8)))
    stream.down(verdict(0, tokens(*range(20, 40))), first)
    message = draft(tokens(*range(20, 30)), base=1, number=2)
    received, sent = stream.up(message)
    assert sent.echoes
    stream.down(verdict(0, tokens(*range(50, 70)), 2), received)
    again = pb.Draft.FromString(sent.SerializeToString())
    stream.cloud.mend_draft(again)
    assert again.span == codec.encode_draft(message).draft.span


def test_pipelined_drafts_and_trees_have_none() -> None:
    stream = Stream()
    stream.down(verdict(0, tokens(*range(20, 40))), draft(tokens(*range(8))))
    spans = tokens(*range(21, 30))
    for more in ({"behind": 1, "catch_up": tokens(20)}, {"parents": tokens(*range(9))}):
        whole = draft(spans, base=1, number=2, **more)
        received, sent = stream.up(whole)
        assert not sent.echoes and received.span.tolist() == spans.tolist()
        said = verdict(0, tokens(*range(22, 30)), 2)
        heard, sent_back = stream.down(said, whole)
        assert not sent_back.echoes and heard.guesses.tolist() == said.guesses.tolist()


def test_echoes_of_nothing_are_refused() -> None:
    frame = codec.encode_draft(draft(tokens(1, 2))).draft
    frame.echoes = b"\x80"
    with pytest.raises(InvalidDraft, match="has echoes"):
        Echoes().mend_draft(frame)
    stream = Stream()
    stream.down(verdict(0, tokens(20, 21, 22, 23, 24, 25, 26)), draft(tokens(*range(8))))
    cases = [
        (b"\x80\x00", "2 bytes of echoes for 3 tokens"),
        (b"\x01", "1 bytes of echoes for 3 tokens"),
        (b"\xff\xff\xff\x00", "24 echoes"),
    ]
    for marks, said in cases:
        frame = codec.encode_draft(draft(tokens(1, 2), base=1, number=2)).draft
        frame.echoes = marks
        with pytest.raises(InvalidDraft, match=said):
            stream.cloud.mend_draft(frame)
    frame = codec.encode_draft(draft(tokens(1), base=7, number=2)).draft
    frame.echoes = b"\x40"
    with pytest.raises(InvalidDraft, match="an echo at place 8"):
        stream.cloud.mend_draft(frame)
    for change in ({"behind": 1}, {"parents": pb.Tensor()}):
        frame = pb.Draft(base=1, echoes=b"\x80", **change)
        with pytest.raises(InvalidDraft, match="plain drafts"):
            stream.cloud.mend_draft(frame)


def test_a_cloud_that_echoes_what_was_not_drafted_is_refused() -> None:
    stream, sent = Stream(), draft(tokens(*range(8)))
    answer = codec.encode_response(replace(verdict(7, tokens()))).verdict
    answer.echoes = b"\x80"
    with pytest.raises(CiarError, match="an echo at place 8"):
        stream.device.mend_verdict(answer, sent)
