"""Bytes that a client sent as the message that they should be."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from preheat.errors import InvalidRequest

MessageT = TypeVar("MessageT", bound=Message)


def parse(message: MessageT, payload: bytes) -> MessageT:
    """``message``, filled from ``payload``. Raises InvalidRequest for what is none."""
    try:
        message.ParseFromString(payload)
    except DecodeError as exc:
        raise InvalidRequest(f"the message is no valid {message.DESCRIPTOR.full_name}") from exc
    return message
