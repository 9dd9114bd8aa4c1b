"""What requests and answers look like as JSON.

Ids are texts in every answer: they have 64 bits, of which a number in JavaScript keeps 53. In requests both are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from assistant.events import pin_data
from assistant.service.guard import Keys
from assistant.turns import Candidate, Message, Request

Id = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=100)]
Tag = Annotated[str, Field(min_length=1, max_length=200)]
ID_FIELDS = frozenset({"pin_id", "board_id", "user_id", "medoid_pin"})


class Said(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    text: str


class ChatRequest(BaseModel):
    """A turn: the conversation so far, and what it is about. `shown`: pins that the answer before named, by number."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Said]
    shown: list[Id] = []
    pin_id: Id | None = None
    user_id: Id | None = None
    board: Id | None = None
    tag: Tag | None = None
    mode: Literal["auto", "quick", "thinking"] = "auto"

    def turn(self, picture: bytes | None) -> Request:
        """As the Navigator takes it."""
        messages = tuple(Message(said.role, said.text) for said in self.messages)
        return Request(messages, picture, self.pin_id, self.user_id, self.board, self.tag, tuple(self.shown))


class SearchRequest(BaseModel):
    """A search by words, by a pin or by the picture that comes with it: by one of them."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    pin: Id | None = None
    tag: Tag | None = None
    board: Id | None = None
    k: Count = 20


def with_texts_for_ids(data: Any, keys: Keys) -> Any:
    """The same JSON, its ids texts; what describes a pin has the address of its picture besides."""
    if isinstance(data, Mapping):
        told = {
            name: str(v) if name in ID_FIELDS and v is not None else with_texts_for_ids(v, keys) for name, v in data.items()
        }
        if "pin_id" in told and "title" in told:
            told["picture"] = picture_path(int(told["pin_id"]), keys)
        if "cited" in told:
            told["cited"] = [str(pin) for pin in told["cited"]]
        return told
    if isinstance(data, list | tuple):
        return [with_texts_for_ids(item, keys) for item in data]
    return data


def picture_path(pin_id: int, keys: Keys) -> str:
    key = keys.picture_key(pin_id)
    return f"/pins/{pin_id}/picture" + (f"?key={quote(key)}" if key else "")


def pins_json(pins: tuple[Candidate, ...], keys: Keys) -> list[Any]:
    return [with_texts_for_ids(pin_data(pin), keys) for pin in pins]
