"""The base of all JSON bodies: a model describes a body and renders it, so that the two cannot differ."""

from __future__ import annotations

from flask import Response
from pydantic import BaseModel, ConfigDict


class ResponseBody(BaseModel):
    """What all bodies share. A field that is not set is left out of the JSON."""

    model_config = ConfigDict(populate_by_name=True)

    def render(self) -> bytes:
        """Return the body as JSON, ready to send."""
        return self.model_dump_json(exclude_unset=True, by_alias=True).encode() + b"\n"


def respond(body: ResponseBody, status: int = 200) -> Response:
    """Return `body` as a JSON response."""
    return Response(body.render(), status, mimetype="application/json")
